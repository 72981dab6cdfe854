"""What a training run draws at each step, so that it can be kept and taken up again, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .objectives import NO_PROMPT


@dataclass
class History:
    """Every example's loss in the order of training: the ladder point it was drawn at, and the loss there."""

    points: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "history/points": torch.tensor(self.points, dtype=torch.long),
            "history/losses": torch.tensor(self.losses, dtype=torch.float64),
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> History:
        """Of what `tensors` gave. Raises LookupError or ValueError for anything else."""
        points, losses = tensors["history/points"], tensors["history/losses"]
        if points.ndim != 1 or points.shape != losses.shape or losses.dtype != torch.float64 or not torch.isfinite(losses).all():
            raise ValueError("its history is none")
        return History([int(point) for point in points.tolist()], losses.tolist())


class Draws:
    """Which points and rows come next: shuffled decks, so that each comes equally often; and the noise's generator."""

    def __init__(self, points: Sequence[int], rows: int, batch: int, caption_dropout: float, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.batch, self.caption_dropout = batch, caption_dropout
        self.values = {"points": torch.tensor(list(points)), "rows": torch.arange(rows)}
        self.decks = {name: values[:0] for name, values in self.values.items()}

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """(points, rows, whose prompts to show): NO_PROMPT where the caption is dropped."""
        at, rows = (self._deal(name) for name in ("points", "rows"))
        if not self.caption_dropout:
            return at, rows, rows
        dropped = torch.rand(len(rows), generator=self.generator) < self.caption_dropout
        return at, rows, torch.where(dropped, NO_PROMPT, rows)

    def _deal(self, name: str) -> Tensor:
        deck, values = self.decks[name], self.values[name]
        while len(deck) < self.batch:
            deck = torch.cat([deck, values[torch.randperm(len(values), generator=self.generator)]])
        self.decks[name] = deck[self.batch :]
        return deck[: self.batch]

    def state(self) -> dict[str, Tensor]:
        return {"draws/generator": self.generator.get_state(), **{f"draws/{name}": deck.clone() for name, deck in self.decks.items()}}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave. Raises LookupError, ValueError, TypeError or RuntimeError for anything else."""
        for name, values in self.values.items():
            deck = tensors[f"draws/{name}"]
            if deck.dtype != values.dtype or deck.ndim != 1 or not torch.isin(deck, values).all():
                raise ValueError(f"its {name} to come are none of this run's")
        self.generator.set_state(tensors["draws/generator"])
        self.decks = {name: tensors[f"draws/{name}"] for name in self.decks}
