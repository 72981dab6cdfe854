"""Which examples a training run sees, in an order that a checkpoint can keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling.velocity import NO_PROMPT


@dataclass(frozen=True)
class Batch:
    """steps (B,): places in the student's sigmas. rows (B,): training examples.

    prompt_rows (B,): whose prompts to show, NO_PROMPT if the caption is dropped.
    """

    steps: Tensor
    rows: Tensor
    prompt_rows: Tensor


class BatchSampler:
    """Permutations of steps and of rows, epoch after epoch, so that each comes equally often."""

    def __init__(self, steps: Sequence[int], rows: int, batch: int, caption_dropout: float, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.batch, self.caption_dropout = batch, caption_dropout
        self.values = {"steps": torch.tensor(list(steps)), "rows": torch.arange(rows)}
        self.left = {name: values[:0] for name, values in self.values.items()}

    def next(self) -> Batch:
        """Return the next batch."""
        steps, rows = (self._take(name) for name in ("steps", "rows"))
        if not self.caption_dropout:
            return Batch(steps, rows, rows)
        dropped = torch.rand(len(rows), generator=self.generator) < self.caption_dropout
        return Batch(steps, rows, torch.where(dropped, NO_PROMPT, rows))

    def _take(self, name: str) -> Tensor:
        left, values = self.left[name], self.values[name]
        while len(left) < self.batch:
            left = torch.cat([left, values[torch.randperm(len(values), generator=self.generator)]])
        self.left[name] = left[self.batch :]
        return left[: self.batch]

    def state(self) -> dict[str, Tensor]:
        """Return what `load` needs to continue from here."""
        left = {f"batches/{name}": values.clone() for name, values in self.left.items()}
        return {"batches/generator": self.generator.get_state(), **left}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a state. Raises LookupError, ValueError, TypeError or RuntimeError for anything else."""
        for name, values in self.values.items():
            left = tensors[f"batches/{name}"]
            if left.dtype != values.dtype or left.ndim != 1 or not torch.isin(left, values).all():
                raise ValueError(f"its {name} to come do not belong to this run")
        self.generator.set_state(tensors["batches/generator"])
        self.left = {name: tensors[f"batches/{name}"] for name in self.left}
