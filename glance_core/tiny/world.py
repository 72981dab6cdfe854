"""The tiny model's world: one or two coloured shapes on a patterned ground, 32 x 32 pixels, with every attribute known.

Six of the 36 colour-shape pairs never occur in training. A prompt is unseen if its first object is one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F

from .words import ANY, COLOURS, GROUNDS, INDEX, NONE, POSITIONS, SHAPES, SIZES, TEXTURES

RESOLUTION = 32
HELD_OUT = tuple((colour, (2 * colour + 1 + colour // 3) % len(SHAPES)) for colour in range(len(COLOURS)))

_RGB = torch.tensor([
    [.91, .23, .22], [.16, .68, .33], [.20, .40, .96], [.99, .82, .16], [.58, .22, .80], [.12, .80, .86],
])  # fmt: skip
_GROUND_RGB = torch.tensor([[.09, .09, .13], [.95, .94, .91], [.53, .55, .58], [.97, .74, .78]])  # fmt: skip
_SECOND_TONE = torch.tensor([0.15, -0.17, -0.16, -0.17])  # what each ground's pattern adds to it
_DIRECTIONS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [0.0, 0.0]])


@dataclass(frozen=True)
class Scenes:
    """n scenes by their attributes: indices into the word lists of `words`.

    size, colour, shape: (n, 2), for both objects. The others are (n,). two: whether there is a second object, opposite
    the first. stated: whether the prompt says the position.
    """

    size: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    position: torch.Tensor
    two: torch.Tensor
    stated: torch.Tensor
    texture: torch.Tensor
    ground: torch.Tensor

    def __len__(self) -> int:
        return len(self.two)

    def __getitem__(self, rows: slice | torch.Tensor) -> Scenes:
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def slots(self) -> torch.Tensor:
        """Return the prompts' word indices (n, 9)."""

        def at(words: tuple[str, ...]) -> int:
            return INDEX[words[0]]

        def second(values: torch.Tensor, words: tuple[str, ...]) -> torch.Tensor:
            return torch.where(self.two, values[:, 1] + at(words), NONE)

        columns = [
            self.size[:, 0] + at(SIZES),
            self.colour[:, 0] + at(COLOURS),
            self.shape[:, 0] + at(SHAPES),
            torch.where(self.stated, self.position + at(POSITIONS), ANY),
            second(self.size, SIZES),
            second(self.colour, COLOURS),
            second(self.shape, SHAPES),
            self.texture + at(TEXTURES),
            self.ground + at(GROUNDS),
        ]
        return torch.stack(columns, 1)


def sample_scenes(count: int, generator: torch.Generator, pairs: str = "seen") -> Scenes:
    """Return random scenes.

    Args:
        pairs: `seen` (training), `unseen` (the first object is a held-out pair) or `all`.
    """
    every = [(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))]
    seen = torch.tensor([pair for pair in every if pair not in HELD_OUT])
    first = {"seen": seen, "unseen": torch.tensor(HELD_OUT), "all": torch.tensor(every)}[pairs]
    second = torch.tensor(every) if pairs == "all" else seen

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (count, *shape), generator=generator)

    chosen = torch.stack([first[draw(len(first))], second[draw(len(second))]], 1)  # (n, object, [colour, shape])
    two = torch.rand(count, generator=generator) < 0.5
    position = draw(len(POSITIONS))
    return Scenes(
        size=draw(2, 2),
        colour=chosen[..., 0],
        shape=chosen[..., 1],
        position=torch.where(two, position % 4, position),
        two=two,
        stated=torch.rand(count, generator=generator) < 0.7,
        texture=draw(len(TEXTURES)),
        ground=draw(len(GROUNDS)),
    )


