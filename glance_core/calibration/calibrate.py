"""Find the best few steps of a model without training: teacher steps, guidance, and solver coefficients.

It needs a handful of teacher runs and model calls, but no gradients. Half of the runs choose and the other half judge.
First a coordinate search over step plans starts from the usual ones, the most promising kind first. One plan counts as
closer than another only if it gains more than the standard error of their difference. Then the winner's coefficients
are fitted, and the fit is kept only if runs that it was not fitted on come closer to the teacher.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ScheduleError
from ..evaluation.comparison import PairedComparison
from ..evaluation.metrics import paired
from ..sampling.cheap_teacher import Closeness, find_cheap_teacher
from ..sampling.rollout import Teacher, rollout
from ..sampling.solver import Solver, plan_solver, solve
from ..sampling.solver_fit import fit_solver
from ..sampling.velocity import RowVelocity, in_batches
from ..schedule.plan import StepPlan, check_nfe, even_plan
from ..schedule.split import Split, default_boundary
from .search import best_plan, climb, starting_plans, step_counts

RIDGES = (0.1, 0.01, 0.001)
SEARCH_SHARE = 0.85  # of the seconds; the rest is for fitting and judging
_FEWEST_RUNS = 4


@dataclass(frozen=True)
class Settings:
    """What a sampler needs: the sigma rule, the teacher steps, and the solver for them.

    guidance: the teacher's. sigmas: the teacher's whole list, if the rule is `list`.
    """

    rule: str
    split: Split
    solver: Solver
    guidance: float
    sigmas: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Budget:
    """What a calibration may spend.

    nfe: model calls per picture; a guided step takes two. guidance: the teacher's. seconds: when the search stops,
    teacher runs included. boundary: 0-based teacher step from which Fast answers; by default the paper's.
    """

    nfe: int
    guidance: float
    seconds: float = 60.0
    boundary: int | None = None


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    plan: the chosen steps. even: even steps under the teacher's guidance. solver: with fitted coefficients, if they
    help. comparison: solver and `even` on runs that chose nothing. plain_psnr: there, without the fit.
    tried: (plan, mean PSNR in dB on the choosing runs), in order. teacher: the steps the teacher took.
    """

    split: Split
    plan: StepPlan
    even: StepPlan
    solver: Solver
    comparison: PairedComparison
    plain_psnr: Tensor
    tried: tuple[tuple[StepPlan, float], ...]
    teacher: str
    seconds: float


class Calibrator:
    """The teacher's runs from `noise` (n, ...), and how close any solver comes to them."""

    def __init__(self, teacher: Teacher, velocity: RowVelocity, noise: Tensor, closeness: Closeness):
        """velocity: without guidance. Runs the teacher, with fewer steps if those are close enough."""
        self.teacher, self.velocity, self.noise, self.closeness = teacher, velocity, noise, closeness
        self.cheap = find_cheap_teacher(teacher, noise, closeness)
        self.kept_steps = self.cheap.visited_steps or tuple(range(teacher.steps))
        self.states = self._teacher_states(self.kept_steps, torch.arange(len(noise)))

    def _teacher_states(self, steps: Sequence[int], rows: Tensor) -> Tensor:
        """Return its states (steps + 1, rows, ...) before these steps and at the end."""

        def of_rows(x: Tensor, sigma: Tensor, at: Tensor) -> Tensor:
            return self.teacher.velocity(x, sigma, rows[at])

        teacher = Teacher(of_rows, self.teacher.sigmas, self.teacher.batch, self.teacher.tick)
        return rollout(teacher, self.noise[rows], steps, self.cheap.with_steps(steps)).states

    @torch.no_grad()
    def psnr(self, sigmas: Sequence[float], solver: Solver, rows: Tensor) -> Tensor:
        """Return the PSNR (rows,) of a solver's results to the teacher's."""
        velocities = in_batches(self.velocity, rows, self.teacher.batch, self.teacher.tick)
        return self.closeness(solve(solver, sigmas, velocities, self.noise[rows]), self.states[-1, rows])

    def targets(self, plan: StepPlan, rows: Tensor) -> Tensor:
        """Return the teacher's states (n, rows, ...) after each of the plan's steps."""
        if set(plan.steps) <= set(self.kept_steps):
            return self.states[[*(self.kept_steps.index(step) for step in plan.steps[1:]), -1]][:, rows]
        return self._teacher_states(plan.steps, rows)[1:]

    def fit(self, plan: StepPlan, ridge: float, rows: Tensor, targets: Tensor) -> Solver:
        """Return the plan's solver with coefficients fitted on these rows and the teacher's states of them."""
        sigmas, start = plan_solver(plan, self.teacher.sigmas)
        velocities = in_batches(self.velocity, rows, self.teacher.batch, self.teacher.tick)
        return fit_solver(start, sigmas, velocities, self.noise[rows], list(targets), ridge)[0]


