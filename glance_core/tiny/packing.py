"""Pixels as FLUX's 16 latent channels: a fixed linear map, no learned autoencoder.

Each RGB pixel becomes four numbers by the last three columns of a 4 x 4 Hadamard matrix (orthonormal, so distances stay the same):
brightness (R + G + B) / 2 and three colour differences. The 2 x 2 pixels of a block then lie side by side as 4 x 4 = 16 channels.
`unpack(pack(x))` is x; of the 16 channels of an arbitrary latent, the part no picture has (one number per pixel) is dropped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHANNELS = 16
BLOCK = 2  # pixels per latent, in each direction
SCALE, SHIFT = 0.3611, 0.1159  # FLUX's own latent scaling: latent in a file or graph = latent in the model / SCALE + SHIFT

_FRAME = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]) / 2  # orthonormal columns


def pack(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1], H and W even -> latents (B, 16, H/2, W/2) as the model sees them."""
    return F.pixel_unshuffle(torch.einsum("kc,bchw->bkhw", _FRAME.to(pixels), pixels), BLOCK)


def unpack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, 16, h, w) as the model sees them -> pixels (B, 3, 2h, 2w), not clamped."""
    return torch.einsum("kc,bkhw->bchw", _FRAME.to(latents), F.pixel_shuffle(latents, BLOCK))
