"""What several workflows share: loaders, pair, prompts, sampling, and the note about files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .builder import BLUE, GREEN, RED, File, Node, Slot
from .layout import Column
from .models import PAIR_PAGE, Model

DOCS = "https://github.com/glance-comfyui/glance/blob/main/docs"
CLIP = (
    "A red fox trots through fresh snow between birches, its breath steaming in the morning light, the camera follows "
    "at its side"
)
FOX = (
    "A red fox asleep on a mossy stone wall in an autumn forest, soft morning light through the mist, fallen maple "
    "leaves, shallow depth of field, photograph"
)
PICTURE = "example.png"  # in every ComfyUI's input folder
REPORT = "Report: what was found in the files"
SAME_STEPS = (
    "click **Load Glance LoRA**, hold **Ctrl** and click **Report**. Press **Ctrl + B**. The base then takes the same "
    "ten steps."
)


class Loaded(NamedTuple):
    """The loaders of a model. fps: the node with the frames per second, where several nodes ask for them."""

    unet: Node
    clip: Node
    vae: Node | Slot
    sound_vae: Node | None = None
    fps: Node | None = None


class Prompts(NamedTuple):
    """The positive and the negative prompt."""

    positive: Node | Slot
    negative: Node | Slot


def files_table(files: Sequence[File], *rows: str, sizes: bool = True) -> str:
    """Return a table of files by folder, with their sizes if any is known. rows: more rows of it, without a size."""
    sizes = sizes and any(each.gb for each in files)
    gb = [f" {each.gb:g} |" if each.gb else " |" for each in files] if sizes else [""] * len(files)
    head = "| folder in `models/` | file |" + (" GB |" if sizes else "")
    lines = [f"| `{each.folder}` | [{each.name}]({each.url}) |{size}" for each, size in zip(files, gb, strict=True)]
    lines += [f"{row} |" if sizes else row for row in rows]
    return "\n".join([head, "|---|---|" + ("---|" if sizes else ""), *lines])


def files_note(model: Model, *more: File) -> str:
    """Return the note about files for graphs that use the model's pair."""
    files = [*model.files, *more]
    if isinstance(model.slow, File):
        return f"{files_table(files)}\n\nGlance's authors published this pair at [CSU-JPG/Glance]({PAIR_PAGE})."
    return f"{files_table(files, '| `loras` | your Slow and your Fast LoRA |')}\n\n{placeholders(model)}"


def placeholders(model: Model) -> str:
    """Return what to do about a pair that nobody has published."""
    return (
        f"We do not know of a published Glance pair for {model.name}. The names in **Load Glance LoRA** are "
        "placeholders. Choose your own two files there."
    )


def training_files_note(model: Model, *more: File) -> str:
    """Return the note about files for graphs that train a pair."""
    return f"{files_table([*model.base_files, *more])}\n\nTraining also needs the Python package `peft`."


def load(column: Column, model: Model) -> Loaded:
    """Add the loaders."""
    unet = column.node("UNETLoader", unet_name=model.unet)
    if len(model.encoders) == 2:
        first, second = model.encoders
        clip = column.node("DualCLIPLoader", clip_name1=first, clip_name2=second, type=model.encoder_type)
    else:
        clip = column.node("CLIPLoader", clip_name=model.encoders[0], type=model.encoder_type)
    vae = column.node("VAELoader", vae_name=model.vae)
    column.group("1. Model")
    return Loaded(unet, clip, vae)


def load_pair(column: Column, model: Model, onto: Node, group: str, height: int = 240) -> Node:
    """Add the pair's loader and its report. onto: the node whose MODEL gets the pair."""
    pair = column.node("LoadGlanceLoRA", colour=BLUE, model=onto, slow_lora=model.slow, fast_lora=model.fast)
    column.node("PreviewAny", height, title=REPORT, source=pair["report"])
    column.group(group)
    return pair


def encode(column: Column, model: Model, clip: Node, text: str, title: str = "Positive prompt") -> Node:
    """Add a prompt, with the model's own guidance if it has one."""
    prompt = column.node("CLIPTextEncode", 130, title=title, colour=GREEN, clip=clip, text=text)
    return column.node("FluxGuidance", conditioning=prompt, guidance=model.guidance) if model.guidance else prompt


def negative_prompt(column: Column, model: Model, clip: Node, positive: Node) -> Node:
    """Add the negative prompt. At cfg 1 it has no effect, so it is the zeroed positive one."""
    if model.cfg == 1:
        return column.node("ConditioningZeroOut", title="Negative: none (cfg is 1)", colour=RED, conditioning=positive)
    return column.node("CLIPTextEncode", 100, title="Negative prompt", colour=RED, clip=clip, text=model.negative)


def encode_prompts(column: Column, model: Model, clip: Node, group: str | None, text: str = FOX) -> Prompts:
    """Add the positive and the negative prompt. group: the title of their frame, None if more comes into it."""
    positive = encode(column, model, clip, text)
    negative = negative_prompt(column, model, clip, positive)
    if group:
        column.group(group)
    return Prompts(positive, negative)


def sampler(column: Column, model: Any, prompts: Prompts, latent: Node | Slot, **more: Any) -> Node:
    """Add the sampler. model: the node whose MODEL has the pair."""
    inputs = {"model": model, "positive": prompts.positive, "negative": prompts.negative, "latent_image": latent}
    return column.node("PhaseSplitSampler", colour=BLUE, **inputs, **more)


def sample(column: Column, model: Any, prompts: Prompts, latent: Node | Slot, vae: Node, **more: Any) -> Node:
    """Add the sampler, and return its decoded pictures. model: the node whose MODEL has the pair."""
    return column.node("VAEDecode", samples=sampler(column, model, prompts, latent, **more), vae=vae)


def picture(column: Column, vae: Node, group: str, title: str | None = None) -> tuple[Node, Node]:
    """Add a picture of the user's and its latent, at about one megapixel with sides that are multiples of 16."""
    image = column.node("LoadImage", 330, title=title, image=PICTURE)
    scaled = one_megapixel(column, image)
    latent = column.node("VAEEncode", pixels=scaled, vae=vae)
    column.group(group)
    return scaled, latent


def one_megapixel(column: Column, image: Node) -> Node:
    """Scale a picture."""
    return column.node(
        "ImageScaleToTotalPixels",
        title="To about one megapixel",
        image=image,
        upscale_method="lanczos",
        megapixels=1.0,
        resolution_steps=16,
    )
