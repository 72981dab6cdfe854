"""The losses of a training run as one picture: by step for each phase, and at each sigma before and after. By Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .draws import History
from .schedule import FAST, SLOW

if TYPE_CHECKING:
    from PIL import Image as PillowImage
    from PIL import ImageDraw, ImageFont

INK, PAPER, FAINT = (34, 34, 40), (250, 249, 246), (214, 212, 206)
COLOURS = {SLOW: (38, 92, 180), FAST: (206, 96, 24)}
_PALE = {SLOW: (190, 206, 232), FAST: (244, 212, 188)}
WIDTH, HEIGHT, GAP = 1180, 430, 84


def plot_losses(history: History, sigmas: Sequence[float], slow_steps: int, per_step: int, title: str) -> PillowImage.Image:
    """sigmas: the ladder's points in training order; per_step: examples of one step; Slow owns the first `slow_steps` points."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(13), ImageFont.load_default(16)
    draw.text((24, 14), title, INK, large)
    half = (WIDTH - GAP - 24) // 2
    phases = {phase: _by_step(history, points, per_step) for phase, points in _points(slow_steps, len(sigmas)).items()}
    left = Panel(
        draw,
        small,
        (GAP, 84, half, HEIGHT - 62),
        "loss by step (thin), mean of the last ten (thick)",
        bounds_of([v for c in phases.values() for v in c]),
    )
    longest = max((len(column) for column in phases.values()), default=1)
    for phase, column in phases.items():
        left.line([(i / max(1, longest - 1), value) for i, value in enumerate(column)], _PALE[phase], 1)
        left.line([(i / max(1, longest - 1), value) for i, value in enumerate(_running(column))], COLOURS[phase], 3)
    for i, phase in enumerate(phases):
        x = GAP + 8 + 70 * i
        draw.rectangle([x, 66, x + 9, 75], COLOURS[phase])
        draw.text((x + 15, 62), phase, COLOURS[phase], small)
    left.ticks([(0, "1"), (1, f"{longest} steps")])

    firsts, lasts = zip(*(_ends(history, point) for point in range(len(sigmas))), strict=True)
    right = Panel(draw, small, (half + GAP + 24, 84, WIDTH - 24, HEIGHT - 62), "mean loss at each sigma: first third (ring), last third (disc)",
                   bounds_of([v for v in (*firsts, *lasts) if v is not None]))  # fmt: skip
    for point, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        if first is not None and last is not None:
            right.change((point + 0.5) / len(sigmas), first, last, COLOURS[SLOW if point < slow_steps else FAST])
    draw.text((WIDTH - 64, HEIGHT - 30), "sigma", INK, small)
    right.ticks([((point + 0.5) / len(sigmas), f"{sigma:.3f}") for point, sigma in enumerate(sigmas)])
    return sheet


class Panel:
    """A frame with a logarithmic vertical axis; x goes from 0 to 1."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, box: tuple[int, int, int, int], title: str,
        bounds: tuple[float, float],
    ):  # fmt: skip
        self.draw, self.font, self.box, self.bounds = draw, font, box, bounds
        left, top, right, bottom = box
        draw.text((left, top - 40), title, INK, font)
        for value in _marks(*bounds):
            y = self._y(value)
            draw.line([(left, y), (right, y)], FAINT)
            text = f"{value:.3g}"
            draw.text((left - 8 - font.getlength(text), y - 8), text, INK, font)
        draw.line([(left, top), (left, bottom), (right, bottom)], INK)

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: int) -> None:
        if len(points) > 1:
            self.draw.line([(self._x(x), self._y(y)) for x, y in points], colour, width)

    def change(self, x: float, first: float, last: float, colour: tuple[int, int, int]) -> None:
        at = self._x(x)
        self.draw.line([(at, self._y(first)), (at, self._y(last))], colour, 2)
        for value, fill in ((first, PAPER), (last, colour)):
            y = self._y(value)
            self.draw.ellipse([at - 5, y - 5, at + 5, y + 5], fill, colour, 2)

    def upright(self, x: float, colour: tuple[int, int, int]) -> None:
        self.draw.line([(self._x(x), self.box[1]), (self._x(x), self.box[3])], colour, 1)

    def ticks(self, labels: Sequence[tuple[float, str]], below: int = 8) -> None:
        end = -math.inf
        for x, text in labels:
            width = self.font.getlength(text)
            start = min(max(self._x(x) - width / 2, self.box[0]), self.box[2] - width)
            if start > end + 4:  # a label that would touch the one before is left out
                self.draw.text((start, self.box[3] + below), text, INK, self.font)
                end = start + width

    def _x(self, x: float) -> float:
        return self.box[0] + x * (self.box[2] - self.box[0])

    def _y(self, value: float) -> float:
        low, high = (math.log(bound) for bound in self.bounds)
        return self.box[3] - (math.log(max(value, self.bounds[0])) - low) / (high - low) * (self.box[3] - self.box[1])


def dots(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, places: Sequence[tuple[float, str, tuple[int, int, int]]],
    y: float, ends: tuple[float, float],
) -> None:  # fmt: skip
    """A line with a disc at each (x, label, colour) and the label below it."""
    draw.line([(ends[0], y), (ends[1], y)], FAINT, 2)
    free = -1.0
    for x, text, colour in places:
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], colour)
        width = font.getlength(text)
        if x - width / 2 > free:  # a label that would touch the one before is left out
            draw.text((x - width / 2, y + 12), text, INK, font)
            free = x + width / 2 + 4


def _points(slow_steps: int, count: int) -> dict[str, range]:
    return {SLOW: range(slow_steps), FAST: range(slow_steps, count)}


def _by_step(history: History, points: range, per_step: int) -> list[float]:
    own = [loss for point, loss in zip(history.points, history.losses, strict=True) if point in points]
    return [sum(own[i : i + per_step]) / len(own[i : i + per_step]) for i in range(0, len(own), per_step)]


def _running(column: Sequence[float]) -> list[float]:
    return [sum(column[max(0, i - 9) : i + 1]) / len(column[max(0, i - 9) : i + 1]) for i in range(len(column))]


def _ends(history: History, point: int) -> tuple[float | None, float | None]:
    own = [loss for at, loss in zip(history.points, history.losses, strict=True) if at == point]
    if not own:
        return None, None
    third = max(1, len(own) // 3)
    return sum(own[:third]) / third, sum(own[-third:]) / third


def bounds_of(values: Sequence[float]) -> tuple[float, float]:
    """Of a logarithmic axis that shows them."""
    sound = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    return min(sound) / 1.15, max(sound) * 1.15


def _marks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten within the bounds; the bounds themselves where there are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]
    if len(marks) > 7:
        marks = [mark for mark in marks if f"{mark:e}".startswith("1")]
    return marks if len(marks) > 1 else [low * 1.15, high / 1.15]
