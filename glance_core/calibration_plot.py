"""A calibration as one picture: how near each tried walk came, and which noise levels the chosen one visits. By Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .calibration import Calibration
from .loss_plot import COLOURS, FAINT, GAP, HEIGHT, INK, PAPER, WIDTH, dots
from .schedule import FAST, SLOW

if TYPE_CHECKING:
    from PIL import Image as PillowImage


def plot_calibration(found: Calibration, ladder: Sequence[float], title: str) -> PillowImage.Image:
    """ladder: the teacher's T + 1 sigmas."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(13), ImageFont.load_default(16)
    draw.text((24, 14), title, INK, large)
    half = (WIDTH - GAP - 24) // 2

    left, top, right, bottom = GAP, 84, half, HEIGHT - 62
    draw.text((left, top - 40), "PSNR to the teacher (dB) of each walk tried, and the best until then", INK, small)
    values = [near for _, near in found.tried]
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), 0.01)

    def place(i: int, value: float) -> tuple[float, float]:
        share = (value - low + margin) / (high - low + 2 * margin)
        return left + (right - left) * i / max(1, len(values) - 1), bottom - share * (bottom - top)

    for value in (low, (low + high) / 2, high):
        y = place(0, value)[1]
        draw.line([(left, y), (right, y)], FAINT)
        draw.text((left - 8 - small.getlength(f"{value:.1f}"), y - 8), f"{value:.1f}", INK, small)
    best = [place(i, max(values[: i + 1])) for i in range(len(values))]
    if len(best) > 1:
        draw.line(best, COLOURS[SLOW], 3)
    for i, value in enumerate(values):
        x, y = place(i, value)
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], COLOURS[FAST])
    draw.text((left, bottom + 8), f"{len(values)} walks tried", INK, small)

    left, right = half + GAP + 24, WIDTH - 24
    draw.text((left, top - 40), "noise levels (sigma) that are visited, from 1 on the left to 0", INK, small)
    phases = [COLOURS[SLOW]] * len(found.split.slow) + [COLOURS[FAST]] * len(found.split.fast)
    even = found.even.steps
    for at, (name, steps, colours) in enumerate((("even", even, [INK] * len(even)), ("chosen", found.split.steps, phases))):
        y = top + 60 + 110 * at
        draw.text((left, y - 34), name, INK, small)
        places = [left + (right - left) * (1 - ladder[step] / ladder[0]) for step in steps]
        dots(draw, small, list(zip(places, (str(step + 1) for step in steps), colours, strict=True)), y, (left, right))
    draw.text((left, bottom + 8), "numbers are teacher steps; blue: Slow, orange: Fast", INK, small)
    return sheet
