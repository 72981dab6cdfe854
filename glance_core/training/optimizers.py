"""Optimisers and learning rates for adapters."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch

from ..errors import TrainingError

OPTIMIZERS = ("adamw", "adamw8bit")
DECAYS = ("linear", "cosine", "constant")


def make_optimizer(
    name: str, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW (arXiv 1711.05101), or AdamW with 8-bit states (arXiv 2110.02861, by bitsandbytes).

    Args:
        groups: parameter groups as torch's optimisers take them, perhaps with settings of their own.

    Raises:
        TrainingError: for an unknown name, and without bitsandbytes, which the pack does not install.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, learning_rate, betas, weight_decay=weight_decay)
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise TrainingError(
                "optimizer adamw8bit needs bitsandbytes; install it with pip install bitsandbytes, or choose adamw"
            ) from error
        made: torch.optim.Optimizer = AdamW8bit(groups, learning_rate, betas, weight_decay=weight_decay)
        return made
    raise TrainingError(f"optimizer is {name!r}; choose one of {', '.join(OPTIMIZERS)}")


def has_bitsandbytes() -> bool:
    """Return whether bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def learning_rate_factor(step: int, steps: int, warmup: float, decay: str) -> float:
    """Return the share of the learning rate at a step (0-based) of `steps`.

    It rises linearly over the share `warmup` of the steps, times the decay to the end.
    """
    rising = max(1, math.ceil(steps * warmup))
    return min(1.0, (step + 1) / rising) * _decay(step / steps, decay)


def _decay(done: float, decay: str) -> float:
    if decay == "linear":
        return 1 - done
    if decay == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if decay == "constant":
        return 1.0
    raise TrainingError(f"decay is {decay!r}; choose one of {', '.join(DECAYS)}")
