"""Training data of a pair for the embedded model: prompts with the teacher's start noise, or one captioned picture."""

from __future__ import annotations

import hashlib
import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import GlanceError, PromptError
from . import LATENT
from .packing import pack
from .painting import draw_prompts
from .words import parse
from .world import RESOLUTION, render, sample_scenes

LEAST_RUNS = 192  # runs of the teacher; fewer prompts get several noises each
_PROMPT_SEED, _NOISE_SEED, _PICTURE_SEED = 10_000, 20_000, 30_000
_LONGEST = 1_000_000  # bytes of a prompt file


@dataclass(frozen=True)
class Examples:
    """slots (n, 9): the prompts' words. latents (n, 16, 16, 16): the teacher's start noise, or packed pictures."""

    slots: Tensor
    latents: Tensor
    image_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def digest(self) -> str:
        """Return a hash that only equal examples share."""
        return hashlib.sha256(save({"slots": self.slots, "latents": self.latents})).hexdigest()


def drawn(count: int, seed: int) -> Tensor:
    """Return slots (count, 9) of prompts of the training world."""
    return draw_prompts(count, _PROMPT_SEED + seed, "seen").slots


def read_prompts(path: Path) -> Tensor:
    """Return slots (n, 9) of a text file with one caption per line; empty lines are ignored.

    Raises:
        PromptError: with file and line.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_LONGEST + 1)
        lines = text.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not UTF-8 text; give a text file with one caption per line") from error
    if len(text) > _LONGEST:
        raise PromptError(f"{path}: is longer than {_LONGEST} bytes; give fewer captions")
    slots = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                slots.append(parse(line))
            except PromptError as error:
                raise PromptError(f"{path.name}, line {number}: {error}") from error
    if not slots:
        raise PromptError(f"{path}: does not hold a caption; write one per line")
    return torch.tensor(slots)


def with_noise(slots: Tensor, seed: int, noises: int | None = None) -> Examples:
    """Return every prompt with `noises` noises of its own; by default enough for at least 192 runs."""
    noises = max(1, math.ceil(LEAST_RUNS / len(slots))) if noises is None else noises
    if noises < 1:
        raise GlanceError(f"noises is {noises}; give each prompt at least 1")
    repeated = slots.repeat(noises, 1)
    generator = torch.Generator().manual_seed(_NOISE_SEED + seed)
    return Examples(repeated, torch.randn((len(repeated), *LATENT), generator=generator))


def own_picture(seed: int) -> Examples:
    """Return one picture of the training world and its caption."""
    generator = torch.Generator().manual_seed(_PICTURE_SEED + seed)
    scene = sample_scenes(1, generator, "seen")
    return Examples(scene.slots(), pack(render(scene, generator)))


def pictured(path: Path, caption: str) -> Examples:
    """Return a picture file, averaged down to 32 x 32 pixels, with its caption.

    Raises:
        GlanceError: for a file that is not a picture.
    """
    from PIL import Image, ImageOps

    try:
        data = path.read_bytes()
    except OSError as error:
        raise GlanceError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = ImageOps.exif_transpose(image).convert("RGB").resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise GlanceError(f"{path}: is not a picture that Pillow can open; give a PNG or JPEG") from error
    levels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    pixels = levels.view(RESOLUTION, RESOLUTION, 3).permute(2, 0, 1)  # (3, H, W)
    return Examples(torch.tensor([parse(caption)]), pack(pixels[None] / 127.5 - 1), hashlib.sha256(data).hexdigest())
