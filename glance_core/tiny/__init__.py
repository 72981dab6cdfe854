"""The embedded model: a FLUX of 2.8 million parameters that paints captioned shapes, with its weights, words and judge.

It has everything that a claim about quality needs. ComfyUI opens it like any FLUX file, a CPU samples thousands of
pictures, and every attribute of a picture can be checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import GlanceError
from ..lora.safetensors_io import read_tensors
from ..models import MODELS
from ..schedule.sigmas import TEACHER_STEPS, teacher_sigmas
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

ROW = MODELS["glance-tiny"]
GUIDANCE = float(ROW.teacher_cfg or 1)  # the teacher's
LATENT = (CHANNELS, RESOLUTION // BLOCK, RESOLUTION // BLOCK)
TOKENS = (RESOLUTION // BLOCK // PATCH) ** 2


def load_model(path: Path = MODEL_FILE) -> Flux:
    """Load the transformer in float32, frozen; its depth follows from the file's keys."""
    weights = _weights(path)
    depth, single = (
        len({key.split(".")[1] for key in weights if key.startswith(kind)})
        for kind in ("double_blocks.", "single_blocks.")
    )
    hidden, text_width = weights["txt_in.weight"].shape
    return _filled(Flux(FluxConfig(hidden, depth, single, text_width)), weights)


def load_words(path: Path = WORDS_FILE) -> TextTable:
    """Load the text encoder."""
    weights = _weights(path)
    return _filled(TextTable(weights["word.weight"].shape[1]), weights)


def load_evaluator(path: Path = EVALUATOR_FILE) -> Evaluator:
    """Load the judge of pictures."""
    return _filled(Evaluator(), _weights(path))


def trained_how(path: Path = MODEL_FILE) -> dict[str, object]:
    """Return the settings that a weights file was trained with, from its metadata."""
    with safe_open(path, "pt") as file:
        notes: dict[str, object] = json.loads(file.metadata()["glance_tiny"])
    return notes


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise GlanceError(
            f"{path} is missing; clone the pack again, or train it with python -m glance_core.tiny.pretrain"
        )
    return {
        name: value.float() if value.is_floating_point() else value for name, value in read_tensors(path)[0].items()
    }


def _filled(model: _Model, weights: dict[str, Tensor]) -> _Model:
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def tiny_sigmas(steps: int = TEACHER_STEPS) -> tuple[float, ...]:
    """Return the teacher's sigmas: FLUX's own, at 64 tokens."""
    assert ROW.sigma_rule is not None
    return teacher_sigmas(ROW.sigma_rule.name, steps, tokens=TOKENS)
