"""Few-step solvers with coefficients of their own: a guidance for each step, earlier velocities taken up again, and what the model is told.

    x_{i+1} = keep_i x_i + h_i sum over j <= i of (cond_ij c_j + free_ij u_j),    h_i = sigma_{i+1} - sigma_i

c_j and u_j are the model's velocities with and without the prompt, at step j and at the noise level told_j sigma_j. Euler under
classifier-free guidance w is one of them (cond_ii = w, free_ii = 1 - w), and so is every linear multistep rule. A few numbers per step lift
few steps a long way without a weight being trained (compare DC-Solver, arXiv 2409.03755, and DPM-Solver-v3, arXiv 2310.13268).

`fitted` finds them in closed form: the student walks, and at each step least squares choose the numbers that bring it nearest to the
teacher's own states. That takes forwards alone and no gradients, so a model of any size will do.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .errors import ScheduleError
from .objectives import RowVelocity, both
from .sampling import Callback

# velocities(x, sigma, guided): noise - data with the prompt, and without it; the second is None at a step that is not guided.
Velocities = Callable[[Tensor, float, bool], tuple[Tensor, Tensor | None]]
_MANY = 100


@dataclass(frozen=True)
class Solver:
    """told and keep (n numbers), cond and free (rows of 1, 2, .. n; free empty: no guidance, one forward a step), for ladders of n steps.

    A step whose velocity without the prompt no row of free has a coefficient for is not guided, and costs one forward (compare
    Kynkaanniemi et al., "Applying guidance in a limited interval", arXiv 2404.07724).
    """

    told: tuple[float, ...]
    keep: tuple[float, ...]
    cond: tuple[tuple[float, ...], ...]
    free: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.told)
        if not 1 <= n <= _MANY or len(self.keep) != n or len(self.cond) != n or len(self.free) not in (0, n):
            raise ScheduleError(
                f"a solver of {n} steps must have as many numbers to tell and to keep, rows of coefficients, and 1 to {_MANY} of each"
            )
        for i, row in enumerate((*self.cond, *self.free)):
            if len(row) != i % n + 1:
                raise ScheduleError(f"step {i % n + 1} of the solver has {len(row)} coefficients; it must have {i % n + 1}")
        if not all(math.isfinite(value) for value in self.numbers()):
            raise ScheduleError("the solver has a coefficient that is no finite number; calibrate again")
        if not all(0.5 <= share <= 2 for share in self.told):
            raise ScheduleError("the solver tells the model noise levels far from the ladder's; calibrate again")

    @property
    def steps(self) -> int:
        return len(self.told)

    @property
    def forwards(self) -> int:
        """Model evaluations per picture."""
        return self.steps + sum(self.guides)

    @cached_property
    def guides(self) -> tuple[bool, ...]:
        """Which steps are guided."""
        return tuple(any(row[j] != 0 for row in self.free[j:]) for j in range(self.steps))

    def numbers(self) -> Iterator[float]:
        yield from (*self.told, *self.keep)
        for row in (*self.cond, *self.free):
            yield from row

    def step(self, i: int, width: float, x: Tensor, cond: Sequence[Tensor], free: Sequence[Tensor | None]) -> Tensor:
        """The state after step i (0-based) of this width (sigma_{i+1} - sigma_i), from the state before it and the velocities until then."""
        out = x * self.keep[i]
        for j, weight in enumerate(self.cond[i]):
            out = out + cond[j] * (width * weight)
        for weight, other in zip(self.free[i] if self.free else (), free, strict=False):
            if other is not None:
                out = out + other * (width * weight)
        return out

    def dumps(self) -> str:
        return json.dumps({"told": self.told, "keep": self.keep, "cond": self.cond, "free": self.free})

    @staticmethod
    def loads(text: str) -> Solver:
        """Raises ScheduleError for what `dumps` did not write."""
        try:
            found = json.loads(text)
            told, keep = (tuple(float(value) for value in found[name]) for name in ("told", "keep"))
            cond, free = (tuple(tuple(float(value) for value in row) for row in found[name]) for name in ("cond", "free"))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ScheduleError(f"the solver {text[:40]!r} cannot be read; it was edited or damaged") from error
        return Solver(told, keep, cond, free)


def guided(sigmas: Sequence[float], guidance: float | Sequence[float], coefficient: float = 0.0) -> Solver:
    """The usual walk of a ladder (n + 1 sigmas) as a Solver: classifier-free guidance, one for all steps or one for each, and a share of
    the second-order correction, as in `sampling.multistep`. guidance 1: a step of one forward."""
    widths = [after - before for before, after in itertools.pairwise(sigmas)]
    n = len(widths)
    scales = [float(guidance)] * n if isinstance(guidance, (int, float)) else [float(scale) for scale in guidance]
    if len(scales) != n:
        raise ScheduleError(f"{len(scales)} guidance scales were given for {n} steps; give one for each, or one for all")
    rows: list[tuple[float, ...]] = [(1.0,)]
    for i in range(1, n):
        again = coefficient * widths[i] / (2 * widths[i - 1])
        rows.append((*(0.0,) * (i - 1), -again, 1 + again))
    cond = tuple(tuple(share * scale for share, scale in zip(row, scales, strict=False)) for row in rows)
    free = tuple(tuple(share * (1 - scale) for share, scale in zip(row, scales, strict=False)) for row in rows)
    return Solver((1.0,) * n, (1.0,) * n, cond, () if all(scale == 1 for scale in scales) else free)


def solve(solver: Solver, sigmas: Sequence[float], velocities: Velocities, x: Tensor, callback: Callback | None = None) -> Tensor:
    """The data at the ladder's end from x (B, ...) at its start. callback(step, x, told sigma) is called before each step's forwards.

    Raises ScheduleError if the ladder has another number of steps than the solver.
    """
    refuse_other_steps(solver, sigmas)
    cond: list[Tensor] = []
    free: list[Tensor | None] = []
    for i, share in enumerate(solver.told):
        told = sigmas[i] * share
        if callback is not None:
            callback(i, x, told)
        with_prompt, without = velocities(x, told, solver.guides[i])
        cond.append(with_prompt)
        free.append(without)
        x = solver.step(i, sigmas[i + 1] - sigmas[i], x, cond, free)
    return x


def refuse_other_steps(solver: Solver, sigmas: Sequence[float]) -> None:
    if len(sigmas) - 1 != solver.steps:
        raise ScheduleError(
            f"the solver was fitted for {solver.steps} steps, this ladder has {len(sigmas) - 1}; walk the steps it was fitted for"
        )


@torch.no_grad()
def fitted(
    start: Solver, sigmas: Sequence[float], velocities: Velocities, x: Tensor, targets: Sequence[Tensor], ridge: float = 1e-2
) -> tuple[Solver, Tensor]:
    """A solver with new numbers to keep and coefficients, and where it leads: at each step those that bring x (rows, ...) nearest to the
    next of `targets`, the teacher's states after each step. They are pulled to those of `start`, most where the rows leave them open.

    ridge: of the pull, as a share of each column's own square. Source: Tikhonov regularisation about a prior.
    """
    refuse_other_steps(start, sigmas)
    if len(targets) != start.steps:
        raise ScheduleError(f"{len(targets)} states of the teacher were given for a solver of {start.steps} steps; give one for each")
    solver = start
    cond: list[Tensor] = []
    free: list[Tensor | None] = []
    for i, target in enumerate(targets):
        with_prompt, without = velocities(x, sigmas[i] * start.told[i], start.guides[i])
        cond.append(with_prompt)
        free.append(without)
        width = sigmas[i + 1] - sigmas[i]
        columns = [x, *(width * column for column in (*cond, *(other for other in free if other is not None)))]
        left = target - solver.step(i, width, x, cond, free)
        gram = torch.tensor([[_product(a, b) for b in columns] for a in columns], dtype=torch.float64)
        pull = torch.tensor([_product(a, left) for a in columns], dtype=torch.float64)
        scale = gram.diagonal().sqrt().clamp(min=1e-30)
        scaled = gram / scale[:, None] / scale + ridge * torch.eye(len(scale), dtype=torch.float64)
        change = (torch.linalg.lstsq(scaled, pull / scale, driver="gelsd").solution / scale).tolist()  # columns may be equal, or zero
        solver = _changed(solver, i, change)
        x = solver.step(i, width, x, cond, free)
    return solver, x


def in_batches(velocity: RowVelocity, rows: Tensor, batch: int, tick: Callable[[int], None] | None = None) -> Velocities:
    """Those of these rows for `solve` and `fitted`, from one that has no guidance; tick(pictures) after every batch."""
    at_once = both(velocity)

    def velocities(x: Tensor, sigma: float, guided: bool) -> tuple[Tensor, Tensor | None]:
        cond, free = [], []
        for part, own in zip(torch.split(x, batch), torch.split(rows, batch), strict=True):
            one, other = at_once(part.clone(), part.new_full((len(part),), sigma), own, guided)  # a model may write into its input
            cond.append(one)
            if other is not None:
                free.append(other)
            if tick:
                tick(len(own))
        return torch.cat(cond), torch.cat(free) if free else None

    return velocities


def _product(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _changed(solver: Solver, i: int, change: Sequence[float]) -> Solver:
    """The solver with step i's numbers moved: what is kept, then the coefficients with the prompt, then those without at guided steps."""

    def moved(rows: tuple[tuple[float, ...], ...], by: Sequence[float]) -> tuple[tuple[float, ...], ...]:
        return (*rows[:i], tuple(value + more for value, more in zip(rows[i], by, strict=True)), *rows[i + 1 :])

    keep = (*solver.keep[:i], solver.keep[i] + change[0], *solver.keep[i + 1 :])
    left = iter(change[i + 2 :])
    without = [next(left) if guided else 0.0 for guided in solver.guides[: i + 1]]
    return replace(solver, keep=keep, cond=moved(solver.cond, change[1 : i + 2]), free=moved(solver.free, without) if solver.free else ())
