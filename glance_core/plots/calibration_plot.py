"""Plot a calibration: how close each plan came to the teacher, and which noise levels the chosen one visits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..calibration.calibrate import Calibration
from ..schedule.split import FAST, SLOW
from .canvas import COLOURS, FAINT, GAP, HALF, HEIGHT, INK, WIDTH, Sheet, draw_dots

if TYPE_CHECKING:
    from PIL import Image as PillowImage

_TOP, _BOTTOM = 84, HEIGHT - 62


def plot_calibration(found: Calibration, sigmas: Sequence[float], title: str) -> PillowImage.Image:
    """Return the plot.

    Args:
        sigmas: the teacher's T + 1.
    """
    sheet = Sheet(title)
    _search(sheet, [psnr for _, psnr in found.tried])
    _noise_levels(sheet, found, sigmas)
    return sheet.image


def _search(sheet: Sheet, values: Sequence[float]) -> None:
    """Draw each plan's PSNR, and the best so far."""
    left, right = GAP, HALF
    sheet.draw.text((left, _TOP - 40), "PSNR to the teacher (dB) of each plan, and the best so far", INK, sheet.small)
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), 0.01)

    def place(i: int, value: float) -> tuple[float, float]:
        share = (value - low + margin) / (high - low + 2 * margin)
        return left + (right - left) * i / max(1, len(values) - 1), _BOTTOM - share * (_BOTTOM - _TOP)

    for value in (low, (low + high) / 2, high):
        y, text = place(0, value)[1], f"{value:.1f}"
        sheet.draw.line([(left, y), (right, y)], FAINT)
        sheet.draw.text((left - 8 - sheet.small.getlength(text), y - 8), text, INK, sheet.small)
    best = [place(i, max(values[: i + 1])) for i in range(len(values))]
    if len(best) > 1:
        sheet.draw.line(best, COLOURS[SLOW], 3)
    for i, value in enumerate(values):
        x, y = place(i, value)
        sheet.draw.ellipse([x - 3, y - 3, x + 3, y + 3], COLOURS[FAST])
    sheet.draw.text((left, _BOTTOM + 8), f"{len(values)} plans tried", INK, sheet.small)


def _noise_levels(sheet: Sheet, found: Calibration, sigmas: Sequence[float]) -> None:
    left, right = HALF + GAP + 24, WIDTH - 24
    sheet.draw.text((left, _TOP - 40), "noise levels (sigma), from 1 on the left to 0", INK, sheet.small)
    phases = [COLOURS[SLOW]] * len(found.split.slow) + [COLOURS[FAST]] * len(found.split.fast)
    rows = (("even", found.even.steps, [INK] * len(found.even.steps)), ("chosen", found.split.steps, phases))
    for at, (name, steps, colours) in enumerate(rows):
        y = _TOP + 60 + 110 * at
        sheet.draw.text((left, y - 34), name, INK, sheet.small)
        places = [left + (right - left) * (1 - sigmas[step] / sigmas[0]) for step in steps]
        labels = [str(step + 1) for step in steps]
        draw_dots(sheet, list(zip(places, labels, colours, strict=True)), y, (left, right))
    sheet.draw.text((left, _BOTTOM + 8), "numbers are teacher steps; blue: Slow, orange: Fast", INK, sheet.small)
