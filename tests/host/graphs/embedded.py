"""The pack's own small model: sample, compare, train and use. Nothing is downloaded."""

from __future__ import annotations

from .builder import BLUE, GREEN, RED, Graph, Node
from .embedded_notes import COMPARE, OWN_MODEL, PATH, STEPS, TRAIN, TRY, WORDS
from .layout import Column, Notes, level

PROMPT = "a large green star left and a small purple ring on striped pink"
PROMPTS = """a large red circle left and a small blue star on plain white
a small yellow heart on dotted pink
a large purple square right and a large cyan ring on striped grey
a small green triangle on checkered black
a large blue heart center on dotted white
a small cyan star left and a small red ring on plain grey
a large yellow ring top and a small green circle on striped pink
a small purple star on checkered white
a large red triangle on striped black
a small blue square bottom and a large yellow star on plain pink
a large cyan heart right and a small purple circle on dotted black
a small red ring center on checkered grey
a large green heart left and a large red star on plain black
a small blue circle on striped white
a large purple ring on dotted grey
a small yellow square right and a small cyan triangle on checkered pink"""
UNET, SLOW, FAST = (f"glance_tiny_{each}.safetensors" for each in ("flux", "slow", "fast"))
NEGATIVE, SIZE = "Negative prompt: empty", "128 x 128 and the number of pictures"


def sample(graph: Graph) -> None:
    unet = graph.node("UNETLoader", (490, 110), (360, 82), unet_name=UNET)
    pair = graph.node("LoadGlanceLoRA", (910, 0), (400, 160), colour=BLUE, model=unet, slow_lora=SLOW, fast_lora=FAST)
    report = graph.node("PreviewAny", (910, 240), (400, 330), title="Report: what was found in the files", source=pair["report"])
    positive = graph.node("GlanceTinyText", (910, 690), (400, 160), title="Positive prompt", colour=GREEN, prompt=PROMPT)
    negative = graph.node("GlanceTinyText", (910, 925), (400, 170), title=NEGATIVE, colour=RED, prompt="")
    latent = graph.node("EmptySD3LatentImage", (490, 690), (360, 106), title=SIZE, width=128, height=128, batch_size=4)
    vae = graph.node("GlanceTinyVAE", (490, 0), (360, 26))
    pictures = []
    for x, title, model, choices in (
        (1370, "With the pair", pair, {"cfg": 4, "slow_steps": 2, "fast_steps": 4, "teacher_steps": "1,8|18,26,36,47"}),
        (1955, "Bare base, as many runs", unet, {"cfg": 2.5, "sampler_name": "euler", "slow_steps": 2, "fast_steps": 3, "teacher_steps": "1,9|21,31,41"}),
    ):  # fmt: skip
        sampler = graph.node(
            "PhaseSplitSampler", (x, 0), (530, 310), title=title, colour=BLUE, model=model, positive=positive, negative=negative, latent_image=latent, **choices
        )  # fmt: skip
        decoded = graph.node("VAEDecode", (x, 390), (220, 82), samples=sampler, vae=vae)
        larger = graph.node(
            "ImageScaleBy", (x + 245, 390), (285, 82), title="Twice as large", image=decoded, upscale_method="nearest-exact", scale_by=2
        )
        pictures.append((sampler, decoded, larger, graph.node("PreviewImage", (x, 530), (530, 565), title=title, images=larger)))
    graph.note("A tiny FLUX, inside the pack", WORDS, (0, -45), (450, 440))
    graph.note("What the steps are", STEPS, (0, 440), (450, 320))
    graph.note("What to try", TRY, (0, 805), (450, 290))
    graph.group("1. Model", vae, unet)
    graph.group("2. Glance pair", pair, report)
    graph.group("3. Prompt", positive, negative)
    graph.group("4. Pictures", latent)
    for title, nodes in zip(("5. With the pair", "6. Without the pair"), pictures, strict=True):
        graph.group(title, *nodes)


