"""Which modules a LoRA trains, and the paper's settings for each architecture.

Source: arXiv 2512.02899 and its reference code (CSU-JPG/Glance at 88bac37), read off as facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import TrainingError

QWEN_IMAGE = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
              "img_mlp.net.2", "img_mod.1", "txt_mlp.net.2", "txt_mod.1")  # fmt: skip
FLUX = ("to_q", "to_k", "to_v", "to_out.0")
# What the embedded model's pairs train (measured in glance_core/tiny): attention of the double blocks, all of the single ones; in FLUX's
# own names and in diffusers'.
TINY = (
    r"^(double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear[12]"
    r"|transformer_blocks\.\d+\.attn\..*|single_transformer_blocks\.\d+\.(attn\..*|proj_mlp|proj_out))$"
)
PRESETS = ("paper", "attention", "all linear")

_ATTENTION = re.compile(r"(^|[._])(attn\d?|attention|self_attn|cross_attn|attn2|img_attn|txt_attn)([._]|$)")
_FUSED = re.compile(r"(^|\.)single_blocks\.\d+\.linear[12]$")  # attention and mlp in one matrix


@dataclass(frozen=True)
class Recipe:
    """What the reference trains with. targets: a preset or a regular expression; optimizer: see optimizers.py; init: see lora_layers.py."""

    rank: int
    alpha: float
    targets: str
    learning_rate: float
    steps: int = 60
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    caption_dropout: float = 0.0
    init: str = "gaussian"
    batch: int = 1


RECIPES: Mapping[str, Recipe] = {
    "qwen-image": Recipe(32, 128.0, "paper", 3e-4, optimizer="adamw8bit", caption_dropout=0.1),
    "flux": Recipe(16, 64.0, "paper", 5e-4, weight_decay=0.01),
    "glance-tiny": Recipe(16, 16.0, TINY, 2e-3, steps=120, init="kaiming", batch=8),  # not the paper's
}
# Not the paper's: its FLUX recipe on all attention, for architectures that it says nothing of.
OTHER = Recipe(16, 64.0, "attention", 5e-4, weight_decay=0.01)


def recipe(architecture: str) -> Recipe:
    return RECIPES.get(architecture, OTHER)


def any_chosen(names: Iterable[str], targets: str, architecture: str) -> bool:
    try:
        return bool(chosen(names, targets, architecture))
    except TrainingError:
        return False


def chosen(names: Iterable[str], targets: str, architecture: str) -> list[str]:
    """The module names that `targets` means: a preset, or a regular expression that somewhere in the name finds itself.

    Raises TrainingError if it means none, is no expression, or is the paper's list for an architecture that the paper did not train.
    """
    names = list(names)
    if targets == "paper":
        lists = {"qwen-image": QWEN_IMAGE, "flux": FLUX}
        if architecture not in lists:
            raise TrainingError(f"targets is paper, but the paper trained no {architecture}; choose attention, all linear or a pattern")
        found = [name for name in names if name.endswith(tuple("." + end for end in lists[architecture]))]
    elif targets == "attention":
        found = [name for name in names if _ATTENTION.search(name.rpartition(".")[0]) or _FUSED.search(name)]
    elif targets == "all linear":
        found = names
    else:
        try:
            pattern = re.compile(targets)
        except (re.error, OverflowError, RecursionError) as error:
            raise TrainingError(
                f"targets {targets[:60]!r} is neither one of {', '.join(PRESETS)} nor a regular expression ({error})"
            ) from error
        found = [name for name in names if pattern.search(name)]
    if not found:
        example = f", for example {names[0]}" if names else ""
        raise TrainingError(
            f"targets {targets[:60]!r} finds none of the model's {len(names)} Linear layers{example}; choose another pattern"
        )
    return found
