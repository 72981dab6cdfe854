"""Velocities (noise - data) of a model on a set of prompts, alone or with and without the prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NO_PROMPT = -1  # the row of the empty prompt

# velocity(x, sigma, rows): noise - data (B, ...) at noise levels sigma (B,), for the prompts of these rows (B,).
RowVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
# velocity(x, sigma, rows, guided): velocities with the prompt and without; the second is None if not guided.
PromptVelocity = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
# velocity(x, sigma, guided): the same for fixed rows and one noise level.
SolverVelocity = Callable[[Tensor, float, bool], tuple[Tensor, Tensor | None]]
Tick = Callable[[int], None]  # tick(n): n more pictures went through the model once


def with_and_without_prompt(velocity: RowVelocity) -> PromptVelocity:
    """Return a function that calls an unguided `velocity` with and without the prompt, in one batch."""

    def both(x: Tensor, sigma: Tensor, rows: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
        if not guided:
            return velocity(x, sigma, rows), None
        empty = torch.full_like(rows, NO_PROMPT)
        out = velocity(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([rows, empty]))  # (2 B, ...)
        cond, uncond = out.chunk(2)
        return cond, uncond

    return both


def in_batches(velocity: RowVelocity, rows: Tensor, batch: int, tick: Tick | None = None) -> SolverVelocity:
    """Return the velocities of these rows, `batch` at a time, from an unguided `velocity`."""
    both = with_and_without_prompt(velocity)

    def velocities(x: Tensor, sigma: float, guided: bool) -> tuple[Tensor, Tensor | None]:
        conds, unconds = [], []
        for part, part_rows in zip(torch.split(x, batch), torch.split(rows, batch), strict=True):
            level = part.new_full((len(part),), sigma)
            cond, uncond = both(part.clone(), level, part_rows, guided)  # a model may write into its input
            conds.append(cond)
            if uncond is not None:
                unconds.append(uncond)
            if tick:
                tick(len(part_rows))
        return torch.cat(conds), torch.cat(unconds) if unconds else None

    return velocities
