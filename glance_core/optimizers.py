"""Optimisers and learning rates for adapters."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .errors import TrainingError

OPTIMIZERS = ("adamw", "adamw8bit")
DECAYS = ("linear", "cosine", "constant")


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), in fp32 or with 8-bit states (arXiv 2110.02861, by bitsandbytes, which is not installed with the pack). parameters: as torch's
    optimisers take them, groups with settings of their own too."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, learning_rate, betas, weight_decay=weight_decay)
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise TrainingError(
                "optimizer adamw8bit needs bitsandbytes; install it with pip install bitsandbytes, or choose adamw"
            ) from error
        made: torch.optim.Optimizer = AdamW8bit(parameters, learning_rate, betas, weight_decay=weight_decay)
        return made
    raise TrainingError(f"optimizer is {name!r}; choose one of {', '.join(OPTIMIZERS)}")


def has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def rate(step: int, steps: int, warmup: float, decay: str) -> float:
    """The share of the learning rate at a step (from 0) of `steps`: a linear rise over the share `warmup`, times the decay to the end."""
    rising = max(1, math.ceil(steps * warmup))
    return min(1.0, (step + 1) / rising) * _falling(step / steps, decay)


def _falling(done: float, decay: str) -> float:
    if decay == "linear":
        return 1 - done
    if decay == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if decay == "constant":
        return 1.0
    raise TrainingError(f"the decay of the learning rate is {decay!r}; choose one of {', '.join(DECAYS)}")
