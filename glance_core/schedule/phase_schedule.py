"""The sigmas of one sampling run, and which phase answers at each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ScheduleError
from .sigmas import check_falling
from .split import FAST, SLOW, Split

_BFLOAT16_ROUNDING = 2**-9  # of the value, at most


@dataclass(frozen=True)
class PhaseSchedule:
    """The sigmas of a run and where Slow ends.

    sigmas: N + 1 strictly falling values, the last 0. slow_steps: how many of the N steps are Slow's.
    partial: the run starts below full noise (image to image), so it may have no Slow step.
    """

    sigmas: tuple[float, ...]
    slow_steps: int
    partial: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", check_falling(self.sigmas))
        lowest = 0 if self.partial else 1
        if not lowest <= self.slow_steps < self.steps:
            raise ScheduleError(
                f"slow_steps is {self.slow_steps} of {self.steps}, which leaves a phase empty; it must lie between "
                f"{lowest} and {self.steps - 1}"
            )

    @property
    def steps(self) -> int:
        """How many steps the run has."""
        return len(self.sigmas) - 1

    @property
    def boundary(self) -> float:
        """The first sigma that Fast answers."""
        return self.sigmas[self.slow_steps]

    @property
    def threshold(self) -> float:
        """Slow answers above this sigma; see `threshold_between`."""
        return threshold_between(self.sigmas[self.slow_steps - 1] if self.slow_steps else math.inf, self.boundary)

    def phase(self, sigma: float) -> str:
        """Return `slow` if the sigma lies above the boundary, also after float32 or bfloat16 rounding, else `fast`."""
        return SLOW if sigma > self.threshold else FAST

    def phases(self) -> tuple[str, ...]:
        """Return the phase of each step."""
        return tuple(self.phase(sigma) for sigma in self.sigmas[:-1])


def threshold_between(last_slow: float, boundary: float) -> float:
    """Return a sigma just above `boundary` that no rounding of `boundary` reaches, below `last_slow`.

    It leaves twice the rounding of bfloat16, or half the gap where sigmas lie closer than that.
    """
    return boundary + min(boundary * 2 * _BFLOAT16_ROUNDING, (last_slow - boundary) / 2)


def phase_index(sigma: float, thresholds: Sequence[float]) -> int:
    """Return the phase of a noise level: 0 above the first of the falling thresholds, 1 above the second, ..."""
    return sum(sigma <= threshold for threshold in thresholds)


def threshold_at(sigmas: Sequence[float], step: int) -> float:
    """Return the threshold of a phase that begins at this 0-based teacher step; step is at least 1."""
    return threshold_between(sigmas[step - 1], sigmas[step])


def build_schedule(sigmas: Sequence[float], split: Split, denoise: float = 1.0) -> PhaseSchedule:
    """Return the schedule of the split's steps on the teacher's `sigmas`.

    Args:
        sigmas: the teacher's N + 1.
        denoise: below 1 (image to image) the run starts at teacher step int(N - N * denoise), where the teacher itself
            would start (as in diffusers' image-to-image pipelines). It keeps the steps below that and their phases, so
            it never has more steps than the whole run.
    """
    if len(sigmas) - 1 != split.teacher_steps:
        raise ScheduleError(
            f"the split {split} counts {split.teacher_steps} teacher steps, but the sigmas have {len(sigmas) - 1}"
        )
    if not 0 < denoise <= 1:
        raise ScheduleError(f"denoise is {denoise}; it must be above 0 and at most 1")
    first = int(split.teacher_steps - split.teacher_steps * denoise)
    steps = (first, *(step for step in split.steps if step > first))
    slow = sum(step < split.fast[0] for step in steps)
    if first < split.steps[0]:  # a split may begin below the top; so does the run, unless denoise says lower
        steps, slow = split.steps, len(split.slow)
    return PhaseSchedule((*(sigmas[step] for step in steps), 0.0), slow, partial=denoise < 1)
