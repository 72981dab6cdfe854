"""Qwen-Image's published pair together with a picture to start from, a mask, a style LoRA or a ControlNet."""

from __future__ import annotations

from glance_core.schedule.phase_schedule import PhaseSchedule, build_schedule
from glance_core.schedule.sigmas import teacher_sigmas
from glance_core.schedule.split import split_steps

from .builder import Graph, Node
from .layout import Column, Notes, level
from .models import CONTROLNET, ILLUSTRATION, QWEN_IMAGE
from .pieces import (
    PICTURE,
    Loaded,
    Prompts,
    encode_prompts,
    files_note,
    load,
    load_pair,
    one_megapixel,
    picture,
    sample,
)

DENOISE = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
UNMEASURED = "The pair was trained for text to image only. We have not measured this use."
OIL = (
    "An oil painting of a girl with blonde hair and fox ears in a pink dress on a green hill, clouds in the sky, thick "
    "brush strokes"
)
BALLOON = "A simple drawing of a blonde girl with fox ears in a pink dress on a green hill, she holds a red balloon"
WATERCOLOR = (
    "A storybook watercolor illustration of a red fox asleep on a mossy stone wall, fallen maple leaves, ink outlines"
)
STATUE = "A marble statue of a girl with fox ears and outstretched arms in a sunlit garden, photograph"

CHANGE_PICTURE = f"""
The prompt says what the whole picture should show, not only what is new. Near 1 you hardly see the old picture. At 0.4
it hardly changes.

{UNMEASURED}
"""
USE_MASK = """
1. Choose a picture, right-click it, **Open in Mask Editor**. Paint over what should be new, and save.
2. Write what the **whole** picture shows, with the new part in it.
3. Run. Without a mask nothing changes.

The sampler paints only inside the mask, in all 10 steps. The last node puts your picture around it, so encoding changes
nothing outside.
"""
CHANGE_MASK = f"""
- *denoise* 0.8 keeps the colours under the mask. Slow then takes no steps.
- *expand* is how many pixels around the mask are painted too. More of them make a softer transition.

{UNMEASURED}
"""
STYLE = """
The style LoRA acts in all steps, Slow in the first five, Fast in the last five. They add up. Load it with ComfyUI's
own node. In **Load Glance LoRA** it would act in one phase only.

You can use any other style LoRA for Qwen-Image. The author of this one recommends a strength of 0.8 to 1, *cfg* 3.5
and 45 steps. This graph takes 10 steps.
"""
WEAK_STYLE = f"""
Raise the style's strength. If that is not enough, lower *fast_strength* to 0.7, as the late steps paint the texture.

To see what the pair adds, bypass it and its report with **Ctrl + B**. {UNMEASURED}
"""
CONTROL = """
The ControlNet is ComfyUI's own and acts on the prompts. The pair is on the model. They work independently. The
ControlNet runs with each of the 20 model calls, at the same cost as without a pair.

The picture gives the edges and the size. *denoise* 1 starts from noise.
"""
CHANGE_CONTROL = f"""
- *strength* 0.9: lower it if the picture follows the edges too closely.
- *end_percent* below 1 frees the late steps. Slow takes the first five of the ten steps.
- This ControlNet also knows depth, pose and soft edges. Put such a picture in place of *Canny*'s.

{UNMEASURED}
"""


def _schedule(denoise: float) -> PhaseSchedule:
    """Return the schedule of 5 + 5 steps at 1024 x 1024."""
    return build_schedule(teacher_sigmas("qwen-image", tokens=4096), split_steps(5, 5), denoise)


def _about_denoise() -> str:
    """Return how many steps each denoise leaves."""
    schedules = {denoise: _schedule(denoise) for denoise in DENOISE}
    rows = "\n".join(
        f"| {denoise:g} | {each.slow_steps} | {each.steps - each.slow_steps} | {each.sigmas[0]:.2f} |"
        for denoise, each in schedules.items()
    )
    only_fast = max(denoise for denoise, each in schedules.items() if each.slow_steps == 0)
    return f"""
        *denoise* sets the noise level from which the picture is painted anew. So it also sets how many of the 10 steps
        remain:

        | denoise | Slow | Fast | first noise level |
        |---|---|---|---|
        {rows}

        Slow works only above noise level {_schedule(1.0).boundary:.2f}. At {only_fast:g} and below, Fast takes all
        steps, and the composition stays that of your picture.
    """


def _pair_and_prompts(graph: Graph, loaded: Loaded, text: str, onto: Node, report: int = 240) -> tuple[Node, Prompts]:
    """Add the pair and the prompts. onto: the node whose MODEL gets the pair. report: height of its report."""
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, QWEN_IMAGE, onto, "3. Glance pair", report)
    return pair, encode_prompts(middle, QWEN_IMAGE, loaded.clip, "4. Prompt", text)


