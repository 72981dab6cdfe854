"""Which modules a LoRA trains."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import TrainingError
from ..models import base_model

PAPER, ATTENTION, ALL_LINEAR = "paper", "attention", "all linear"
PRESETS = (PAPER, ATTENTION, ALL_LINEAR)

_ATTENTION = re.compile(r"(^|[._])(attn\d?|attention|self_attn|cross_attn|attn2|img_attn|txt_attn)([._]|$)")
_INJECTED = re.compile(r"(^|\.)injector\.\d+$")  # blocks of cross attention to sound
# Named after the attention that they scale, or that pools tokens before the model runs.
_BESIDE_ATTENTION = re.compile(r"modulation|attention_pooler", re.IGNORECASE)
_FUSED = re.compile(r"(^|\.)single_blocks\.\d+\.linear[12]$")  # attention and mlp in one matrix


def finds_any(names: Iterable[str], targets: str, base: str) -> bool:
    """Return whether `target_modules` finds anything."""
    try:
        return bool(target_modules(names, targets, base))
    except TrainingError:
        return False


def _is_attention(name: str) -> bool:
    parent = name.rpartition(".")[0]
    inside = _ATTENTION.search(parent) or _INJECTED.search(parent) or _FUSED.search(name)
    return bool(inside) and not _BESIDE_ATTENTION.search(name)


def target_modules(names: Iterable[str], targets: str, base: str) -> list[str]:
    """Return the module names that `targets` means.

    Args:
        targets: a preset, or a regular expression that matches anywhere in a name.
        base: the base model's name in models.py.

    Raises:
        TrainingError: if it finds none, is not an expression, or is the paper's list for a model the paper did not
        train.
    """
    names = list(names)
    if targets == PAPER:
        endings = base_model(base).paper_targets
        if not endings:
            raise TrainingError(
                f"targets is paper, but the paper did not train {base}; choose attention, all linear or a pattern"
            )
        found = [name for name in names if name.endswith(tuple("." + ending for ending in endings))]
    elif targets == ATTENTION:
        found = [name for name in names if _is_attention(name)]
    elif targets == ALL_LINEAR:
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
            f"targets {targets[:60]!r} finds none of the model's {len(names)} Linear layers{example}; write another "
            "pattern"
        )
    return found
