"""What plots share: a sheet, a panel with a logarithmic axis, a line of dots. Drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..schedule.split import FAST, SLOW

Colour = tuple[int, int, int]

INK, PAPER, FAINT = (34, 34, 40), (250, 249, 246), (214, 212, 206)
COLOURS = {SLOW: (38, 92, 180), FAST: (206, 96, 24)}
WIDTH, HEIGHT, GAP = 1180, 430, 84
HALF = (WIDTH - GAP - 24) // 2
_MOST_MARKS = 7
_MARGIN = 1.15  # of a logarithmic axis, beyond the values


class Sheet:
    """An empty plot with a title. image: the picture; draw: draws on it; small: the font of labels."""

    def __init__(self, title: str):
        from PIL import Image, ImageDraw, ImageFont

        self.image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.small = ImageFont.load_default(13)
        self.draw.text((24, 14), title, INK, ImageFont.load_default(16))


class Panel:
    """A frame with a logarithmic vertical axis; x goes from 0 to 1."""

    def __init__(self, sheet: Sheet, box: tuple[int, int, int, int], title: str, bounds: tuple[float, float]):
        """box: left, top, right, bottom in pixels. bounds: least and largest value of the axis."""
        self.draw, self.font, self.box, self.bounds = sheet.draw, sheet.small, box, bounds
        left, top, right, bottom = box
        self.draw.text((left, top - 40), title, INK, self.font)
        for value in _marks(*bounds):
            y = self._y(value)
            self.draw.line([(left, y), (right, y)], FAINT)
            text = f"{value:.3g}"
            self.draw.text((left - 8 - self.font.getlength(text), y - 8), text, INK, self.font)
        self.draw.line([(left, top), (left, bottom), (right, bottom)], INK)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: int) -> None:
        """Draw a line through points (x, value)."""
        if len(points) > 1:
            self.draw.line([(self._x(x), self._y(y)) for x, y in points], colour, width)

    def change(self, x: float, first: float, last: float, colour: Colour) -> None:
        """Draw a ring at the first value, a disc at the last, and a line between them."""
        at = self._x(x)
        self.draw.line([(at, self._y(first)), (at, self._y(last))], colour, 2)
        for value, fill in ((first, PAPER), (last, colour)):
            y = self._y(value)
            self.draw.ellipse([at - 5, y - 5, at + 5, y + 5], fill, colour, 2)

    def upright(self, x: float, colour: Colour) -> None:
        """Draw a line from top to bottom."""
        self.draw.line([(self._x(x), self.box[1]), (self._x(x), self.box[3])], colour, 1)

    def ticks(self, labels: Sequence[tuple[float, str]], below: int = 8) -> None:
        """Write labels (x, text) below the frame; one that would touch the last is left out."""
        end = -math.inf
        for x, text in labels:
            width = self.font.getlength(text)
            start = min(max(self._x(x) - width / 2, self.box[0]), self.box[2] - width)
            if start > end + 4:
                self.draw.text((start, self.box[3] + below), text, INK, self.font)
                end = start + width

    def _x(self, x: float) -> float:
        return self.box[0] + x * (self.box[2] - self.box[0])

    def _y(self, value: float) -> float:
        low, high = (math.log(bound) for bound in self.bounds)
        share = (math.log(max(value, self.bounds[0])) - low) / (high - low)
        return self.box[3] - share * (self.box[3] - self.box[1])


def draw_dots(sheet: Sheet, places: Sequence[tuple[float, str, Colour]], y: float, ends: tuple[float, float]) -> None:
    """Draw a line with a disc at each (x, label, colour), and the labels below it unless they would touch."""
    sheet.draw.line([(ends[0], y), (ends[1], y)], FAINT, 2)
    free = -1.0
    for x, text, colour in places:
        sheet.draw.ellipse([x - 6, y - 6, x + 6, y + 6], colour)
        width = sheet.small.getlength(text)
        if x - width / 2 > free:
            sheet.draw.text((x - width / 2, y + 12), text, INK, sheet.small)
            free = x + width / 2 + 4


def log_bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of a logarithmic axis that shows these values."""
    sound = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    return min(sound) / _MARGIN, max(sound) * _MARGIN


def _marks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of each power of ten within the bounds, or the bounds themselves if those are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]
    if len(marks) > _MOST_MARKS:
        marks = [mark for mark in marks if f"{mark:e}".startswith("1")]
    return marks if len(marks) > 1 else [low * _MARGIN, high / _MARGIN]
