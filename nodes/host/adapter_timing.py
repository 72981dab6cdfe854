"""When an adapter on a MODEL answers, as strengths by noise level that a run's own sigmas decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.schedule.phase_schedule import threshold_at
from ...glance_core.schedule.sigmas import TEACHER_STEPS
from ...glance_core.schedule.split import SLOW, default_boundary
from ...glance_core.schedule.strengths import StrengthCurve, above, below
from .model_sigmas import AUTO, model_sigmas
from .sampling_run import schedule_of


@dataclass(frozen=True)
class RunStart:
    """A sampling run that is about to start. shape: of its latent."""

    patcher: Any
    sigmas: torch.Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PairBoundary:
    """Where Slow ends and Fast begins. partial: the run may lack one of them."""

    threshold: float
    partial: bool


@dataclass(frozen=True)
class GlancePair:
    """A pair on a MODEL. metadata: what both files say together."""

    metadata: PairMetadata

    @property
    def boundary_step(self) -> int:
        """0-based teacher step where Fast takes over, unless the sigmas of a run say otherwise."""
        if self.metadata.split:
            return self.metadata.split.fast[0]
        return default_boundary(self.metadata.teacher_steps or TEACHER_STEPS)

    def boundary(self, start: RunStart) -> PairBoundary:
        """Return where this run switches: as its sigmas say, or at the teacher's noise level."""
        schedule = schedule_of(start.sigmas)
        if schedule is not None:
            return PairBoundary(schedule.threshold, schedule.partial)
        teacher = model_sigmas(start.patcher, start.shape, AUTO, self.metadata)
        return PairBoundary(threshold_at(teacher.values, self.boundary_step), partial=True)


@dataclass(frozen=True)
class PairPhase:
    """When one half of a pair answers."""

    pair: GlancePair
    phase: str
    strength: float

    def curve(self, boundary: PairBoundary) -> StrengthCurve:
        """Return the strength by noise level in a run where the pair switches here."""
        side = above if self.phase == SLOW else below
        return side(boundary.threshold, self.strength)


class LoraTiming(Protocol):
    """When a LoRA that belongs to no pair answers."""

    @property
    def acts(self) -> bool:
        """Whether it ever has a strength."""
        ...

    @property
    def counts_steps(self) -> bool:
        """Whether it depends on how many steps a run has."""
        ...

    def curve(self, start: RunStart) -> StrengthCurve:
        """Return the strength by noise level in this run. Raises ScheduleError if the run does not tell it."""
        ...

    def told(self, model: Any) -> str:
        """Return it as text for a report."""
        ...
