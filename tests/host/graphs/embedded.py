"""The pack's own small model: sample, compare, train and use. Nothing is downloaded."""

from __future__ import annotations

from typing import Any

from .builder import BLUE, GREEN, RED, Graph, Node
from .embedded_notes import COMPARE, MODEL, OWN_MODEL, STEPS, TRAIN, TRAJECTORY, TRY
from .layout import Column, Notes, level
from .pieces import REPORT
from .training import IS_IT_BETTER, SAME_CALLS

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
POSITIVE, NEGATIVE = "Positive prompt", "Negative prompt: empty"
SIZE = "128 x 128 and the number of pictures"
PAIR_CHOICES = {"cfg": 4, "slow_steps": 2, "fast_steps": 4, "teacher_steps": "1,8|18,26,36,47"}
BASE_CHOICES = {
    "cfg": 2.5,
    "sampler_name": "euler",
    "slow_steps": 2,
    "fast_steps": 3,
    "teacher_steps": "1,9|21,31,41",
}


def sample(graph: Graph) -> None:
    unet = graph.node("UNETLoader", (490, 110), (360, 82), unet_name=UNET)
    pair = graph.node("LoadGlanceLoRA", (910, 0), (400, 160), colour=BLUE, model=unet, slow_lora=SLOW, fast_lora=FAST)
    report = graph.node("PreviewAny", (910, 240), (400, 330), title=REPORT, source=pair["report"])
    positive = graph.node("GlanceTinyText", (910, 690), (400, 160), title=POSITIVE, colour=GREEN, prompt=PROMPT)
    negative = graph.node("GlanceTinyText", (910, 925), (400, 170), title=NEGATIVE, colour=RED, prompt="")
    latent = graph.node("EmptySD3LatentImage", (490, 690), (360, 106), title=SIZE, width=128, height=128, batch_size=4)
    vae = graph.node("GlanceTinyVAE", (490, 0), (360, 26))
    inputs = {"positive": positive, "negative": negative, "latent_image": latent}
    with_pair = _pictures(graph, 1370, "With the pair", vae, {"model": pair, **inputs, **PAIR_CHOICES})
    without = _pictures(graph, 1955, "Base, same model calls", vae, {"model": unet, **inputs, **BASE_CHOICES})
    graph.note("A tiny FLUX, inside the pack", MODEL, (0, -45), (450, 440))
    graph.note("What the steps are", STEPS, (0, 440), (450, 320))
    graph.note("What to try", TRY, (0, 805), (450, 290))
    graph.group("1. Model", vae, unet)
    graph.group("2. Glance pair", pair, report)
    graph.group("3. Prompt", positive, negative)
    graph.group("4. Pictures", latent)
    graph.group("5. With the pair", *with_pair)
    graph.group("6. Without the pair", *without)


def _pictures(graph: Graph, x: int, title: str, vae: Node, inputs: dict[str, Any]) -> tuple[Node, ...]:
    """Add a sampler and its pictures, twice as large. inputs: the sampler's."""
    sampler = graph.node("PhaseSplitSampler", (x, 0), (530, 310), title=title, colour=BLUE, **inputs)
    decoded = graph.node("VAEDecode", (x, 446), (220, 82), samples=sampler, vae=vae)
    scale = {"title": "Twice as large", "image": decoded, "upscale_method": "nearest-exact", "scale_by": 2}
    larger = graph.node("ImageScaleBy", (x + 245, 446), (285, 82), **scale)
    shown = graph.node("PreviewImage", (x, 580), (530, 515), title=title, images=larger)
    return sampler, decoded, larger, shown


