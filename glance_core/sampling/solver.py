"""Linear multistep solvers with coefficients of their own, for few steps.

    x_{i+1} = state_coef_i x_i + h_i sum over j <= i of (cond_coef_ij c_j + uncond_coef_ij u_j),
    h_i = sigma_{i+1} - sigma_i

c_j and u_j are the model's velocities at step j with and without the prompt, at noise level sigma_scale_j sigma_j.
Euler under guidance w is one of these solvers (cond_coef_ii = w, uncond_coef_ii = 1 - w), and so is every linear
multistep method. A few numbers per step improve few-step sampling a lot without training a weight.
Compare DC-Solver, arXiv 2409.03755, and DPM-Solver-v3, arXiv 2310.13268.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..errors import ScheduleError
from ..schedule.plan import StepPlan
from .samplers import Callback
from .velocity import SolverVelocity

_MOST_STEPS = 100
_SIGMA_SCALES = (0.5, 2.0)  # beyond these no fit or training ends
_NAMES_IN_FORMAT_1 = {"sigma_scale": "told", "state_coef": "keep", "cond_coef": "cond", "uncond_coef": "free"}


@dataclass(frozen=True)
class Solver:
    """The coefficients of a solver of n steps.

    sigma_scale, state_coef: n numbers. cond_coef, uncond_coef: rows of 1, 2, .. n numbers; an empty uncond_coef means
    no guidance. A step whose unconditional velocity no row uses is not guided and costs one model call
    (Kynkaanniemi et al., arXiv 2404.07724).
    """

    sigma_scale: tuple[float, ...]
    state_coef: tuple[float, ...]
    cond_coef: tuple[tuple[float, ...], ...]
    uncond_coef: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.sigma_scale)
        if (
            not 1 <= n <= _MOST_STEPS
            or len(self.state_coef) != n
            or len(self.cond_coef) != n
            or len(self.uncond_coef) not in (0, n)
        ):
            raise ScheduleError(
                f"a solver needs 1 to {_MOST_STEPS} steps and coefficients for each; this one has {n} steps"
            )
        for i, row in enumerate((*self.cond_coef, *self.uncond_coef)):
            if len(row) != i % n + 1:
                raise ScheduleError(f"step {i % n + 1} of the solver has {len(row)} coefficients; it needs {i % n + 1}")
        if not all(math.isfinite(value) for value in self.coefficients()):
            raise ScheduleError("a coefficient of the solver is not a finite number; calibrate or train again")
        low, high = _SIGMA_SCALES
        if not all(low <= scale <= high for scale in self.sigma_scale):
            raise ScheduleError("the solver shows the model sigmas far from its own; calibrate or train again")

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return len(self.sigma_scale)

    @property
    def nfe(self) -> int:
        """Model calls per picture."""
        return self.steps + sum(self.guided_steps)

    @cached_property
    def guided_steps(self) -> tuple[bool, ...]:
        """Whether each step is guided."""
        return tuple(any(row[j] != 0 for row in self.uncond_coef[j:]) for j in range(self.steps))

    def coefficients(self) -> Iterator[float]:
        """Yield every number."""
        yield from (*self.sigma_scale, *self.state_coef)
        for row in (*self.cond_coef, *self.uncond_coef):
            yield from row

    def step(
        self, i: int, width: float, x: Tensor, conds: Sequence[Tensor], unconds: Sequence[Tensor | None]
    ) -> Tensor:
        """Return the state after step i.

        Args:
            i: the step, 0-based.
            width: sigma_{i+1} - sigma_i.
            x: the state before the step.
            conds, unconds: the velocities of steps 0 .. i.
        """
        out = x * self.state_coef[i]
        for j, weight in enumerate(self.cond_coef[i]):
            out = out + conds[j] * (width * weight)
        for weight, uncond in zip(self.uncond_coef[i] if self.uncond_coef else (), unconds, strict=False):
            if uncond is not None:
                out = out + uncond * (width * weight)
        return out

    def dumps(self) -> str:
        """Return the solver as JSON."""
        return json.dumps({name: getattr(self, name) for name in _NAMES_IN_FORMAT_1})

    @staticmethod
    def loads(text: str) -> Solver:
        """Read what `dumps` wrote, also with the names of format 1. Raises ScheduleError for anything else."""
        try:
            found = json.loads(text)
            names = _NAMES_IN_FORMAT_1 if "told" in found else {name: name for name in _NAMES_IN_FORMAT_1}
            scales, states = (
                tuple(float(value) for value in found[names[name]]) for name in ("sigma_scale", "state_coef")
            )
            conds, unconds = (
                tuple(tuple(float(value) for value in row) for row in found[names[name]])
                for name in ("cond_coef", "uncond_coef")
            )
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ScheduleError(f"the solver {text[:40]!r} cannot be read; it was edited or damaged") from error
        return Solver(scales, states, conds, unconds)


def guided_solver(sigmas: Sequence[float], guidance: float | Sequence[float], coefficient: float = 0.0) -> Solver:
    """Return classifier-free guidance and a share of the second-order correction as a Solver.

    Args:
        sigmas: n + 1 noise levels.
        guidance: one scale for all steps, or one for each. 1 makes a step of one model call.
        coefficient: as in `samplers.multistep`.
    """
    widths = [after - before for before, after in itertools.pairwise(sigmas)]
    n = len(widths)
    scales = [float(guidance)] * n if isinstance(guidance, (int, float)) else [float(scale) for scale in guidance]
    if len(scales) != n:
        raise ScheduleError(
            f"{len(scales)} guidance scales were given for {n} steps; give one for each, or one for all"
        )
    rows: list[tuple[float, ...]] = [(1.0,)]
    for i in range(1, n):
        correction = coefficient * widths[i] / (2 * widths[i - 1])
        rows.append((*(0.0,) * (i - 1), -correction, 1 + correction))
    cond = tuple(tuple(weight * scale for weight, scale in zip(row, scales, strict=False)) for row in rows)
    uncond = tuple(tuple(weight * (1 - scale) for weight, scale in zip(row, scales, strict=False)) for row in rows)
    return Solver((1.0,) * n, (1.0,) * n, cond, () if all(scale == 1 for scale in scales) else uncond)


def plan_solver(plan: StepPlan, sigmas: Sequence[float]) -> tuple[tuple[float, ...], Solver]:
    """Return the plan's own sigmas, out of the teacher's `sigmas`, and the solver that follows the plan on them."""
    own = (*(sigmas[step] for step in plan.steps), sigmas[-1])
    return own, guided_solver(own, plan.scales, plan.coefficient)


def solve(
    solver: Solver,
    sigmas: Sequence[float],
    velocities: SolverVelocity,
    x: Tensor,
    callback: Callback | None = None,
) -> Tensor:
    """Sample with a Solver: from x (B, ...) at sigmas[0] to the data at sigmas[-1].

    Args:
        callback: callback(step, x, sigma as the model sees it) runs before the model calls of each step.

    Raises:
        ScheduleError: if `sigmas` have another number of steps than the solver.
    """
    check_steps(solver, sigmas)
    conds: list[Tensor] = []
    unconds: list[Tensor | None] = []
    for i, scale in enumerate(solver.sigma_scale):
        shown = sigmas[i] * scale
        if callback is not None:
            callback(i, x, shown)
        cond, uncond = velocities(x, shown, solver.guided_steps[i])
        conds.append(cond)
        unconds.append(uncond)
        x = solver.step(i, sigmas[i + 1] - sigmas[i], x, conds, unconds)
    return x


def check_steps(solver: Solver, sigmas: Sequence[float]) -> None:
    """Raise ScheduleError if the sigmas have another number of steps than the solver."""
    if len(sigmas) - 1 != solver.steps:
        raise ScheduleError(
            f"the solver was fitted for {solver.steps} steps, but this run has {len(sigmas) - 1}; use the steps it was "
            "fitted for"
        )
