"""A solver's coefficients as parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..sampling.solver import Solver
from ..schedule.phase_schedule import PhaseSchedule

_SCALE_BOUNDS = (0.8, 1.25)  # of sigma_scale; no training needed more
_ABOVE_THRESHOLD = 1.001


class LearnableSolver(nn.Module):
    """sigma_scale (n), state_coef (n), cond_coef and uncond_coef (n, n; only their lower triangles count).

    The sigma that the model sees stays in its own phase, because a host selects the phase by it.
    """

    sigma_scale: nn.Parameter
    state_coef: nn.Parameter
    cond_coef: nn.Parameter
    uncond_coef: nn.Parameter

    def __init__(self, start: Solver, schedule: PhaseSchedule, device: torch.device):
        super().__init__()
        self.steps = start.steps
        self.bounds = [_bounds(schedule, i) for i in range(schedule.steps)]
        values = {
            "sigma_scale": torch.tensor(start.sigma_scale),
            "state_coef": torch.tensor(start.state_coef),
            "cond_coef": self._square(start.cond_coef),
            "uncond_coef": self._square(start.uncond_coef),
        }
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value.to(device)))
        self.guided = bool(start.uncond_coef)

    def scale_at(self, i: int) -> Tensor:
        """Return sigma_scale of step i, within its bounds."""
        return self.sigma_scale[i].clamp(*self.bounds[i])

    def step(
        self, i: int, width: float, x: Tensor, conds: Sequence[Tensor], unconds: Sequence[Tensor | None]
    ) -> Tensor:
        """Do as Solver.step."""
        out = x * self.state_coef[i]
        for j in range(i + 1):
            out = out + conds[j] * (width * self.cond_coef[i, j])
            uncond = unconds[j]
            if uncond is not None:
                out = out + uncond * (width * self.uncond_coef[i, j])
        return out

    def solver(self) -> Solver:
        """Return the coefficients as they are now."""

        def rows(square: Tensor) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(square[i, : i + 1].tolist()) for i in range(self.steps))

        return Solver(
            tuple(float(self.scale_at(i).detach()) for i in range(self.steps)),
            tuple(self.state_coef.tolist()),
            rows(self.cond_coef),
            rows(self.uncond_coef) if self.guided else (),
        )

    def _square(self, rows: Sequence[Sequence[float]]) -> Tensor:
        square = torch.zeros(self.steps, self.steps)
        for i, row in enumerate(rows):
            square[i, : len(row)] = torch.tensor(row)
        return square


def _bounds(schedule: PhaseSchedule, i: int) -> tuple[float, float]:
    """Return the least and the most that step i may scale its sigma by."""
    low, high = _SCALE_BOUNDS
    sigma = schedule.sigmas[i]
    if i >= schedule.slow_steps:  # Fast sees no sigma above the boundary
        return low, min(high, schedule.boundary / sigma)
    least = _ABOVE_THRESHOLD * schedule.threshold / sigma  # Slow sees none below it, and none above the first
    return max(low, least), min(high, max(schedule.sigmas[0] / sigma, 1.0))
