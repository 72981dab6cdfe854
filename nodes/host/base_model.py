"""Which model a MODEL of ComfyUI is, and what it computes in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import comfy.model_sampling
import comfy.sample
import torch

from ...glance_core.errors import GlanceError, ScheduleError
from ...glance_core.lora.keys import without_compiler
from ...glance_core.model_row import BaseModel
from ...glance_core.models import MODELS, identify
from .nested import parts

_COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def base_of(patcher: Any) -> BaseModel:
    """Return the model's row of models.py."""
    config = getattr(patcher.model, "model_config", None)
    return identify(type(patcher.model).__name__, type(config).__name__, _unet_config(patcher))


def _unet_config(patcher: Any) -> Mapping[str, Any]:
    return getattr(getattr(patcher.model, "model_config", None), "unet_config", None) or {}


def is_known(patcher: Any) -> bool:
    """Return whether models.py has a row for this model."""
    return base_of(patcher).name in MODELS


def known_parent(patcher: Any) -> str | None:
    """Return the nearest class with a row that a model without one is of, or derives from."""
    if is_known(patcher):
        return None
    listed = {name for row in MODELS.values() for name in row.classes}
    return next((each.__name__ for each in type(patcher.model).__mro__ if each.__name__ in listed), None)


def class_name(patcher: Any) -> str:
    """Return the model's class, or its configuration's if a newer ComfyUI gives that class another configuration."""
    name = type(patcher.model).__name__
    return type(patcher.model.model_config).__name__ if name == known_parent(patcher) else name


def describe(patcher: Any) -> str:
    """Return class and base model as text, for messages."""
    return f"{type(patcher.model).__name__} ({base_of(patcher).name})"


def fingerprint(patcher: Any) -> str:
    """Return a hash of the names and shapes of the model's weights: equal for a model and its fine-tunes."""
    parameters = patcher.model.diffusion_model.named_parameters()
    shapes = sorted(f"{without_compiler(name)} {tuple(p.shape)}" for name, p in parameters)
    return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]


def compute_dtype(patcher: Any) -> torch.dtype:
    """Return the dtype that the model computes in; never one that only stores weights, such as fp8."""
    dtype = patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
    return dtype if dtype in _COMPUTE_DTYPES else torch.bfloat16


def is_flow(patcher: Any) -> bool:
    """Return whether the model's sigmas are those of a flow, from 1 down."""
    return isinstance(patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST)


def noise_scale(patcher: Any) -> float:
    """Return the standard deviation of the noise that the model is trained on: 1, but for a few models."""
    if not is_flow(patcher):
        return 1.0
    sampling = patcher.get_model_object("model_sampling")
    return float(sampling.noise_scaling(torch.ones(1), torch.ones(1), torch.zeros(1)))


def check_flow(patcher: Any, what: str) -> None:
    """Raise ScheduleError unless it is a flow model."""
    if not is_flow(patcher):
        raise ScheduleError(
            f"{what} are for flow models, and {type(patcher.model).__name__} is not one; choose schedule auto or model"
        )


def check_needs_no_next_sigma(patcher: Any) -> None:
    """Raise GlanceError for models whose answer depends on the run's next sigma, so that no step stands for itself."""
    if _unet_config(patcher).get("meanflow"):
        raise GlanceError(
            f"{type(patcher.model).__name__} is a MeanFlow model, made for few steps: what it answers depends on where "
            "the next step goes. It cannot be trained, calibrated or plotted; use the model that it was distilled from"
        )


def fixed_latent(patcher: Any, latent: Mapping[str, Any]) -> torch.Tensor:
    """Return the latent as ComfyUI's samplers take it: an empty one gets the model's channels and scale."""
    spatial, temporal = latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    return comfy.sample.fix_empty_latent_channels(patcher, latent["samples"], spatial, temporal)


def first_mask(latent: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the noise_mask of a LATENT's first item, 1 where it is sampled; None if all of it is."""
    mask = latent.get("noise_mask")
    if mask is None:
        return None
    if mask.is_nested:
        raise GlanceError("a mask of several parts (video with sound) cannot be used here; remove the mask")
    first = mask[:1] if mask.ndim > 2 else mask
    check_mask_lets_something_change(first)
    return first  # type: ignore[no-any-return]


def check_mask_lets_something_change(mask: torch.Tensor) -> None:
    """Raise GlanceError if a noise_mask is 0 everywhere."""
    if not mask.any():
        raise GlanceError(
            "the mask of the latent is 0 everywhere, so nothing of it would be sampled; paint what may change, or "
            "remove the mask"
        )


def latent_shape(patcher: Any, latent: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of the latent that will be sampled; of a nested one (video with sound) the first part's."""
    return tuple(parts(fixed_latent(patcher, latent))[0].shape)


def picture_size(patcher: Any, shape: tuple[int, ...]) -> str | None:
    """Return the pixels, as `WxH`, that a latent (..., H, W) decodes to; None for sound and shapes."""
    latents = patcher.model.latent_format
    if latents.latent_dimensions < 2 or not base_of(patcher).pictures:
        return None
    height, width = (side * latents.spacial_downscale_ratio for side in shape[-2:])
    return f"{width}x{height}"
