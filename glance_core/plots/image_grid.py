"""Pictures as files: grids of tiles, with or without labels. Drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import GlanceError

if TYPE_CHECKING:
    from PIL import Image as PillowImage
    from PIL import ImageFont

_MARGIN, _GAP, _INK, _PAPER = 14, 6, (34, 34, 40), (250, 249, 246)
_LEAST_LABELS = 190  # pixels


def save_grid(images: Tensor, path: Path) -> None:
    """Save images (n, 3, H, W) in [-1, 1] as one PNG, as square a grid as n allows, row by row, without gaps."""
    columns = math.ceil(math.sqrt(len(images)))
    if len(images) % columns:
        raise GlanceError(f"{len(images)} pictures do not fill a grid; use a square number")
    rows = torch.cat(
        list(torch.unflatten(images, 0, (-1, columns)).permute(1, 0, 2, 3, 4)), 3
    )  # (rows, 3, H, columns W)
    _pillow(torch.cat(list(rows), 1)).save(path, optimize=True)


def load_grid(path: Path, tile: int) -> Tensor:
    """Return what `save_grid` wrote: (n, 3, tile, tile) in [-1, 1]. Raises GlanceError for other sizes."""
    import numpy
    from PIL import Image

    with Image.open(path) as image:
        pixels = torch.from_numpy(numpy.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
    if pixels.shape[1] % tile or pixels.shape[2] % tile:
        raise GlanceError(
            f"{path.name} is {pixels.shape[2]}x{pixels.shape[1]}, which is not a grid of {tile}x{tile} tiles"
        )
    tiles = pixels.unfold(1, tile, tile).unfold(2, tile, tile)  # (3, rows, columns, tile, tile)
    return tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, tile, tile)


def comparison_sheet(rows: Sequence[tuple[str, Tensor]], captions: Sequence[str], tile: int) -> PillowImage.Image:
    """Draw one labelled row of pictures per method, one column per prompt.

    Args:
        rows: (label, images (n, 3, H, W) in [-1, 1]).
        captions: n of them, or none.
        tile: pixels of a picture's longer side; smaller ones are enlarged by whole pixels as far as they go.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = rows[0][1].shape[-2:]
    scale = tile / max(height, width)
    scale = max(1, int(scale)) if scale > 1 else scale
    across, down = round(width * scale), round(height * scale)
    size = max(15, tile // 13)  # of the labels, which must be legible when the sheet is shown small
    label_font, caption_font = ImageFont.load_default(size), ImageFont.load_default(11)
    widest = max(round(label_font.getlength(line)) for label, _ in rows for line in label.split("\n"))
    left = max(_LEAST_LABELS, 2 * _MARGIN + widest)
    wrapped = [_wrapped(caption, across, caption_font) for caption in captions]
    top = max(map(len, wrapped), default=0) * 14 + _MARGIN
    columns = max(len(images) for _, images in rows)
    shape = (left + columns * (across + _GAP) + _MARGIN, top + len(rows) * (down + _GAP) + _MARGIN)
    sheet = Image.new("RGB", shape, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(wrapped):
        for i, line in enumerate(lines):
            place = (left + column * (across + _GAP), top - 8 - 14 * (len(lines) - i))
            draw.text(place, line, _INK, caption_font)
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for row, (label, images) in enumerate(rows):
        y = top + row * (down + _GAP)
        lines = label.split("\n")
        for i, line in enumerate(lines):
            draw.text((_MARGIN, y + down / 2 + size * 1.33 * (i - len(lines) / 2)), line, _INK, label_font)
        for column, image in enumerate(images):
            picture = _pillow(image).resize((across, down), resampling)
            sheet.paste(picture, (left + column * (across + _GAP), y))
    return sheet


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pillow(image: Tensor) -> PillowImage.Image:
    from PIL import Image

    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy())
