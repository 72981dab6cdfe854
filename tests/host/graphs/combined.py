"""Qwen-Image's published pair together with what else ComfyUI offers: a picture to start from, a mask, a style LoRA, a ControlNet."""

from __future__ import annotations

from glance_core.schedule import build_schedule, split_steps, teacher_ladder

from .builder import Graph, Node
from .layout import Column, Notes, level
from .models import CONTROLNET, ILLUSTRATION, QWEN_IMAGE
from .pieces import PICTURE, Loaded, Prompts, files_note, load, load_pair, picture, prompts, sample

CHOICES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
UNMEASURED = "The pair was trained for text to image alone; with this it was not measured."


def _denoise_table() -> str:
    """How many steps each denoise leaves at 1024 x 1024."""
    ladder, split = teacher_ladder("qwen-image", tokens=4096), split_steps(5, 5)
    rows = []
    for denoise in CHOICES:
        walked = build_schedule(ladder, split, denoise)
        rows.append(f"| {denoise:g} | {walked.slow_steps} | {walked.steps - walked.slow_steps} | {walked.sigmas[0]:.2f} |")
    return "\n".join(["| denoise | Slow | Fast | first noise level |", "|---|---|---|---|", *rows])


def _pair_and_prompts(graph: Graph, loaded: Loaded, text: str, onto: Node | None = None, report: int = 240) -> tuple[Node, Prompts]:
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, QWEN_IMAGE, onto or loaded.unet, "3. Glance pair", report)
    return pair, prompts(middle, QWEN_IMAGE, loaded.clip, "4. Prompt", text)


def _save(column: Column, image: Node, name: str, height: int) -> None:
    column.node("SaveImage", height, images=image, filename_prefix=f"glance_{name}")
    column.group("5. Sample and save")


def image_to_image(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, QWEN_IMAGE)
    _, latent = picture(left, loaded.vae, "2. Picture to start from")
    pair, said = _pair_and_prompts(
        graph,
        loaded,
        "An oil painting of a girl with blonde hair and fox ears in a pink dress on a green hill, clouds in the sky, thick brush strokes",
        report=400,
    )
    right = Column(graph, 1390, 440)
    decoded = sample(right, pair, said, latent, loaded.vae, cfg=QWEN_IMAGE.cfg, denoise=0.8, title="Denoise: how much changes")
    _save(right, decoded, "image_to_image", 460)
    notes = Notes(graph)
    notes.note("Model files", files_note(QWEN_IMAGE), 300)
    notes.note("How much changes", (
        f"`denoise` says from which noise level on the picture is painted anew, and so how many of the 10 steps are walked:\n\n{_denoise_table()}\n\n"
        "Slow works above noise level 0.89 alone: at 0.8 and below the composition is the picture's, and Fast does everything.\n"
    ), 400)  # fmt: skip
    notes.note("What to change", (
        f"The prompt says what the whole picture is to show, not only what is new. Near 1 the picture is hardly seen, at 0.4 hardly changed.\n\n{UNMEASURED}\n"
    ), 170)  # fmt: skip
    level(graph)


