"""The losses of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class History:
    """Every example's loss in the order of training, and the step of the student's sigmas at which it was drawn."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, steps: Tensor, losses: Tensor) -> None:
        """Append one batch."""
        self.steps += steps.tolist()
        self.losses += losses.tolist()

    def tensors(self) -> dict[str, Tensor]:
        """Return the history as it is kept in a checkpoint."""
        return {
            "history/steps": torch.tensor(self.steps, dtype=torch.long),
            "history/losses": torch.tensor(self.losses, dtype=torch.float64),
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> History:
        """Read what `tensors` gave. Raises LookupError or ValueError for anything else."""
        steps, losses = tensors["history/steps"], tensors["history/losses"]
        if steps.ndim != 1 or steps.shape != losses.shape or losses.dtype != torch.float64:
            raise ValueError("its history is not one of a training run")
        if not torch.isfinite(losses).all():
            raise ValueError("its history holds losses that are not numbers")
        return History([int(step) for step in steps.tolist()], losses.tolist())
