"""The best few steps of a model without training: which teacher steps to walk, under which guidance, with which coefficients.

A handful of teacher runs is all it needs, and forwards alone. Half of the rows choose, the other half judge what was chosen: ladders,
guidance and the second-order share by coordinate search from the usual walks; then `solver.fitted` on the winner, kept only if rows that
it was not fitted on come nearer to the teacher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import ScheduleError
from .objectives import Progressed, RowVelocity, rollout
from .schedule import Split, default_boundary
from .solver import Solver, Velocities, fitted, guided, in_batches, solve
from .teacher import Nearness, surrogate
from .verdict import Verdict

RIDGES = (0.1, 0.01, 0.001)
_MOVES = (-3, -1, 1, 3)
SEARCHED = 0.85  # of the seconds; the rest is for the fit and for judging


@dataclass(frozen=True)
class Settings:
    """What a sampler needs: the kind of ladder, the teacher steps, and the solver fitted for them. guidance: the teacher's."""

    kind: str
    split: Split
    solver: Solver
    guidance: float


@dataclass(frozen=True)
class Walk:
    """A walk of the base: teacher steps (0-based), guidance (1: none), share of the second-order correction; weights: of each step's
    guidance, what it adds being multiplied by them (none: all 1)."""

    steps: tuple[int, ...]
    guidance: float
    coefficient: float = 0.0
    weights: tuple[float, ...] = ()

    @property
    def scales(self) -> tuple[float, ...]:
        """The guidance of each step."""
        return tuple(1 + (self.guidance - 1) * weight for weight in self.weights or (1.0,) * len(self.steps))

    def on(self, ladder: Sequence[float]) -> tuple[tuple[float, ...], Solver]:
        """Its sigmas, and the solver that walks them."""
        sigmas = (*(ladder[step] for step in self.steps), ladder[-1])
        return sigmas, guided(sigmas, self.scales, self.coefficient)


@dataclass(frozen=True)
class Calibration:
    """What was found. verdict: solver beside the uniform walk under the teacher's guidance, on rows that chose nothing; plain: PSNR there
    without the fitted coefficients; tried: (walk, dB on the choosing rows) in the order of the search; teacher: the steps it was taught by."""

    split: Split
    walk: Walk
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
    forwards: per picture, the teacher's guidance 1 or not. seconds: after which the search ends, the teacher's runs included. boundary:
    0-based teacher step from which Fast answers. Raises ScheduleError for what leaves nothing to choose.
    """
    began = time.monotonic()
    if len(noise) < 4:
        raise ScheduleError(f"{len(noise)} teacher runs cannot both choose and judge; give at least 4")
    teacher_steps = len(ladder) - 1
    per_step = 1 if guidance == 1 else 2
    count = forwards // per_step
    if forwards % per_step or not 2 <= count <= teacher_steps // 2:
        raise ScheduleError(
            f"{forwards} forwards are no walk for this teacher: each step takes {per_step}; give {2 * per_step} to {teacher_steps // 2 * per_step}"
            f"{' in twos' if per_step == 2 else ''}"
        )
    work = Calibrator(velocity, noise, ladder, nearness, batch, tick)
    work.teach(guided_by(guidance))
    rows = torch.arange(len(noise))
    choosing, judging = rows[0::2], rows[1::2]
    tried: dict[Walk, float] = {}

    def known(walk: Walk) -> float:
        if walk not in tried:
            tried[walk] = float(work.near(*walk.on(ladder), choosing).mean())
        return tried[walk]

    uniform = Walk(even_steps(count, teacher_steps), guidance)
    best = max(_starts(uniform, teacher_steps), key=known)
    improved = True
    until = began + SEARCHED * seconds
    while improved and time.monotonic() < until:
        improved = False
        for other in _neighbours(best, teacher_steps):
            if time.monotonic() >= until:
                break
            if known(other) > known(best):
                best, improved = other, True
    sigmas, plain = best.on(ladder)
    solver = _fitted_if_better(work, best, choosing, plain)
    start, straight = uniform.on(ladder)
    plainly, evenly = work.near(sigmas, plain, judging), work.near(start, straight, judging)
    near = plainly if solver is plain else work.near(sigmas, solver, judging)
    after = boundary if boundary is not None else default_boundary(teacher_steps)
    slow = min(max(1, sum(step < after for step in best.steps)), count - 1)
    return Calibration(
        Split(best.steps[:slow], best.steps[slow:], teacher_steps),
        best,
        solver,
        Verdict(near, evenly, f"{len(judging)} runs that chose nothing"),
        plainly,
        tuple(tried.items()),
        str(work.surrogate),
        time.monotonic() - began,
    )


def even_steps(count: int, teacher_steps: int) -> tuple[int, ...]:
    """So many teacher steps (0-based), evenly spread from the first."""
    return tuple(round(i * teacher_steps / count) for i in range(count))


def _starts(uniform: Walk, teacher_steps: int) -> Iterator[Walk]:
    """The usual walks: even steps and steps that grow, under the teacher's guidance and less."""
    count = len(uniform.steps)
    growing = tuple(round(teacher_steps * (0.6 * i / count + 0.3 * (i / count) ** 2)) for i in range(count))
    ladders = [uniform.steps] + ([growing] if len(set(growing)) == count else [])
    for steps in ladders:
        for share in (1.0, 0.8, 0.6) if uniform.guidance != 1 else (1.0,):
            yield Walk(steps, 1 + share * (uniform.guidance - 1), 0.15)
    yield uniform


def _neighbours(walk: Walk, teacher_steps: int) -> Iterator[Walk]:
    """One knob changed: guidance by an eighth of what it adds, the second-order share, a teacher step by 1 or 3, one step's guidance."""
    if walk.guidance != 1:
        for factor in (0.875, 1.125, 0.75, 1.25):
            yield replace(walk, guidance=1 + (walk.guidance - 1) * factor)
    for change in (-0.15, 0.15, -0.05, 0.05):
        yield replace(walk, coefficient=round(walk.coefficient + change, 2))
    for i in range(1, len(walk.steps)):
        for move in _MOVES:
            steps = (*walk.steps[:i], walk.steps[i] + move, *walk.steps[i + 1 :])
            if all(a < b for a, b in zip(steps, (*steps[1:], teacher_steps), strict=True)):
                yield replace(walk, steps=steps)
    if walk.guidance != 1:
        weights = walk.weights or (1.0,) * len(walk.steps)
        for i, factor in ((i, factor) for i in range(len(weights)) for factor in (0.85, 1.15)):
            yield replace(walk, weights=(*weights[:i], weights[i] * factor, *weights[i + 1 :]))


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
