"""The strength of each adapter by noise level, and the phases of a run that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .phase_schedule import phase_index

_NOTHING = 0.0


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


def below(threshold: float, strength: float) -> StrengthCurve:
    """Return the strength at and below a threshold, and 0 above it."""
    return StrengthCurve((threshold,), (_NOTHING, strength))


def above(threshold: float, strength: float) -> StrengthCurve:
    """Return the strength above a threshold, and 0 at and below it."""
    return StrengthCurve((threshold,), (strength, _NOTHING))


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