def inpaint(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, QWEN_IMAGE)
    image = left.node("LoadImage", 330, title="Picture: right-click, Open in Mask Editor", image=PICTURE)
    scaled = left.node("ImageScaleToTotalPixels", title="To about one megapixel", image=image, upscale_method="lanczos", megapixels=1.0, resolution_steps=16)  # fmt: skip
    left.group("2. Picture and mask")
    pair, said = _pair_and_prompts(
        graph,
        loaded,
        "A simple drawing of a blonde girl with fox ears in a pink dress on a green hill, she holds a red balloon",
        report=310,
    )
    right = Column(graph, 1390, 400)
    grown = right.node("GrowMask", title="A little beyond the mask", mask=image["MASK"], expand=8)
    encoded = right.node("VAEEncode", pixels=scaled, vae=loaded.vae)
    latent = right.node("SetLatentNoiseMask", samples=encoded, mask=grown)
    decoded = sample(right, pair, said, latent, loaded.vae, cfg=QWEN_IMAGE.cfg)
    right.group("5. Sample within the mask")
    last = Column(graph, 1850, 440)
    whole = last.node("ImageCompositeMasked", title="The picture itself, outside the mask", destination=scaled, source=decoded, mask=grown)
    last.node("SaveImage", 560, images=whole, filename_prefix="glance_inpaint")
    last.group("6. Put together and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(QWEN_IMAGE), 300)
    notes.note("How to use it", (
        "1. Choose a picture, right-click it, **Open in Mask Editor**, paint over what is to be new, save.\n2. Write what the **whole** picture shows, with the new part in it.\n"
        "3. Run. Without a mask nothing changes.\n\nThe sampler paints inside the mask alone, in all 10 steps; the last node puts the picture itself around it, so that nothing "
        "outside is changed by encoding.\n"
    ), 280)  # fmt: skip
    notes.note("What to change", (
        "- `denoise` 0.8 keeps the colours under the mask; Slow then takes no part.\n- `expand`: pixels around the mask that are painted too; more of them for a softer transition.\n"
        f"\n{UNMEASURED}\n"
    ), 190)  # fmt: skip
    level(graph)


def style_lora(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, QWEN_IMAGE)
    styled = left.node("LoraLoaderModelOnly", title="Style LoRA", model=loaded.unet, lora_name=ILLUSTRATION, strength_model=0.9)
    size = left.node("EmptySD3LatentImage", title="Width and height", width=1024, height=1024)
    left.group("2. Style and size")
    pair, said = _pair_and_prompts(graph, loaded, "A storybook watercolor illustration of a red fox asleep on a mossy stone wall, fallen maple leaves, ink outlines", styled)  # fmt: skip
    right = Column(graph, 1390, 400)
    decoded = sample(right, pair, said, size, loaded.vae, cfg=QWEN_IMAGE.cfg)
    _save(right, decoded, "style_lora", 400)
    notes = Notes(graph)
    notes.note("Model files", files_note(QWEN_IMAGE, ILLUSTRATION), 330)
    notes.note("Style and pair together", (
        "The style LoRA acts in all steps, Slow in the first five, Fast in the last five; they add up. Load it with ComfyUI's own node, never in a place of "
        "**Load Glance LoRA**: there it would act in one phase alone.\n\nAny other style LoRA for Qwen-Image goes in its place. The author of this one recommends a strength "
        "of 0.8 to 1, `cfg` 3.5 and 45 steps; here it is 10.\n"
    ), 260)  # fmt: skip
    notes.note("If the style is weak", (
        f"Raise the style's strength; then lower `fast_strength` to 0.7: the late steps paint the texture.\n\nTo see what the pair adds, bypass it and its report with **Ctrl + B**. {UNMEASURED}\n"
    ), 170)  # fmt: skip
    level(graph)


def controlnet(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, QWEN_IMAGE)
    scaled, latent = picture(left, loaded.vae, "2. Picture to follow")
    pair, said = _pair_and_prompts(
        graph, loaded, "A marble statue of a girl with fox ears and outstretched arms in a sunlit garden, photograph", report=400
    )
    right = Column(graph, 1390, 400)
    edges = right.node("Canny", image=scaled, low_threshold=0.1, high_threshold=0.2)
    right.node("PreviewImage", 300, title="The edges", images=edges)
    net = right.node("ControlNetLoader", control_net_name=CONTROLNET)
    controlled = right.node(
        "ControlNetApplyAdvanced", positive=said.positive, negative=said.negative, control_net=net, image=edges, vae=loaded.vae, strength=0.9
    )  # fmt: skip
    right.group("5. ControlNet")
    last = Column(graph, 1850, 440)
    followed = Prompts(controlled["positive"], controlled["negative"])
    decoded = sample(last, pair, followed, latent, loaded.vae, cfg=QWEN_IMAGE.cfg)
    last.node("SaveImage", 400, images=decoded, filename_prefix="glance_controlnet")
    last.group("6. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(QWEN_IMAGE, CONTROLNET), 340)
    notes.note("Pair and ControlNet together", (
        "The ControlNet is ComfyUI's own and acts on the prompts; the pair is on the model. They do not know of each other. The ControlNet runs beside the model in each of the "
        "20 runs and costs as it does without a pair.\n\nThe picture gives the edges and the size; `denoise` 1 starts from noise.\n"
    ), 230)  # fmt: skip
    notes.note("What to change", (
        "- **strength** 0.9: lower it where the edges are followed too closely.\n- **end_percent** below 1 lets the late steps free. Of ten steps Slow takes the first five.\n"
        f"- This one also knows depth, pose and soft edges: put their picture in place of *Canny*'s.\n\n{UNMEASURED}\n"
    ), 220)  # fmt: skip
    level(graph)
