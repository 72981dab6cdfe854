"""Latents of several parts, like video with sound. ComfyUI samples them packed into one row (B, 1, N)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.nested_tensor
import comfy.utils
import torch

Tensor = torch.Tensor


def parts(samples: Any) -> list[Tensor]:
    """Return the parts of a latent; a plain one is its own part."""
    return list(samples.unbind()) if samples.is_nested else [samples]


def mapped(samples: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a latent of the same kind whose parts are changed."""
    return _like(samples, list(map(change, parts(samples))))


def joined(samples: Sequence[Any]) -> Any:
    """Return latents of one kind and size as one batch."""
    return _like(samples[0], [torch.cat(same) for same in zip(*map(parts, samples), strict=True)])


def packed(samples: Any) -> Tensor:
    """Return the latent as ComfyUI's samplers see it: a plain one as it is, parts as one row (B, 1, N)."""
    if not samples.is_nested:
        return samples  # type: ignore[no-any-return]
    row, _ = comfy.utils.pack_latents(samples.unbind())
    return row  # type: ignore[no-any-return]


def first_part(row: Tensor, like: Any) -> Tensor:
    """Return the first part of a packed latent, the video of a video with sound.

    Args:
        like: the latent that was packed.
    """
    if not like.is_nested:
        return row
    shapes = [part.shape for part in like.unbind()]
    return comfy.utils.unpack_latents(row, shapes)[0]  # type: ignore[no-any-return]


def _like(samples: Any, changed: list[Tensor]) -> Any:
    return comfy.nested_tensor.NestedTensor(changed) if samples.is_nested else changed[0]
