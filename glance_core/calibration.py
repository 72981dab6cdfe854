"""The best few steps of a model without training: which teacher steps to walk, under which guidance, with which coefficients.

A handful of teacher runs is all it needs, and forwards alone. Half of the rows choose, the other half judge what was chosen: ladders,
guidance and the second-order share by coordinate search from the usual walks, the most promising kind first, a walk being nearer
than another only by more than the standard error of their difference; then `solver.fitted` on the winner, kept only if rows that it was
not fitted on come nearer to the teacher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ScheduleError
from .metrics import paired
from .objectives import Progressed, RowVelocity, rollout
from .schedule import Split, default_boundary
from .solver import Solver, Velocities, fitted, in_batches, solve
from .teacher import Nearness, surrogate
from .verdict import Verdict
from .walks import Walk, climb, even_walk, kinds, nearest, refuse_forwards, starts

RIDGES = (0.1, 0.01, 0.001)
SEARCHED = 0.85  # of the seconds; the rest is for the fit and for judging


@dataclass(frozen=True)
class Settings:
    """What a sampler needs: the kind of ladder, the teacher steps, and the solver fitted for them. guidance: the teacher's."""

    kind: str
    split: Split
    solver: Solver
    guidance: float


@dataclass(frozen=True)
class Calibration:
    """What was found. verdict: solver beside the `even` walk under the teacher's guidance, on rows that chose nothing; plain: PSNR there
    without the fitted coefficients; tried: (walk, mean dB on the choosing rows) in the order of the search; teacher: the steps it was taught by."""

    split: Split
    walk: Walk
    even: Walk
    solver: Solver
    verdict: Verdict
    plain: Tensor
    tried: tuple[tuple[Walk, float], ...]
    teacher: str
    seconds: float


class Calibrator:
    """The teacher's runs of some rows, and the error of any walk beside them."""

    def __init__(
        self, velocity: RowVelocity, noise: Tensor, ladder: Sequence[float], nearness: Nearness, batch: int, tick: Progressed | None = None
    ):
        self.ladder, self.noise, self.nearness, self.batch, self.tick = tuple(ladder), noise, nearness, batch, tick
        self.velocity = velocity

    def teach(self, velocity: RowVelocity) -> None:
        """Walk the teacher under its guidance, by fewer steps where that is near enough."""
        self.taught_by = velocity
        self.surrogate = surrogate(velocity, self.noise, self.ladder, self.nearness, self.batch, self.tick)
        self.kept = self.surrogate.visited or tuple(range(len(self.ladder) - 1))
        self.states = self._teacher(self.kept, torch.arange(len(self.noise)))

    def _teacher(self, steps: Sequence[int], rows: Tensor) -> Tensor:
        """Its states (steps + 1, rows, ...) before these steps and at the end."""

        def of(x: Tensor, sigma: Tensor, at: Tensor) -> Tensor:
            return self.taught_by(x, sigma, rows[at])

        return rollout(of, self.noise[rows], self.ladder, steps, self.batch, self.tick, self.surrogate.and_steps(steps)).states

    def at(self, rows: Tensor) -> Velocities:
        """Those of these rows, in batches; a tick is a picture's step."""
        return in_batches(self.velocity, rows, self.batch, self.tick)

    @torch.no_grad()
    def near(self, sigmas: Sequence[float], solver: Solver, rows: Tensor) -> Tensor:
        """PSNR (rows,) of a solver's results to the teacher's."""
        return self.nearness(solve(solver, sigmas, self.at(rows), self.noise[rows]), self.states[-1, rows])

    def targets(self, walk: Walk, rows: Tensor) -> Tensor:
        """The teacher's states (n, rows, ...) after each of the walk's steps."""
        if set(walk.steps) <= set(self.kept):
            return self.states[[*(self.kept.index(step) for step in walk.steps[1:]), -1]][:, rows]
        return self._teacher(walk.steps, rows)[1:]

    def fit(self, walk: Walk, ridge: float, rows: Tensor, targets: Tensor) -> Solver:
        """The walk with coefficients fitted on these rows and the teacher's states of them."""
        sigmas, start = walk.on(self.ladder)
        return fitted(start, sigmas, self.at(rows), self.noise[rows], list(targets), ridge)[0]


