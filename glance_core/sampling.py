"""Samplers on a ladder: free functions of (velocity, x, sigmas).

velocity(x, sigma) returns noise - data at noise level sigma (a float), shaped like x. x is (B, ...), the noisy data at
sigmas[0]. `callback(step, x, sigma)` is called before each forward. Each returns the data at sigma 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from .errors import ScheduleError

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
Callback = Callable[[int, torch.Tensor, float], None]


def euler(velocity: Velocity, x: torch.Tensor, sigmas: Sequence[float], callback: Callback | None = None) -> torch.Tensor:
    """First order: x <- x + (sigma' - sigma) v."""
    return walk(velocity, x, sigmas[:-1], [sigmas], callback)


def multistep(
    velocity: Velocity, x: torch.Tensor, sigmas: Sequence[float], callback: Callback | None = None, coefficient: float = 1.0
) -> torch.Tensor:
    """Second order, one forward per step: Adams-Bashforth with uneven steps, the first step by Euler.

    coefficient scales the correction by the last velocity: 1 is second order, 0 Euler; few steps under guidance do best in between.
    Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section III.5.
    """
    previous: tuple[torch.Tensor, float] | None = None
    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        if callback is not None:
            callback(i, x, sigma)
        v, h = velocity(x, sigma), after - sigma
        slope = v if previous is None else v + (v - previous[0]) * (coefficient * h / (2 * previous[1]))
        x = x + h * slope
        previous = v, h
    return x


def walk(
    velocity: Velocity,
    x: torch.Tensor,
    told: Sequence[float],
    ladders: Sequence[Sequence[float]],
    callback: Callback | None = None,
) -> torch.Tensor:
    """Euler steps along `ladders`, one after the other, while the model is told the sigmas of `told`.

    For a consistent walk `told` is the ladder itself without its end (`euler`). The published Glance pipelines are not
    consistent: they tell the model one ladder and move along others (`reference_ladders`).
    """
    moves = [after - before for ladder in ladders for before, after in itertools.pairwise(ladder)]
    if len(moves) != len(told):
        raise ScheduleError(f"{len(told)} sigmas are told to the model but the ladders hold {len(moves)} steps; both must be equal")
    for i, (sigma, move) in enumerate(zip(told, moves, strict=True)):
        if callback is not None:
            callback(i, x, sigma)
        x = x + move * velocity(x, sigma)
    return x


def reference_ladders(teacher: Sequence[float], fast: Sequence[float], slow_steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the reference code's scheduler walks: the first `slow_steps` steps of the `teacher` ladder, then the whole `fast` ladder.

    `teacher` has 50 steps and `fast` as many as the Fast phase; both start at 1, so the moves add up to more than 1
    (1.0537 for Qwen-Image at 1024x1024). Source: CSU-JPG/Glance at 88bac37, measured against diffusers.
    """
    if not 1 <= slow_steps < len(teacher):
        raise ScheduleError(f"slow_steps = {slow_steps} must lie between 1 and {len(teacher) - 1}")
    return tuple(teacher[: slow_steps + 1]), tuple(fast)
