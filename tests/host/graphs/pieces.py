"""What several workflows have in common: loaders, pair, prompts, sampling, and the note on files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .builder import BLUE, GREEN, RED, File, Node, Slot
from .layout import Column
from .models import PAIR_PAGE, Model

FOX = "A red fox asleep on a mossy stone wall in an autumn forest, soft morning light through the mist, fallen maple leaves, shallow depth of field, photograph"
PICTURE = "example.png"  # lies in every ComfyUI's input folder


class Loaded(NamedTuple):
    unet: Node
    clip: Node
    vae: Node


class Prompts(NamedTuple):
    positive: Node
    negative: Node


def files_table(files: Sequence[File], *rows: str, sizes: bool = True) -> str:
    """The files by folder, with what else belongs there."""
    gb = [f" {each.gb:g} |" if each.gb else " |" for each in files] if sizes else [""] * len(files)
    head = "| folder in `models/` | file |" + (" GB |" if sizes else "") + "\n|---|---|" + ("---|" if sizes else "")
    return "\n".join(
        [head, *(f"| `{each.folder}` | [{each.name}]({each.url}) |{size}" for each, size in zip(files, gb, strict=True)), *rows]
    )


def files_note(model: Model, *more: File) -> str:
    """For graphs with the model's pair."""
    published = isinstance(model.slow, File)
    files = files_table([*model.files, *more], *(() if published else ("| `loras` | your Slow and your Fast LoRA | |",)))
    if published:
        return f"{files}\n\nThe pair is the one that Glance's authors published at [CSU-JPG/Glance]({PAIR_PAGE}).\n"
    return f"{files}\n\nWe know of no published Glance pair for {model.name}: the names in **Load Glance LoRA** are placeholders. Choose your own two files there.\n"


def training_files_note(model: Model) -> str:
    return f"{files_table(model.bare_files)}\n\nTraining needs the Python package `peft` as well.\n"


def load(column: Column, model: Model) -> Loaded:
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
    pair = column.node("LoadGlanceLoRA", colour=BLUE, model=onto, slow_lora=model.slow, fast_lora=model.fast)
    column.node("PreviewAny", height, title="Report: what was found in the files", source=pair["report"])
    column.group(group)
    return pair


def encode(column: Column, model: Model, clip: Node, text: str, title: str = "Positive prompt", height: int = 130) -> Node:
    """The prompt, with the model's own guidance where it has one."""
    prompt = column.node("CLIPTextEncode", height, title=title, colour=GREEN, clip=clip, text=text)
    return column.node("FluxGuidance", conditioning=prompt, guidance=model.guidance) if model.guidance else prompt


def against(column: Column, model: Model, clip: Node, positive: Node, text: str = " ") -> Node:
    """The negative prompt; where cfg is 1 there is none."""
    if model.cfg == 1:
        return column.node("ConditioningZeroOut", title="Negative: none (cfg is 1)", colour=RED, conditioning=positive)
    return column.node("CLIPTextEncode", 100, title="Negative prompt", colour=RED, clip=clip, text=text)


def prompts(column: Column, model: Model, clip: Node, group: str, text: str = FOX) -> Prompts:
    positive = encode(column, model, clip, text)
    negative = against(column, model, clip, positive)
    column.group(group)
    return Prompts(positive, negative)


def sample(column: Column, model: Any, said: Prompts, latent: Node | Slot, vae: Node, **more: Any) -> Node:
    """The sampler and its pictures decoded. model: what carries the pair."""
    sampler = column.node("PhaseSplitSampler", colour=BLUE, model=model, positive=said.positive, negative=said.negative, latent_image=latent, **more)  # fmt: skip
    return column.node("VAEDecode", samples=sampler, vae=vae)


def picture(column: Column, vae: Node, group: str, title: str | None = None) -> tuple[Node, Node]:
    """A picture of the user's at about one megapixel, its sides multiples of 16, and its latent."""
    image = column.node("LoadImage", 330, title=title, image=PICTURE)
    scaled = column.node("ImageScaleToTotalPixels", title="To about one megapixel", image=image, upscale_method="lanczos", megapixels=1.0, resolution_steps=16)  # fmt: skip
    latent = column.node("VAEEncode", pixels=scaled, vae=vae)
    column.group(group)
    return scaled, latent
