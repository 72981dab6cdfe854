"""A teacher's path as one picture: how much its velocity turns at each noise level, and the ladders laid over it. By Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .loss_plot import COLOURS, GAP, HEIGHT, INK, PAPER, WIDTH, Panel, bounds_of, dots
from .path import Path
from .schedule import FAST, SLOW, Split

if TYPE_CHECKING:
    from PIL import Image as PillowImage


def plot_path(path: Path, ladders: Mapping[str, Sequence[int]], split: Split, title: str) -> PillowImage.Image:
    """ladders: teacher steps (0-based) by name, drawn with their errors; split: the one of them that is drawn into the curve, by phase."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(13), ImageFont.load_default(16)
    draw.text((24, 14), title, INK, large)
    half = (WIDTH - GAP - 24) // 2
    falling = path.sigmas[0] - path.sigmas[-1]

    def across(step: int) -> float:
        return (path.sigmas[0] - path.sigmas[step]) / falling

    def phase(step: int) -> tuple[int, int, int]:
        return COLOURS[SLOW if step in split.slow else FAST]

    left = Panel(
        draw,
        small,
        (GAP, 84, half, HEIGHT - 62),
        "how much the velocity turns from one teacher step to the next; suggested steps",
        bounds_of(path.change),
    )
    for step in split.steps:
        left.upright(across(step), phase(step))
    left.line([(across(i + 1), max(value, left.bounds[0])) for i, value in enumerate(path.change)], INK, 3)
    marks = range(0, path.steps, max(1, path.steps // 8))
    for name, values, below in (("sigma", path.sigmas, 8), ("SNR", path.snr, 26)):
        draw.text((24, HEIGHT - 62 + below), name, INK, small)
        left.ticks([(across(step), f"{values[step]:.0f}" if values[step] >= 10 else f"{values[step]:.2g}") for step in marks], below)

    box = (half + GAP + 24, 84, WIDTH - 24, HEIGHT - 62)
    draw.text((box[0], box[1] - 40), "noise levels that are visited, and the error of the ladder", INK, small)
    for at, (name, steps) in enumerate(ladders.items()):
        y = box[1] + 44 + at * (box[3] - box[1] - 20) / max(3, len(ladders))
        draw.text((box[0], y - 30), f"{name}: {path.error(steps):.4g}", INK, small)
        colours = [phase(step) if tuple(steps) == split.steps else INK for step in steps]
        places = [(box[0] + (box[2] - box[0]) * across(step), str(step + 1), colour) for step, colour in zip(steps, colours, strict=True)]
        dots(draw, small, places, y, (box[0], box[2]))
    draw.text((box[0], HEIGHT - 30), "numbers are teacher steps; blue: Slow, orange: Fast", INK, small)
    return sheet
