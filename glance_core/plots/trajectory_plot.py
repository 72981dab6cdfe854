"""Plot the teacher's trajectory: how much its velocity turns at each noise level, and the steps to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..calibration.step_selection import TrajectoryProfile
from ..schedule.split import FAST, SLOW, Split
from .canvas import COLOURS, GAP, HALF, HEIGHT, INK, WIDTH, Colour, Panel, Sheet, draw_dots, log_bounds

if TYPE_CHECKING:
    from PIL import Image as PillowImage

_TOP, _BOTTOM = 84, HEIGHT - 62


def plot_trajectory(
    profile: TrajectoryProfile, choices: Mapping[str, Sequence[int]], split: Split, title: str
) -> PillowImage.Image:
    """Return the plot.

    Args:
        choices: teacher steps (0-based) by name, drawn with their errors.
        split: the choice that is drawn into the curve, by phase.
    """
    sheet = Sheet(title)
    _turning(sheet, profile, split)
    _choices(sheet, profile, choices, split)
    return sheet.image


def _across(profile: TrajectoryProfile, step: int) -> float:
    """Return where a teacher step lies between the first sigma (0) and the last (1)."""
    return (profile.sigmas[0] - profile.sigmas[step]) / (profile.sigmas[0] - profile.sigmas[-1])


def _colour(split: Split, step: int) -> Colour:
    return COLOURS[SLOW if step in split.slow else FAST]


def _turning(sheet: Sheet, profile: TrajectoryProfile, split: Split) -> None:
    title = "how much the velocity turns from one teacher step to the next; suggested steps"
    panel = Panel(sheet, (GAP, _TOP, HALF, _BOTTOM), title, log_bounds(profile.change))
    for step in split.steps:
        panel.upright(_across(profile, step), _colour(split, step))
    points = [(_across(profile, i + 1), max(value, panel.bounds[0])) for i, value in enumerate(profile.change)]
    panel.line(points, INK, 3)
    marks = range(0, profile.steps, max(1, profile.steps // 8))
    for name, values, below in (("sigma", profile.sigmas, 8), ("SNR", profile.snr, 26)):
        sheet.draw.text((24, _BOTTOM + below), name, INK, sheet.small)
        texts = [f"{values[step]:.0f}" if values[step] >= 10 else f"{values[step]:.2g}" for step in marks]
        panel.ticks([(_across(profile, step), text) for step, text in zip(marks, texts, strict=True)], below)


def _choices(sheet: Sheet, profile: TrajectoryProfile, choices: Mapping[str, Sequence[int]], split: Split) -> None:
    left, right = HALF + GAP + 24, WIDTH - 24
    sheet.draw.text((left, _TOP - 40), "noise levels, and the error of these steps", INK, sheet.small)
    for at, (name, steps) in enumerate(choices.items()):
        y = _TOP + 44 + at * (_BOTTOM - _TOP - 20) / max(3, len(choices))
        sheet.draw.text((left, y - 30), f"{name}: {profile.error(steps):.4g}", INK, sheet.small)
        drawn_in = tuple(steps) == split.steps
        places = [
            (
                left + (right - left) * _across(profile, step),
                str(step + 1),
                _colour(split, step) if drawn_in else INK,
            )
            for step in steps
        ]
        draw_dots(sheet, places, y, (left, right))
    sheet.draw.text((left, HEIGHT - 30), "numbers are teacher steps; blue: Slow, orange: Fast", INK, sheet.small)
