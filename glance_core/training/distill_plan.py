"""What one distillation is to do, with nothing left to look up."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from ..sampling.cheap_teacher import CheapTeacher
from ..sampling.solver import Solver
from ..schedule.phase_schedule import PhaseSchedule, build_schedule
from ..schedule.split import FAST, SLOW, Split
from .ablation import SOLVER, Components, subsets
from .objectives import Learn, Objective
from .settings import TrainingSettings
from .trainer import Outcome


@dataclass(frozen=True)
class DistillPlan:
    """The choices of a distillation.

    rule: the teacher's sigma rule. sigmas: its T + 1 noise levels. split: the steps that the student takes.
    runs: runs of the teacher to learn from.
    teacher_cfg: the teacher's guidance. student_cfg: what to sample the pair with, if no solver has its own.
    base_cfg: what the base alone is best with on these steps.
    start: the solver that a rollout objective begins with.
    checks: held-out examples for the ablation, 0 to keep everything untested. keep_all: test, but keep everything.
    cheap_teacher: known to be close enough; None to measure.
    """

    objective: Objective
    fold_guidance: bool
    rule: str
    sigmas: tuple[float, ...]
    split: Split
    runs: int
    teacher_cfg: float
    student_cfg: float
    base_cfg: float
    settings: TrainingSettings
    start: Solver | None = None
    learn: str = Learn.BOTH
    checks: int = 8
    keep_all: bool = False
    cheap_teacher: CheapTeacher | None = None

    @cached_property
    def schedule(self) -> PhaseSchedule:
        """The student's sigmas and phases."""
        return build_schedule(self.sigmas, self.split)

    @property
    def teacher_steps(self) -> int:
        """How many steps the teacher takes."""
        return len(self.sigmas) - 1

    @property
    def visited_steps(self) -> tuple[int, ...] | None:
        """The steps that a given cheap teacher takes; None if it takes all or is still to be measured."""
        return self.cheap_teacher.with_steps(self.split.steps) if self.cheap_teacher else None

    @property
    def train_cfg(self) -> float:
        """The guidance inside the student while it trains.

        The paper's loss knows none, and a solver combines both velocities itself.
        """
        if self.objective is Objective.FLOW_MATCHING or self.objective.is_rollout:
            return 1.0
        return self.student_cfg

    def sample_cfg(self, outcome: Outcome) -> float:
        """Return the guidance to sample an outcome with, if it has no solver. Zero adapters leave the base."""
        return self.student_cfg if outcome.has_effect else self.base_cfg

    @property
    def training_work(self) -> int:
        """Training steps of the whole run."""
        return self.settings.steps * (1 if self.objective.is_rollout else 2)

    @property
    def teacher_work(self) -> int:
        """Teacher steps to learn from, over all runs. A cheap teacher that is measured later may need fewer."""
        return 0 if self.objective is Objective.FLOW_MATCHING else self.runs * self._teacher_calls

    @property
    def _teacher_calls(self) -> int:
        return len(self.visited_steps) if self.visited_steps else self.teacher_steps

    @property
    def check_work(self) -> int:
        """Steps of the ablation: the teacher's, and the student's with each subset of components."""
        components: Components = (SLOW, FAST)
        if self.objective.is_rollout and self.learn != Learn.ADAPTERS:
            components = (SLOW, FAST, SOLVER)
        return self.checks * (self._teacher_calls + len(subsets(components, self.keep_all)) * self.schedule.steps)

    @property
    def work(self) -> int:
        """All steps that a progress bar counts."""
        return self.teacher_work + self.training_work + self.check_work

    def teacher_key(self) -> dict[str, Any]:
        """Return what determines the teacher's trajectories, beside model and data."""
        return {
            "sigma_rule": self.rule,
            "teacher_steps": str(self.split),
            "visited_steps": list(self.visited_steps) if self.visited_steps else None,
            "sigmas": list(self.sigmas),
            "cfg": self.teacher_cfg,
            "runs": self.runs,
            "seed": self.settings.seed,
        }

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must share, beside model, data and training settings."""
        return {
            **self.teacher_key(),
            "objective": str(self.objective),
            "fold_guidance": self.fold_guidance,
            "student_cfg": self.student_cfg,
            "solver": self.start.dumps() if self.start else None,
        }

    def describe(self) -> dict[str, Any]:
        """Return everything that tells this pair from another of the same model and data."""
        return {**self.identity(), **asdict(replace(self.settings, save_every=0)), "learn": str(self.learn)}
