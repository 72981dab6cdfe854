"""The published code's inconsistent sampling as a SAMPLER of ComfyUI."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch

from ...glance_core.errors import ScheduleError
from ...glance_core.models import PAPER_RULES
from ...glance_core.sampling.reference import reference_euler, reference_move_sigmas
from ...glance_core.schedule.phase_schedule import threshold_at
from ...glance_core.schedule.sigmas import teacher_sigmas
from ...glance_core.schedule.split import default_boundary
from .base_model import base_of
from .model_sigmas import latent_tokens, model_sigmas
from .patcher import adapters_of, metadata_of

_SAME_SIGMA = 1e-4


def reference_sampler(schedule: str) -> Any:
    """Return a SAMPLER that samples as the published code does."""
    return comfy.samplers.KSAMPLER(_sample, {"schedule": schedule})


def _sample(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Sample in k-diffusion's calling convention. options: `schedule`."""
    patcher = model.inner_model.model_patcher
    shown, shape = sigmas.tolist()[:-1], tuple(x.shape)
    teacher = model_sigmas(patcher, shape, options.get("schedule", "auto"), metadata_of(patcher))
    if teacher.rule not in PAPER_RULES:
        raise ScheduleError(
            f"the reference sampler exists for {' and '.join(PAPER_RULES)} sigmas, not for {teacher.rule}; use "
            "Phase Split Sampler"
        )
    if any(min(abs(sigma - step) for step in teacher.values) > _SAME_SIGMA for sigma in shown):
        raise ScheduleError(f"the reference sampler needs {teacher.rule} sigmas of this size; wire Glance Scheduler's")
    slow = sum(sigma > _threshold(patcher, teacher.values) for sigma in shown)
    if not 0 < slow < len(shown):
        raise ScheduleError(
            f"the reference sampler needs sigmas of both phases, got {slow} Slow of {len(shown)}; wire Glance "
            "Scheduler's sigmas with denoise 1"
        )
    tokens = latent_tokens(shape, base_of(patcher).latents_per_token)
    fast = teacher_sigmas(teacher.rule, len(shown) - slow, tokens=tokens)

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised = model(x, x.new_full((x.shape[0],), sigma), **(extra_args or {}))
        if callback is not None:
            step = shown.index(sigma)
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        return (x - denoised) / sigma

    return reference_euler(velocity, x, shown, reference_move_sigmas(teacher.values, fast, slow))


def _threshold(patcher: Any, teacher: tuple[float, ...]) -> float:
    """Return the sigma above which Slow answers; without a pair, the paper's boundary."""
    carried = adapters_of(patcher)
    if carried is not None and carried.threshold is not None:
        return carried.threshold
    return threshold_at(teacher, default_boundary(len(teacher) - 1))