@dataclass
class _Trials:
    """The plans tried so far, with their PSNR on the choosing rows."""

    work: Calibrator
    rows: Tensor
    tried: dict[StepPlan, Tensor] = field(default_factory=dict)

    def psnr(self, plan: StepPlan) -> Tensor:
        if plan not in self.tried:
            self.tried[plan] = self.work.psnr(*plan_solver(plan, self.work.teacher.sigmas), self.rows)
        return self.tried[plan]

    def gain(self, plan: StepPlan, other: StepPlan) -> float:
        """Return the mean gain less its standard error. Plans chosen by any gain were good on these rows alone."""
        difference = paired(self.psnr(plan), self.psnr(other))
        return difference.value - difference.error


def calibrate(
    teacher: Teacher, velocity: RowVelocity, noise: Tensor, closeness: Closeness, budget: Budget
) -> Calibration:
    """Find the best steps of a model for this budget.

    Args:
        teacher: the model under its guidance, on all its sigmas.
        velocity: the model without guidance.
        noise: the start of each run (n, ...); n is at least 4.

    Raises:
        ScheduleError: if there is nothing to choose from.
    """
    began = time.monotonic()
    if len(noise) < _FEWEST_RUNS:
        raise ScheduleError(f"{len(noise)} teacher runs cannot both choose and judge; use at least {_FEWEST_RUNS}")
    check_nfe(budget.nfe, budget.guidance, teacher.steps)
    work = Calibrator(teacher, velocity, noise, closeness)
    rows = torch.arange(len(noise))
    choosing, judging = rows[0::2], rows[1::2]
    even = even_plan(budget.nfe, budget.guidance, teacher.steps)
    trials = _Trials(work, choosing)
    plan = _search(trials, even, budget, until=began + SEARCH_SHARE * budget.seconds)
    sigmas, plain = plan_solver(plan, teacher.sigmas)
    solver = _fit_if_better(work, plan, choosing, plain)
    plain_psnr, even_psnr = work.psnr(sigmas, plain, judging), work.psnr(*plan_solver(even, teacher.sigmas), judging)
    found_psnr = plain_psnr if solver is plain else work.psnr(sigmas, solver, judging)
    return Calibration(
        split=_split(plan, teacher.steps, budget.boundary),
        plan=plan,
        even=even,
        solver=solver,
        comparison=PairedComparison(found_psnr, even_psnr, f"{len(judging)} runs that chose nothing"),
        plain_psnr=plain_psnr,
        tried=tuple((plan, float(column.mean())) for plan, column in trials.tried.items()),
        teacher=str(work.cheap),
        seconds=time.monotonic() - began,
    )


def _search(trials: _Trials, even: StepPlan, budget: Budget, until: float) -> StepPlan:
    """Climb from the best usual plan of each kind, the most promising kind first, until the time is over."""
    steps = trials.work.teacher.steps
    starts = [
        best_plan(starting_plans(count, guided, budget.guidance, steps), trials.gain)
        for count, guided in step_counts(budget.nfe, budget.guidance, steps)
    ]
    starts.sort(key=lambda plan: -trials.gain(plan, even))
    climbed = [climb(plan, trials.gain, steps, lambda: time.monotonic() < until) for plan in starts]
    return best_plan((even, *climbed), trials.gain)


def _fit_if_better(work: Calibrator, plan: StepPlan, choosing: Tensor, plain: Solver) -> Solver:
    """Fit on half of the choosing rows; if that helps the other half, fit on all of them, else keep `plain`."""
    fitting, checking = choosing[0::2], choosing[1::2]
    sigmas, _ = plan_solver(plan, work.teacher.sigmas)
    before = work.psnr(sigmas, plain, checking)
    targets = work.targets(plan, choosing)
    fits = {ridge: work.fit(plan, ridge, fitting, targets[:, 0::2]) for ridge in RIDGES}
    gains = {ridge: float((work.psnr(sigmas, solver, checking) - before).mean()) for ridge, solver in fits.items()}
    ridge = max(gains, key=gains.__getitem__)
    return work.fit(plan, ridge, choosing, targets) if gains[ridge] > 0 else plain


def _split(plan: StepPlan, teacher_steps: int, boundary: int | None) -> Split:
    """Return the plan's steps as a Split at the boundary; each phase has at least one."""
    first_fast = boundary if boundary is not None else default_boundary(teacher_steps)
    slow = min(max(1, sum(step < first_fast for step in plan.steps)), len(plan.steps) - 1)
    return Split(plan.steps[:slow], plan.steps[slow:], teacher_steps)
