"""A step plan: which teacher steps a run takes, and how much guidance each of them gets.

A step without guidance costs one model call instead of two. So a number of model calls can pay for a few guided steps,
or for more steps of which some are not guided. Guidance does little while the picture is still noise
(Kynkaanniemi et al., arXiv 2404.07724).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ScheduleError


@dataclass(frozen=True)
class StepPlan:
    """The steps of a sampling run of the base.

    steps: teacher steps, 0-based. guidance: 1 means none. coefficient: share of the second-order correction.
    weights: one factor per step for what guidance adds; empty means all 1, and 0 makes a step of one model call.
    """

    steps: tuple[int, ...]
    guidance: float
    coefficient: float = 0.0
    weights: tuple[float, ...] = ()

    @property
    def scales(self) -> tuple[float, ...]:
        """The guidance of each step."""
        return tuple(1 + (self.guidance - 1) * weight for weight in self.weights or (1.0,) * len(self.steps))

    @property
    def nfe(self) -> int:
        """Model calls per picture."""
        return sum(1 if scale == 1 else 2 for scale in self.scales)


def check_nfe(nfe: int, guidance: float, teacher_steps: int) -> None:
    """Raise ScheduleError unless a plan of 2 steps to half the teacher's can take this many model calls."""
    most = teacher_steps // 2 * (1 if guidance == 1 else 2)
    if not 2 <= nfe <= most:
        raise ScheduleError(f"Cannot use {nfe} model calls here; choose 2 to {most}")


def even_steps(count: int, teacher_steps: int) -> tuple[int, ...]:
    """Return `count` teacher steps, 0-based and evenly spread from the first."""
    return tuple(round(i * teacher_steps / count) for i in range(count))


def even_plan(nfe: int, guidance: float, teacher_steps: int) -> StepPlan:
    """Return even steps under the teacher's guidance.

    If the number of model calls is odd, or is 2, the first step is not guided.
    """
    if guidance == 1:
        return StepPlan(even_steps(nfe, teacher_steps), guidance)
    count = max(2, -(-nfe // 2))
    return StepPlan(even_steps(count, teacher_steps), guidance, weights=guidance_weights(count, nfe - count))


def guidance_weights(count: int, guided: int) -> tuple[float, ...]:
    """Return weights for `count` steps of which `guided` are guided; three quarters of the others come before them.

    Empty if all steps are guided.
    """
    first = round(0.75 * (count - guided))
    return () if guided == count else tuple(float(first <= i < first + guided) for i in range(count))