def compare(graph: Graph) -> None:
    notes = Notes(graph)
    notes.note("Is the pair worth it?", COMPARE, 420)
    notes.note("The model's path", PATH, 330)
    left = Column(graph, 490, 380)
    unet = left.node("UNETLoader", unet_name=UNET)
    vae = left.node("GlanceTinyVAE")
    pair = left.node("LoadGlanceLoRA", colour=BLUE, model=unet, slow_lora=SLOW, fast_lora=FAST)
    left.group("1. Model and pair")
    said = {
        "positive": left.node("GlanceTinyText", 110, title="Positive prompt", colour=GREEN, prompt=PROMPT),
        "negative": left.node("GlanceTinyText", 90, title=NEGATIVE, colour=RED, prompt=""),
    }
    latent = left.node("EmptySD3LatentImage", title=SIZE, width=128, height=128, batch_size=8)
    left.group("2. Prompt and pictures")
    compared = graph.node(
        "GlanceCompare", (930, 0), (420, 250), colour=BLUE, model=unet, with_pair=pair, **said, latent_image=latent, vae=vae, cfg=4
    )
    table = graph.node("PreviewAny", (930, 310), (420, 430), title="Table and verdict", source=compared["table"])
    grid = graph.node("PreviewImage", (1390, 0), (640, 740), title="Teacher, pair, and the bare base with as many runs", images=compared)
    graph.group("3. Compare", compared, table, grid)
    path = graph.node(
        "GlancePhasePlot",
        (930, 845),
        (420, None),
        colour=BLUE,
        model=unet,
        **said,
        latent_image=latent,
        cfg=4,
        teacher_runs=8,
        batch_size=8,
    )
    plot = graph.node("PreviewImage", (1390, 845), (640, 322), title="How much the velocity turns, and the ladders", images=path["plot"])
    graph.group("4. The model's path", path, plot)
    level(graph)


def train(graph: Graph) -> None:
    notes = Notes(graph)
    notes.note("Train a pair, and use it", TRAIN, 500)
    notes.note("For your own model", OWN_MODEL, 420)
    left = Column(graph, 490, 380)
    unet = left.node("UNETLoader", unet_name=UNET)
    vae = left.node("GlanceTinyVAE")
    latent = left.node("EmptySD3LatentImage", title=SIZE, width=128, height=128, batch_size=4)
    left.group("1. Model")
    learned = left.node("GlanceTinyText", 330, title="Training prompts, one a line", colour=GREEN, prompt=PROMPTS)
    negative = left.node("GlanceTinyText", 90, title=NEGATIVE, colour=RED, prompt="")
    tried = left.node("GlanceTinyText", 110, title="Prompt to try the pair on", colour=GREEN, prompt=PROMPT)
    left.group("2. Prompts")
    middle = Column(graph, 930, 420)
    found = middle.node(
        "CalibrateGlance", colour=BLUE, model=unet, positive=learned, negative=negative, latent_image=latent, cfg=4, seconds=30, batch_size=16
    )  # fmt: skip
    middle.node("PreviewAny", 250, title="What was found", source=found["report"])
    middle.node("PreviewImage", 330, title="Walks that were tried", images=found["plot"])
    middle.group("3. Calibrate")
    right = Column(graph, 1410, 440)
    trained = right.node(
        "TrainGlanceAdapter", colour=BLUE, model=unet, latent=latent, positive=learned, negative=negative, settings=found["settings"], objective="end to end",
        steps=80, learning_rate=0.003, rank=16, alpha=16, gradient_checkpointing=False, cfg=4, name="my_glance_tiny", teacher_runs=96, batch_size=8, checks=32,
    )  # fmt: skip
    right.group("4. Train")
    result = Column(graph, 1910, 560)
    result.node("PreviewImage", 240, title="Losses", images=trained["losses"])
    result.node("PreviewAny", 220, title="Report: is it better than the bare base?", source=trained["report"])
    result.group("5. What came of it")
    _use(graph, result.y, trained, unet, found["settings"], (tried, negative, latent, vae))
    level(graph)


def _use(graph: Graph, y: int, trained: Node, unet: Node, settings: object, given: tuple[Node, Node, Node, Node]) -> None:
    positive, negative, latent, vae = given
    said = {"positive": positive, "negative": negative, "latent_image": latent, "cfg": 4}
    both = []
    for x, title, model, more in ((1910, "With the pair", trained, {}), (2200, "Calibrated, no pair", unet, {"settings": settings})):
        sampler = graph.node("PhaseSplitSampler", (x, y), (270, None), title=title, colour=BLUE, model=model, **said, **more)
        decoded = graph.node("VAEDecode", (x, sampler.bottom + 60), (270, None), samples=sampler, vae=vae)
        both += [sampler, decoded, graph.node("PreviewImage", (x, decoded.bottom + 60), (270, 300), title=title, images=decoded)]
    graph.group("6. Use it", *both)
