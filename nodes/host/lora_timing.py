"""When a LoRA answers that belongs to no pair: at all noise levels, in some steps, or in a range of the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...glance_core.errors import ScheduleError
from ...glance_core.schedule.strengths import StrengthCurve, between_sigmas, by_step, in_steps, whole_run
from .adapter_timing import LoraTiming, RunStart

STEPS, SHARE, SIGMA = "steps", "share", "sigma"
_IN_THE_LOG = "of each sampling run; the log says at which noise levels"


@dataclass(frozen=True)
class WholeRun:
    """The same strength at every noise level."""

    strength: float

    counts_steps = False

    @property
    def acts(self) -> bool:
        return self.strength != 0

    def curve(self, start: RunStart) -> StrengthCurve:
        return whole_run(self.strength)

    def told(self, model: Any) -> str:
        return f"in the whole run, strength {self.strength:g}"


@dataclass(frozen=True)
class BySteps:
    """A strength for each step of the run; later steps have the last one."""

    strengths: Sequence[float]

    @property
    def acts(self) -> bool:
        return any(self.strengths)

    @property
    def counts_steps(self) -> bool:
        return len(set(self.strengths)) > 1

    def curve(self, start: RunStart) -> StrengthCurve:
        return by_step(start.sigmas.tolist(), self.strengths)

    def told(self, model: Any) -> str:
        *first, last = (f"{strength:g}" for strength in self.strengths)
        if not first:
            return f"with strength {last} in all steps"
        return f"with strength {', '.join(first)} in the first steps, then {last}, {_IN_THE_LOG}"


@dataclass(frozen=True)
class BetweenSigmas:
    """A strength from one noise level down to another."""

    start: float
    end: float
    strength: float

    counts_steps = False

    @property
    def acts(self) -> bool:
        return self.strength != 0

    def curve(self, start: RunStart) -> StrengthCurve:
        return between_sigmas(self.start, self.end, self.strength)

    def told(self, model: Any) -> str:
        return f"from sigma {self.start:g} down to {self.end:g}, strength {self.strength:g}"


@dataclass(frozen=True)
class BetweenShares:
    """A strength from one share of the model's noise schedule to another, as ComfyUI counts `start_percent`: 0 to 1."""

    start: float
    end: float
    strength: float

    counts_steps = False

    @property
    def acts(self) -> bool:
        return self.strength != 0

    def curve(self, start: RunStart) -> StrengthCurve:
        return between_sigmas(*self._sigmas(start.patcher), self.strength)

    def told(self, model: Any) -> str:
        first, last = self._sigmas(model)
        highest = float(model.get_model_object("model_sampling").sigma_max)
        return (
            f"from {self.start:g} to {self.end:g} of the noise schedule, sigma {min(first, highest):.4f} down to "
            f"{last:.4f}, strength {self.strength:g}"
        )

    def _sigmas(self, model: Any) -> tuple[float, float]:
        sampling = model.get_model_object("model_sampling")
        first, last = (float(sampling.percent_to_sigma(share)) for share in (self.start, self.end))
        return first, last


def in_range(start: float, end: float, unit: str, strength: float) -> LoraTiming:
    """Return the timing of a LoRA that acts from start to end. Raises ScheduleError for a range that is empty."""
    if unit == SIGMA:
        if start <= end:
            raise ScheduleError(f"sigmas fall, but start is {start:g} and end {end:g}; write the higher one as start")
        return BetweenSigmas(start, end, strength)
    if start >= end:
        raise ScheduleError(f"start is {start:g} and end {end:g}, which leaves nothing; end must be the higher one")
    if unit == SHARE:
        if end > 1:
            raise ScheduleError(f"end is {end:g}, but a share is at most 1; write one, or set unit to steps")
        return BetweenShares(start, end, strength)
    if start != int(start) or end != int(end):
        raise ScheduleError(f"steps {start:g} to {end:g} are no whole numbers; write whole ones, or set unit to share")
    return BySteps(in_steps(int(start), int(end), strength))
