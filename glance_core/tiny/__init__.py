"""The embedded default: a FLUX of 2.8 million parameters that paints captioned shapes, with its weights, words and judge.

Everything a claim about quality needs in one place: it opens in ComfyUI as any FLUX file does, samples thousands of pictures on a CPU,
and every attribute of a picture can be checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import GlanceError
from ..schedule import TEACHER_STEPS, teacher_ladder
from ..tensor_file import read_tensors
from .evaluator import Evaluator
from .model import PATCH, Flux, FluxConfig
from .packing import BLOCK, CHANNELS
from .words import TextTable
from .world import RESOLUTION

FOLDER = Path(__file__).parent / "weights"
MODEL_FILE = FOLDER / "diffusion_models" / "glance_tiny_flux.safetensors"
LORA_FOLDER = FOLDER / "loras"
WORDS_FILE = FOLDER / "glance_tiny_words.safetensors"
EVALUATOR_FILE = FOLDER / "glance_tiny_evaluator.safetensors"

_Model = TypeVar("_Model", bound=torch.nn.Module)

GUIDANCE = 4.0  # the teacher's
LADDER = "flux"
BASE = "glance-tiny"  # the architecture that its adapters state
TEXT_WIDTH = 64
LATENT = (CHANNELS, RESOLUTION // BLOCK, RESOLUTION // BLOCK)
TOKENS = (RESOLUTION // BLOCK // PATCH) ** 2


def load_model(path: Path = MODEL_FILE) -> Flux:
    """The transformer in fp32, frozen; its depth is read off the file's keys."""
    weights = _weights(path)
    depth, single = (len({key.split(".")[1] for key in weights if key.startswith(kind)}) for kind in ("double_blocks.", "single_blocks."))
    hidden, text_width = weights["txt_in.weight"].shape
    return _filled(Flux(FluxConfig(hidden, depth, single, text_width)), weights)


def load_words(path: Path = WORDS_FILE) -> TextTable:
    weights = _weights(path)
    return _filled(TextTable(weights["word.weight"].shape[1]), weights)


def load_evaluator(path: Path = EVALUATOR_FILE) -> Evaluator:
    return _filled(Evaluator(), _weights(path))


def trained_how(path: Path = MODEL_FILE) -> dict[str, object]:
    """The settings a weights file was trained with, from its metadata."""
    with safe_open(path, "pt") as file:
        notes: dict[str, object] = json.loads(file.metadata()["glance_tiny"])
    return notes


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise GlanceError(
            f"{path} is missing; it belongs to the pack, so clone the pack anew or train it with python -m glance_core.tiny.train"
        )
    return {name: value.float() if value.is_floating_point() else value for name, value in read_tensors(path)[0].items()}


def _filled(model: _Model, weights: dict[str, Tensor]) -> _Model:
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def teacher_sigmas(steps: int = TEACHER_STEPS) -> tuple[float, ...]:
    """The tiny model's ladder: FLUX's own, at its 64 tokens."""
    return teacher_ladder(LADDER, steps, tokens=TOKENS)
