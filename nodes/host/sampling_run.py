"""One run of ComfyUI's sampler, and the schedule that SIGMAS carry to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...glance_core.schedule.phase_schedule import PhaseSchedule
from .base_model import fixed_latent

_TAG = "glance_schedule"
_EMPTY_LATENT_KEYS = ("downscale_ratio_spacial", "downscale_ratio_temporal")


@dataclass(frozen=True)
class Scene:
    """What is sampled, whatever the sampler: prompts, the latent to start from, the noise's seed."""

    positive: Any
    negative: Any
    latent: Mapping[str, Any]
    seed: int


def tagged_sigmas(schedule: PhaseSchedule) -> torch.Tensor:
    """Return SIGMAS (N + 1, float32) that carry their PhaseSchedule as an attribute."""
    sigmas = torch.tensor(schedule.sigmas, dtype=torch.float32)
    setattr(sigmas, _TAG, schedule)
    return sigmas


def schedule_of(sigmas: torch.Tensor) -> PhaseSchedule | None:
    """Return the schedule that SIGMAS carry; None if they come from elsewhere or were cut on their way."""
    return getattr(sigmas, _TAG, None)


def cfg_guider(patcher: Any, cfg: float) -> Any:
    """Return ComfyUI's guider of one model."""
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_cfg(cfg)
    return guider


def sample(guider: Any, scene: Scene, sampler: Any, sigmas: torch.Tensor) -> dict[str, Any]:
    """Run a SAMPLER on these sigmas; previews, masks, batches and interrupts are ComfyUI's. Return a LATENT.

    Args:
        guider: of ComfyUI, with its cfg. It gets the prompts here.
    """
    patcher = guider.model_patcher
    latent, samples = scene.latent, fixed_latent(patcher, scene.latent)
    guider.set_conds(scene.positive, scene.negative)
    result = guider.sample(
        comfy.sample.prepare_noise(samples, scene.seed, latent.get("batch_index")),
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(patcher, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=scene.seed,
    )
    result = result.to(
        device=comfy.model_management.intermediate_device(), dtype=comfy.model_management.intermediate_dtype()
    )
    out = {name: value for name, value in latent.items() if name not in _EMPTY_LATENT_KEYS}
    return out | {"samples": result}
