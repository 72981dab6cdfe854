"""Whether two models can share one sampling run."""

from __future__ import annotations

from typing import Any

import torch

from ...glance_core.errors import GlanceError

_PROBES = (0.999, 0.9, 0.5, 0.1)  # shares of the highest sigma


def check_models(model: Any, late_model: Any) -> None:
    """Raise GlanceError unless both MODELs see the same latents and noise levels, on the same device."""
    kinds = [type(each.model).__name__ for each in (model, late_model)]
    if kinds[0] != kinds[1]:
        raise GlanceError(f"model is {kinds[0]} and late_model is {kinds[1]}; wire two models of one kind")
    formats = [type(each.get_model_object("latent_format")).__name__ for each in (model, late_model)]
    if formats[0] != formats[1]:
        raise GlanceError(
            f"model has latents of {formats[0]} and late_model of {formats[1]}; wire two models of one kind"
        )
    if model.load_device != late_model.load_device:
        raise GlanceError(
            f"model runs on {model.load_device} and late_model on {late_model.load_device}; load both on one device"
        )
    early, late = (each.get_model_object("model_sampling") for each in (model, late_model))
    if _predictions(early) != _predictions(late):
        raise GlanceError("model and late_model predict different things; give both the same ModelSampling node")
    if not _same_levels(early, late):
        raise GlanceError(
            "model and late_model mean different times by the same noise level; give both the same ModelSampling node"
        )


def _predictions(sampling: Any) -> list[str]:
    """Return the classes that a model sampling is made of: ComfyUI makes one of its own for each model."""
    return [f"{each.__module__}.{each.__qualname__}" for each in type(sampling).__mro__[1:]]


def _same_levels(early: Any, late: Any) -> bool:
    """Return whether both tell the model the same time at a noise level, and scale noise alike.

    A shift that only one of them has makes other sigmas of its steps, not another time of a sigma.
    """
    some = torch.tensor([share * float(early.sigma_max) for share in _PROBES])
    times = [each.timestep(some).float().cpu() for each in (early, late)]
    return torch.allclose(*times, rtol=1e-4) and getattr(early, "noise_scale", 1.0) == getattr(late, "noise_scale", 1.0)