def render(scenes: Scenes, generator: torch.Generator) -> torch.Tensor:
    """Return pictures (n, 3, 32, 32) in [-1, 1]. The generator varies place, size and tint as far as a word allows."""
    n = len(scenes)

    def spread(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand((n, *shape), generator=generator)

    image = _background(scenes, spread(-0.02, 0.02, 3), spread(0, 8, 2))
    radius = _radii(scenes, spread(0, 1, 2))
    one_small = ~scenes.two & (scenes.size[:, 0] == 0)
    away = torch.where(scenes.two | one_small, 8.0, 5.0)[:, None] * _DIRECTIONS[scenes.position]
    jitter = torch.where(scenes.two, 0.8, 1.2)[:, None, None] * spread(-1, 1, 2, 2)
    centers = RESOLUTION / 2 + torch.stack([away, -away], 1) + jitter  # (n, object, [x, y])
    tint = spread(-0.04, 0.04, 2, 3)
    for i in (1, 0):  # the first object lies on top
        there = (scenes.two if i else torch.ones(n)).float()
        colour = _RGB[scenes.colour[:, i]] + tint[:, i]
        image = _draw(image, scenes.shape[:, i], colour, centers[:, i], radius[:, i], there)
    return image.clamp(0, 1) * 2 - 1


def _background(scenes: Scenes, tint: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
    y, x = _grid()
    x, y = x + phase[:, 0, None, None], y + phase[:, 1, None, None]
    striped = ((x + y) % 8 < 4).float()
    checkered = ((x // 4 + y // 4) % 2).float()
    dotted = (2.4 - torch.hypot(x % 8 - 4, y % 8 - 4)).clamp(0, 1)
    masks = torch.stack([torch.zeros_like(striped), striped, checkered, dotted], 1)
    mask = masks[torch.arange(len(scenes)), scenes.texture][:, None]
    base = (_GROUND_RGB[scenes.ground] + tint)[:, :, None, None]
    return base + mask * _SECOND_TONE[scenes.ground][:, None, None, None]


def _radii(scenes: Scenes, where: torch.Tensor) -> torch.Tensor:
    """Return each object's radius (n, 2) in pixels. A single object is larger than one of two.

    Args:
        where: (n, 2), where each lies between the smallest (0) and the largest (1) of its kind.
    """
    two, size = scenes.two[:, None], scenes.size
    low = torch.where(two, torch.tensor([4.6, 6.9])[size], torch.tensor([5.2, 9.2])[size])
    high = torch.where(two, torch.tensor([5.3, 7.7])[size], torch.tensor([6.2, 10.8])[size])
    return low + (high - low) * where


def _draw(
    image: torch.Tensor,
    shape: torch.Tensor,
    colour: torch.Tensor,
    center: torch.Tensor,
    radius: torch.Tensor,
    there: torch.Tensor,
) -> torch.Tensor:
    """Draw one object over the image: a soft shadow, then the shape, lit from the upper left."""
    y, x = _grid()
    x, y = x - center[:, 0, None, None], y - center[:, 1, None, None]
    r, there = radius[:, None, None], there[:, None, None]
    shadow = (0.30 * there * (0.8 - _distance(shape, x - 1.2, y - 1.4, r) / 2).clamp(0, 1))[:, None]
    cover = (there * (0.5 - _distance(shape, x, y, r)).clamp(0, 1))[:, None]
    light = (1.06 - 0.16 * (x + y) / r).clamp(0.80, 1.25)[:, None]
    return image * (1 - shadow) * (1 - cover) + colour[:, :, None, None] * light * cover


@lru_cache
def _grid() -> tuple[torch.Tensor, torch.Tensor]:
    line = torch.arange(RESOLUTION) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y[None], x[None]


def _distance(shape: torch.Tensor, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Return the signed distance (n, H, W) in pixels to each shape's outline, negative inside."""
    table = _distance_tables()[shape][:, None]
    points = torch.stack([x / radius, y / radius], -1).clamp(-_REACH, _REACH) / _REACH
    return F.grid_sample(table, points, padding_mode="border", align_corners=True)[:, 0] * radius


_REACH, _CELLS = 3.0, 193


@lru_cache
def _distance_tables() -> torch.Tensor:
    """Return signed distances (shape, cells, cells) on [-3, 3]^2 for shapes of radius 1."""
    line = torch.linspace(-_REACH, _REACH, _CELLS)
    y, x = torch.meshgrid(line, line, indexing="ij")
    away = torch.hypot(x, y)
    named = {
        "circle": away - 1,
        "ring": torch.maximum(away - 1, 0.5 - away),
        "square": _polygon(x, y, [(0.88, 0.88), (-0.88, 0.88), (-0.88, -0.88), (0.88, -0.88)]),
        "triangle": _polygon(x, y, [(0.0, -1.05), (1.08, 0.82), (-1.08, 0.82)]),
        "star": _polygon(x, y, [_polar(1.15 if i % 2 == 0 else 0.5, -90 + 36 * i) for i in range(10)]),
        "heart": _polygon(x, y, _heart()),
    }
    return torch.stack([named[shape] for shape in SHAPES])


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _heart(points: int = 60) -> list[tuple[float, float]]:
    def corner(a: float) -> tuple[float, float]:
        waves = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        return 1.08 * math.sin(a) ** 3, -waves / 14.5 + 0.05

    return [corner(2 * math.pi * i / points) for i in range(points)]


def _polygon(x: torch.Tensor, y: torch.Tensor, corners: list[tuple[float, float]]) -> torch.Tensor:
    """Return the signed distance to a polygon. A point is inside if a ray from it crosses an odd number of edges."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(x - ax - along * ex, y - ay - along * ey))
        if ey != 0:
            crosses = ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
            inside ^= crosses
    return torch.where(inside, -nearest, nearest)
