"""Small pictures of latents, as ComfyUI's samplers show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import latent_preview
import torch
from PIL import Image

from .base_model import base_of

Preview = tuple[str, Image.Image, int]  # format, picture, longest side
SIDE = 512

# Base models whose latents need a map of their own to pixels: latent (C, H, W) -> picture. Filled by their nodes.
PREVIEWERS: dict[str, Callable[[torch.Tensor], Image.Image]] = {}


def preview(patcher: Any, latent: torch.Tensor) -> Preview | None:
    """Return a picture of a latent (1, ...), or None if ComfyUI has none for this model."""
    own = PREVIEWERS.get(base_of(patcher).name)
    if own is not None:
        return "JPEG", own(latent[0].float().cpu()), SIDE
    known: comfy.latent_formats.LatentFormat = patcher.model.latent_format
    if known.latent_rgb_factors is None:
        return None
    maker = latent_preview.Latent2RGBPreviewer(
        known.latent_rgb_factors, known.latent_rgb_factors_bias, known.latent_rgb_factors_reshape
    )
    return maker.decode_latent_to_preview_image("JPEG", latent.float())
