"""The judge of the tiny model's pictures: a small convolutional net that reads a scene's attributes from its pixels.

It is trained on rendered scenes of all colour-shape pairs, including those held out of the model's training. Its 64
features serve the Frechet distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Conv2d, Linear

from .words import COLOURS, GROUNDS, OPPOSITE, POSITIONS, SHAPES, SIZES, TEXTURES
from .world import Scenes

OBJECTS = len(COLOURS) * len(SHAPES) * len(SIZES)
PLACES = len(COLOURS) * len(POSITIONS)
FEATURES = 64
_OPPOSITE = torch.tensor([POSITIONS.index(OPPOSITE.get(place, place)) for place in POSITIONS])


@dataclass(frozen=True)
class Reading:
    """What the evaluator sees, one row per picture.

    objects: logits of (colour, shape, size), any number. places: logits of (colour, position). texture, ground: logits
    of the background. features: 64 numbers.
    """

    objects: Tensor
    places: Tensor
    texture: Tensor
    ground: Tensor
    features: Tensor


class Evaluator(nn.Module):
    """The judge of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(3, 32, 2, 4), *_conv(32, 48, 1), *_conv(48, 64, 2), *_conv(64, 96, 1), *_conv(96, 96, 1)
        )
        self.objects = Conv2d(96, OBJECTS, 1)
        self.places = Linear(48 * 16, PLACES)
        self.place_in = Conv2d(96, 48, 1)
        self.texture, self.ground = Linear(96, len(TEXTURES)), Linear(96, len(GROUNDS))
        self.features = Conv2d(96, FEATURES // 2, 1)

    def forward(self, pixels: Tensor) -> Reading:
        """Read pixels (B, 3, 32, 32) in [-1, 1]."""
        x = self.body(pixels)  # (B, 96, 8, 8)
        mean = x.mean((2, 3))
        where = nn.functional.adaptive_max_pool2d(self.place_in(x).relu(), 4).flatten(1)
        seen = self.features(x).relu()
        features = torch.cat([seen.amax((2, 3)), 3 * seen.mean((2, 3))], 1)
        return Reading(
            self.objects(x).amax((2, 3)), self.places(where), self.texture(mean), self.ground(mean), features
        )


def _conv(inside: int, outside: int, stride: int, kernel: int = 3) -> tuple[nn.Module, ...]:
    return Conv2d(inside, outside, kernel, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()


@torch.no_grad()
def read(evaluator: Evaluator, pixels: Tensor, batch: int = 256) -> Reading:
    """Return the evaluator's reading of any number of pictures, clamped to what a screen shows."""
    parts = [evaluator(chunk.clamp(-1, 1)) for chunk in torch.split(pixels, batch)]
    return Reading(*(torch.cat([getattr(part, name) for part in parts]) for name in Reading.__dataclass_fields__))


def objects_of(scenes: Scenes) -> Tensor:
    """Return which (colour, shape, size) are in each scene, (n, 72) bool."""
    index = (scenes.colour * len(SHAPES) + scenes.shape) * len(SIZES) + scenes.size
    return _hot(index, scenes.two, OBJECTS)


def places_of(scenes: Scenes) -> Tensor:
    """Return which (colour, position) are in each scene, (n, 30) bool. The second object lies opposite the first."""
    position = torch.stack([scenes.position, _OPPOSITE[scenes.position]], 1)
    return _hot(scenes.colour * len(POSITIONS) + position, scenes.two, PLACES)


def _hot(index: Tensor, two: Tensor, width: int) -> Tensor:
    hot = torch.zeros(len(two), width, dtype=torch.bool)
    rows = torch.arange(len(two))
    hot[rows, index[:, 0]] = True
    hot[rows[two], index[two, 1]] = True
    return hot


def judge(reading: Reading, scenes: Scenes) -> dict[str, Tensor]:
    """Return what is right in each picture, (n,) bool each.

    Returns:
        objects: exactly the asked ones, with colour, shape and size. position: right, or not asked for.
        background: texture and ground. all: all three.
    """
    objects = ((reading.objects > 0) == objects_of(scenes)).all(1)
    position = ((reading.places > 0) == places_of(scenes)).all(1) | ~scenes.stated
    background = (reading.texture.argmax(1) == scenes.texture) & (reading.ground.argmax(1) == scenes.ground)
    return {"objects": objects, "position": position, "background": background, "all": objects & position & background}
