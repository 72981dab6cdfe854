"""Pixels as FLUX's 16 latent channels: a fixed linear map instead of a learned autoencoder.

Each RGB pixel becomes four numbers by the last three columns of a 4 x 4 Hadamard matrix: brightness (R + G + B) / 2 and
three colour differences. The columns are orthonormal, so distances stay the same. The 2 x 2 pixels of a block then lie
side by side as 4 x 4 = 16 channels. `unpack(pack(x))` is x. An arbitrary latent has one number per pixel that a picture
cannot have; `unpack` drops it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHANNELS = 16
BLOCK = 2  # pixels per latent, in each direction
# FLUX's own latent scaling: a latent in a file or graph = a latent in the model / SCALE + SHIFT.
SCALE, SHIFT = 0.3611, 0.1159

_FRAME = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]) / 2


def pack(pixels: torch.Tensor) -> torch.Tensor:
    """Map pixels (B, 3, H, W) in [-1, 1], H and W even, to latents (B, 16, H/2, W/2) as the model sees them."""
    return F.pixel_unshuffle(torch.einsum("kc,bchw->bkhw", _FRAME.to(pixels), pixels), BLOCK)


def unpack(latents: torch.Tensor) -> torch.Tensor:
    """Map latents (B, 16, h, w) as the model sees them to pixels (B, 3, 2h, 2w), not clamped."""
    return torch.einsum("kc,bkhw->bchw", _FRAME.to(latents), F.pixel_shuffle(latents, BLOCK))
