"""Fit a solver's coefficients in closed form, by least squares on the teacher's states.

It needs model calls but no gradients, so it works for a model of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ScheduleError
from .solver import Solver, check_steps
from .velocity import SolverVelocity

_SMALLEST_NORM = 1e-30  # keeps a column of zeros from dividing by zero


@torch.no_grad()
def fit_solver(
    start: Solver,
    sigmas: Sequence[float],
    velocities: SolverVelocity,
    x: Tensor,
    targets: Sequence[Tensor],
    ridge: float = 1e-2,
) -> tuple[Solver, Tensor]:
    """Fit state and velocity coefficients step by step, and return the solver and the states it ends in.

    At each step least squares choose the numbers that bring x nearest to the teacher's next state. They are pulled
    towards those of `start`, most where the rows leave them open.

    Args:
        start: the solver to start from; its sigma_scale and its guided steps stay.
        x: noisy data (rows, ...) at sigmas[0].
        targets: the teacher's state (rows, ...) after each step.
        ridge: strength of the pull, as a share of each column's own square.

    Source: Tikhonov regularisation about a prior.
    """
    check_steps(start, sigmas)
    if len(targets) != start.steps:
        raise ScheduleError(
            f"{len(targets)} teacher states were given for a solver of {start.steps} steps; give one for each"
        )
    solver = start
    conds: list[Tensor] = []
    unconds: list[Tensor | None] = []
    for i, target in enumerate(targets):
        cond, uncond = velocities(x, sigmas[i] * start.sigma_scale[i], start.guided_steps[i])
        conds.append(cond)
        unconds.append(uncond)
        width = sigmas[i + 1] - sigmas[i]
        columns = [x, *(width * column for column in (*conds, *(other for other in unconds if other is not None)))]
        residual = target - solver.step(i, width, x, conds, unconds)
        solver = _changed(solver, i, _least_squares(columns, residual, ridge))
        x = solver.step(i, width, x, conds, unconds)
    return solver, x


def _least_squares(columns: Sequence[Tensor], residual: Tensor, ridge: float) -> list[float]:
    """Return the weights of the columns that best explain the residual, in float64."""
    gram = torch.tensor([[_product(a, b) for b in columns] for a in columns], dtype=torch.float64)
    pull = torch.tensor([_product(a, residual) for a in columns], dtype=torch.float64)
    scale = gram.diagonal().sqrt().clamp(min=_SMALLEST_NORM)
    scaled = gram / scale[:, None] / scale + ridge * torch.eye(len(scale), dtype=torch.float64)
    found = torch.linalg.lstsq(scaled, pull / scale, driver="gelsd").solution / scale  # columns may be equal, or zero
    return [float(value) for value in found]


def _product(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _changed(solver: Solver, i: int, change: Sequence[float]) -> Solver:
    """Return the solver with step i's numbers changed: state, then conditional, then unconditional of guided steps."""

    def moved(rows: tuple[tuple[float, ...], ...], by: Sequence[float]) -> tuple[tuple[float, ...], ...]:
        return (*rows[:i], tuple(value + more for value, more in zip(rows[i], by, strict=True)), *rows[i + 1 :])

    states = (*solver.state_coef[:i], solver.state_coef[i] + change[0], *solver.state_coef[i + 1 :])
    left = iter(change[i + 2 :])
    unconds = [next(left) if guided else 0.0 for guided in solver.guided_steps[: i + 1]]
    return replace(
        solver,
        state_coef=states,
        cond_coef=moved(solver.cond_coef, change[1 : i + 2]),
        uncond_coef=moved(solver.uncond_coef, unconds) if solver.uncond_coef else (),
    )
