"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import TrainingError
from .lora_layers import LoraSettings
from .optimizers import OPTIMIZERS, learning_rate_factor


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    steps: of each phase, or of both at once on a rollout objective. batch: examples per step, times accumulation.
    warmup: share of the steps. clip: largest norm of the gradient, 0 for none. caption_dropout: share of examples that
    see the empty prompt. save_every: steps between checkpoints, 0 to save only when the run is stopped.
    """

    lora: LoraSettings
    steps: int = 60
    batch: int = 1
    accumulation: int = 1
    learning_rate: float = 5e-4
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: float = 0.1
    decay: str = "linear"
    clip: float = 1.0
    caption_dropout: float = 0.0
    seed: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("accumulation", 1), ("save_every", 0)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"learning_rate is {self.learning_rate}; it must be a positive number")
        for name in ("warmup", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must lie from 0 to 1")
        for name in ("clip", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be 0 or a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TrainingError(f"betas are {self.betas}; both must be at least 0 and below 1")
        if not 0 <= self.seed < 2**63:
            raise TrainingError(f"seed is {self.seed}; it must lie from 0 to {2**63 - 1}")
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(f"optimizer is {self.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
        learning_rate_factor(0, self.steps, self.warmup, self.decay)  # raises for an unknown decay