def _save(column: Column, image: Node, name: str, height: int) -> None:
    column.node("SaveImage", height, images=image, filename_prefix=f"glance_{name}")
    column.group("5. Sample and save")


def image_to_image(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, QWEN_IMAGE)
    _, latent = picture(left, loaded.vae, "2. Picture to start from")
    pair, prompts = _pair_and_prompts(graph, loaded, OIL, loaded.unet, report=400)
    right = Column(graph, 1390, 440)
    choices = {"cfg": QWEN_IMAGE.cfg, "denoise": 0.8, "title": "Denoise: how much changes"}
    decoded = sample(right, pair, prompts, latent, loaded.vae, **choices)
    _save(right, decoded, "image_to_image", 460)
    notes = Notes(graph)
    notes.note("Model files", files_note(QWEN_IMAGE), 300)
    notes.note("How much changes", _about_denoise(), 400)
    notes.note("What to change", CHANGE_PICTURE, 170)
    level(graph)


def inpaint(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, QWEN_IMAGE)
    image = left.node("LoadImage", 330, title="Picture: right-click, Open in Mask Editor", image=PICTURE)
    scaled = one_megapixel(left, image)
    left.group("2. Picture and mask")
    pair, prompts = _pair_and_prompts(graph, loaded, BALLOON, loaded.unet, report=310)
    right = Column(graph, 1390, 400)
    mask = right.node("GrowMask", title="A little beyond the mask", mask=image["MASK"], expand=8)
    encoded = right.node("VAEEncode", pixels=scaled, vae=loaded.vae)
    latent = right.node("SetLatentNoiseMask", samples=encoded, mask=mask)
    decoded = sample(right, pair, prompts, latent, loaded.vae, cfg=QWEN_IMAGE.cfg)
    right.group("5. Sample inside the mask")
    last = Column(graph, 1850, 440)
    title = "Your picture outside the mask"
    whole = last.node("ImageCompositeMasked", title=title, destination=scaled, source=decoded, mask=mask)
    last.node("SaveImage", 560, images=whole, filename_prefix="glance_inpaint")
    last.group("6. Put together and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(QWEN_IMAGE), 300)
    notes.note("How to use it", USE_MASK, 280)
    notes.note("What to change", CHANGE_MASK, 190)
    level(graph)


def style_lora(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, QWEN_IMAGE)
    style = {"model": loaded.unet, "lora_name": ILLUSTRATION, "strength_model": 0.9}
    styled = left.node("LoraLoaderModelOnly", title="Style LoRA", **style)
    size = left.node("EmptySD3LatentImage", title="Width and height", width=1024, height=1024)
    left.group("2. Style and size")
    pair, prompts = _pair_and_prompts(graph, loaded, WATERCOLOR, styled)
    right = Column(graph, 1390, 400)
    decoded = sample(right, pair, prompts, size, loaded.vae, cfg=QWEN_IMAGE.cfg)
    _save(right, decoded, "style_lora", 400)
    notes = Notes(graph)
    notes.note("Model files", files_note(QWEN_IMAGE, ILLUSTRATION), 330)
    notes.note("Style and pair together", STYLE, 260)
    notes.note("If the style is weak", WEAK_STYLE, 170)
    level(graph)


def controlnet(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, QWEN_IMAGE)
    scaled, latent = picture(left, loaded.vae, "2. Picture to follow")
    pair, prompts = _pair_and_prompts(graph, loaded, STATUE, loaded.unet, report=400)
    right = Column(graph, 1390, 400)
    edges = right.node("Canny", image=scaled, low_threshold=0.1, high_threshold=0.2)
    right.node("PreviewImage", 300, title="The edges", images=edges)
    net = right.node("ControlNetLoader", control_net_name=CONTROLNET)
    inputs = {"positive": prompts.positive, "negative": prompts.negative, "control_net": net, "vae": loaded.vae}
    controlled = right.node("ControlNetApplyAdvanced", **inputs, image=edges, strength=0.9)
    right.group("5. ControlNet")
    last = Column(graph, 1850, 440)
    prompts = Prompts(controlled["positive"], controlled["negative"])
    decoded = sample(last, pair, prompts, latent, loaded.vae, cfg=QWEN_IMAGE.cfg)
    last.node("SaveImage", 400, images=decoded, filename_prefix="glance_controlnet")
    last.group("6. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(QWEN_IMAGE, CONTROLNET), 340)
    notes.note("Pair and ControlNet together", CONTROL, 230)
    notes.note("What to change", CHANGE_CONTROL, 220)
    level(graph)
