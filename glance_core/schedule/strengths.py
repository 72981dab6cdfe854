"""The strength of each adapter by noise level, and the phases of a run that follow from it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ScheduleError
from .phase_schedule import phase_index, threshold_between

_NOTHING = 0.0
_LARGEST = 100


@dataclass(frozen=True)
class StrengthCurve:
    """The strength of one adapter: strengths[0] above thresholds[0], ..., the last one at and below all of them.

    thresholds: falling sigmas, one fewer than strengths.
    """

    thresholds: tuple[float, ...]
    strengths: tuple[float, ...]

    def at(self, sigma: float) -> float:
        """Return the strength at this noise level."""
        return self.strengths[phase_index(sigma, self.thresholds)]


@dataclass(frozen=True)
class RunPhases:
    """The phases of a run: where each ends, and the strength of every adapter in each. See StrengthCurve."""

    thresholds: tuple[float, ...]
    strengths: tuple[tuple[float, ...], ...]

    @property
    def has_effect(self) -> bool:
        """Whether an adapter answers anywhere."""
        return any(any(phase) for phase in self.strengths)


def whole_run(strength: float) -> StrengthCurve:
    """Return one strength for every noise level."""
    return StrengthCurve((), (strength,))


def below(threshold: float, strength: float) -> StrengthCurve:
    """Return the strength at and below a threshold, and 0 above it."""
    return StrengthCurve((threshold,), (_NOTHING, strength))


def above(threshold: float, strength: float) -> StrengthCurve:
    """Return the strength above a threshold, and 0 at and below it."""
    return StrengthCurve((threshold,), (strength, _NOTHING))


def between_sigmas(start: float, end: float, strength: float) -> StrengthCurve:
    """Return the strength from the noise level `start` down to `end`, where it is 0 again.

    Both have the tolerance of a phase's boundary, so a step at `start` has the strength, and one at `end` has not.
    """
    return StrengthCurve((_just_above(start), _just_above(end)), (_NOTHING, strength, _NOTHING))


def by_step(sigmas: Sequence[float], strengths: Sequence[float]) -> StrengthCurve:
    """Return a strength for each step of a run; steps after the last of them have that one.

    A step covers the noise levels from its own sigma down to the next.

    Args:
        sigmas: of the run, N + 1.

    Raises:
        ScheduleError: if the sigmas do not fall, so that a noise level does not tell its step.
    """
    steps = len(sigmas) - 1
    if any(after >= before for before, after in itertools.pairwise(sigmas)):
        raise ScheduleError("steps cannot be counted if the run's sigmas do not fall; set unit to share or sigma")
    own = [*strengths[:steps], *[strengths[-1]] * (steps - len(strengths))]
    thresholds = [threshold_between(sigmas[i], sigmas[i + 1]) for i in range(steps - 1)]
    return StrengthCurve(tuple(thresholds), tuple(own))


def in_steps(start: int, end: int, strength: float) -> tuple[float, ...]:
    """Return the strengths by step of an adapter that answers in steps `start` to `end` - 1, counted from 0."""
    return (*[_NOTHING] * start, *[strength] * (end - start), _NOTHING)


def parse_strengths(text: str) -> tuple[float, ...]:
    """Return numbers like `1, 1, 0.5, 0`.

    Raises:
        ScheduleError: for anything else.
    """
    numbers = []
    for each in text.split(","):
        try:
            numbers.append(float(each))
        except ValueError as error:
            raise ScheduleError(f"{each.strip()[:40]!r} is not a strength. Write numbers like 1, 1, 0.5, 0") from error
        if not abs(numbers[-1]) <= _LARGEST:
            raise ScheduleError(f"{each.strip()[:40]!r} is not a strength from -{_LARGEST} to {_LARGEST}")
    return tuple(numbers)


def run_phases(curves: Sequence[StrengthCurve]) -> RunPhases:
    """Return the phases of a run with these adapters. Neighbours with the same strengths are one phase."""
    every = sorted({threshold for curve in curves for threshold in curve.thresholds}, reverse=True)
    rows = [tuple(curve.at(level) for curve in curves) for level in (float("inf"), *every)]
    thresholds, strengths = [], rows[:1]
    for threshold, row in zip(every, rows[1:], strict=True):
        if row != strengths[-1]:
            thresholds.append(threshold)
            strengths.append(row)
    return RunPhases(tuple(thresholds), tuple(strengths))


def _just_above(sigma: float) -> float:
    return threshold_between(float("inf"), sigma)