def calibrate(
    velocity: RowVelocity,
    guided_by: Callable[[float], RowVelocity],
    noise: Tensor,
    ladder: Sequence[float],
    forwards: int,
    guidance: float,
    nearness: Nearness,
    seconds: float = 60.0,
    batch: int = 64,
    tick: Progressed | None = None,
    boundary: int | None = None,
) -> Calibration:
    """velocity: without guidance; guided_by(w): under it, for the teacher; noise (n, ...), n at least 4, starts the ladder (T + 1 sigmas);
    forwards: per picture; a step under guidance takes two. seconds: after which the search ends, the teacher's runs included. boundary:
    0-based teacher step from which Fast answers. Raises ScheduleError for what leaves nothing to choose.
    """
    began = time.monotonic()
    if len(noise) < 4:
        raise ScheduleError(f"{len(noise)} teacher runs cannot both choose and judge; give at least 4")
    teacher_steps = len(ladder) - 1
    refuse_forwards(forwards, guidance, teacher_steps)
    work = Calibrator(velocity, noise, ladder, nearness, batch, tick)
    work.teach(guided_by(guidance))
    rows = torch.arange(len(noise))
    choosing, judging = rows[0::2], rows[1::2]
    tried: dict[Walk, Tensor] = {}

    def known(walk: Walk) -> Tensor:
        if walk not in tried:
            tried[walk] = work.near(*walk.on(ladder), choosing)
        return tried[walk]

    def gain(walk: Walk, other: Walk) -> float:
        """Less a standard error: any gain at all led to walks that were good on these rows alone."""
        difference = paired(known(walk), known(other))
        return difference.value - difference.error

    uniform = even_walk(forwards, guidance, teacher_steps)
    until = began + SEARCHED * seconds
    begun = [nearest(starts(*kind, guidance, teacher_steps), gain) for kind in kinds(forwards, guidance, teacher_steps)]
    begun.sort(key=lambda walk: -gain(walk, uniform))
    climbed = [climb(walk, gain, teacher_steps, lambda: time.monotonic() < until) for walk in begun]
    best = nearest((uniform, *climbed), gain)
    sigmas, plain = best.on(ladder)
    solver = _fitted_if_better(work, best, choosing, plain)
    start, straight = uniform.on(ladder)
    plainly, evenly = work.near(sigmas, plain, judging), work.near(start, straight, judging)
    near = plainly if solver is plain else work.near(sigmas, solver, judging)
    after = boundary if boundary is not None else default_boundary(teacher_steps)
    slow = min(max(1, sum(step < after for step in best.steps)), len(best.steps) - 1)
    return Calibration(
        Split(best.steps[:slow], best.steps[slow:], teacher_steps),
        best,
        uniform,
        solver,
        Verdict(near, evenly, f"{len(judging)} runs that chose nothing"),
        plainly,
        tuple((walk, float(column.mean())) for walk, column in tried.items()),
        str(work.surrogate),
        time.monotonic() - began,
    )


def _fitted_if_better(work: Calibrator, walk: Walk, choosing: Tensor, plain: Solver) -> Solver:
    """Fitted coefficients, if those of one half of the choosing rows bring the other half nearer to the teacher; of the best ridge."""
    fitting, checking = choosing[0::2], choosing[1::2]
    sigmas, _ = walk.on(work.ladder)
    before = work.near(sigmas, plain, checking)
    targets = work.targets(walk, choosing)
    fits = {ridge: work.fit(walk, ridge, fitting, targets[:, 0::2]) for ridge in RIDGES}
    gains = {ridge: float((work.near(sigmas, solver, checking) - before).mean()) for ridge, solver in fits.items()}
    ridge = max(gains, key=gains.__getitem__)
    return work.fit(walk, ridge, choosing, targets) if gains[ridge] > 0 else plain
