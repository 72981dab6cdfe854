"""Which modules a LoRA trains."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import TrainingError
from ..models import base_model

PAPER, ATTENTION, ALL_LINEAR = "paper", "attention", "all linear"
PRESETS = (PAPER, ATTENTION, ALL_LINEAR)

# Below a module that is called an attention, not below its norm, modulation or pooling.
_ATTENTION = re.compile(r"(^|\.)(?!\w*(norm|modulation))(\w+_)?(attn\d?|attention)\.")
_FUSED = re.compile(r"(^|\.)single_blocks\.\d+\.linear[12]$")  # attention and mlp in one matrix
_QUERY_KEY_VALUE = re.compile(r"(?:\w+_)?(q|k|v|kv)(?:_proj)?")  # of an attention that is called otherwise


def finds_any(names: Iterable[str], targets: str, base: str) -> bool:
    """Return whether `target_modules` finds anything."""
    try:
        return bool(target_modules(names, targets, base))
    except TrainingError:
        return False


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
        others = _other_attentions(names)
        found = [n for n in names if _ATTENTION.search(n) or _FUSED.search(n) or n.rpartition(".")[0] in others]
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


def _other_attentions(names: Iterable[str]) -> set[str]:
    """Return the modules that hold queries, keys and values, whatever they are called."""
    held: dict[str, set[str]] = {}
    for name in names:
        module, _, layer = name.rpartition(".")
        kind = _QUERY_KEY_VALUE.fullmatch(layer)
        if kind:
            held.setdefault(module, set()).add(kind[1])
    return {module for module, kinds in held.items() if kinds >= {"q", "k", "v"} or kinds >= {"q", "kv"}}