def compare(graph: Graph) -> None:
    notes = Notes(graph)
    notes.note("Is the pair worth it?", COMPARE, 540)
    notes.note("How the full run moves", TRAJECTORY, 430)
    left = Column(graph, 490, 380)
    unet = left.node("UNETLoader", unet_name=UNET)
    vae = left.node("GlanceTinyVAE")
    pair = left.node("LoadGlanceLoRA", colour=BLUE, model=unet, slow_lora=SLOW, fast_lora=FAST)
    left.group("1. Model and pair")
    positive = left.node("GlanceTinyText", 110, title=POSITIVE, colour=GREEN, prompt=PROMPT)
    negative = left.node("GlanceTinyText", 90, title=NEGATIVE, colour=RED, prompt="")
    latent = left.node("EmptySD3LatentImage", title=SIZE, width=128, height=128, batch_size=8)
    left.group("2. Prompt and pictures")
    inputs = {"colour": BLUE, "model": unet, "positive": positive, "negative": negative, "latent_image": latent}
    compared = graph.node("GlanceCompare", (930, 0), (420, 250), **inputs, with_pair=pair, vae=vae, cfg=4)
    table = graph.node("PreviewAny", (930, 310), (420, 430), title="Table and result", source=compared["table"])
    grid = graph.node("PreviewImage", (1390, 0), (640, 740), title=SAME_CALLS, images=compared)
    graph.group("3. Compare", compared, table, grid)
    full_run = graph.node("GlancePhasePlot", (930, 845), (420, None), **inputs, cfg=4, teacher_runs=8, batch_size=8)
    title = "How much the direction changes, and the steps"
    plot = graph.node("PreviewImage", (1390, 845), (640, 322), title=title, images=full_run["plot"])
    graph.group("4. The full run", full_run, plot)
    level(graph)


def train(graph: Graph) -> None:
    notes = Notes(graph)
    notes.note("Train a pair, and use it", TRAIN, 540)
    notes.note("For your own model", OWN_MODEL, 460)
    left = Column(graph, 490, 380)
    unet = left.node("UNETLoader", unet_name=UNET)
    vae = left.node("GlanceTinyVAE")
    latent = left.node("EmptySD3LatentImage", title=SIZE, width=128, height=128, batch_size=4)
    left.group("1. Model")
    prompts = left.node("GlanceTinyText", 330, title="Training prompts, one per line", colour=GREEN, prompt=PROMPTS)
    negative = left.node("GlanceTinyText", 90, title=NEGATIVE, colour=RED, prompt="")
    test_prompt = left.node("GlanceTinyText", 110, title="Prompt to try the pair on", colour=GREEN, prompt=PROMPT)
    left.group("2. Prompts")
    inputs = {"colour": BLUE, "model": unet, "positive": prompts, "negative": negative, "cfg": 4}
    middle = Column(graph, 930, 420)
    found = middle.node("CalibrateGlance", **inputs, latent_image=latent, seconds=30, batch_size=16)
    middle.node("PreviewAny", 250, title="What was found", source=found["report"])
    middle.node("PreviewImage", 330, title="Plans that were tried", images=found["plot"])
    middle.group("3. Calibrate")
    right = Column(graph, 1410, 440)
    more = {"learning_rate": 0.003, "alpha": 16, "batch_size": 8, "checks": 32}
    options = right.node("GlanceTrainingOptions", 690, colour=BLUE, **more)  # Nodes 2.0 draws taller widgets
    trained = right.node(
        "TrainGlanceAdapter",
        **inputs,
        latent=latent,
        settings=found["settings"],
        options=options,
        objective="end_to_end",
        steps=80,
        rank=16,
        gradient_checkpointing=False,
        name="my_glance_tiny",
        teacher_runs=96,
    )
    right.group("4. Train")
    result = Column(graph, 1910, 560)
    result.node("PreviewImage", 240, title="Losses", images=trained["losses"])
    result.node("PreviewAny", 220, title=IS_IT_BETTER, source=trained["report"])
    result.group("5. Results")
    scene = {"colour": BLUE, "positive": test_prompt, "negative": negative, "latent_image": latent, "cfg": 4}
    with_pair = _small_pictures(result, "With the pair", vae, {"model": trained, **scene})
    result.x += 290
    calibrated = {"model": unet, "settings": found["settings"], **scene}
    without = _small_pictures(result, "Calibrated, no pair", vae, calibrated)
    graph.group("6. Use it", *with_pair, *without)
    level(graph)


def _small_pictures(column: Column, title: str, vae: Node, inputs: dict[str, Any]) -> tuple[Node, ...]:
    """Add a sampler and its pictures at the end of the column, half as wide. inputs: the sampler's."""
    graph, x = column.graph, column.x
    sampler = graph.node("PhaseSplitSampler", (x, column.y), (270, None), title=title, **inputs)
    decoded = graph.node("VAEDecode", (x, sampler.bottom + 60), (270, None), samples=sampler, vae=vae)
    shown = graph.node("PreviewImage", (x, decoded.bottom + 60), (270, 300), title=title, images=decoded)
    return sampler, decoded, shown
