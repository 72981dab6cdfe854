"""The pair's own solver as a sampler of the host: it takes the predictions with and without the prompt, and combines them as it was fitted to."""

from __future__ import annotations

import itertools
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch

from ..glance_core.errors import GlanceError
from ..glance_core.solver import Solver, refuse_other_steps, solve
from .pair import log


def sampler(solver: Solver) -> Any:
    """SAMPLER that walks as the solver says; its guidance is the solver's own, whatever cfg the guider has."""
    return comfy.samplers.KSAMPLER(_solved, {"solver": solver})


def _solved(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any] | None = None, callback: Any = None,
    disable: bool | None = None, *, solver: Solver,
) -> torch.Tensor:  # fmt: skip
    """A sampler of the host (k-diffusion's calling convention)."""
    ladder = sigmas.tolist()
    refuse_other_steps(solver, ladder)
    options = dict((extra_args or {}).get("model_options", {}))
    if "sampler_cfg_function" in options or options.get("sampler_post_cfg_function"):
        log.warning(
            "Glance: patches that change the guidance of this model have no effect under the pair's own solver; choose sampler euler"
        )
    seen: list[Any] = []

    def keep(args: dict[str, Any]) -> Any:
        if solver.free and args["uncond"] is None:
            raise GlanceError("the pair's solver needs a negative prompt, which this guider has not; use Phase Split Sampler or CFGGuider")
        seen[:] = args["cond_denoised"], args["uncond_denoised"]
        return args["denoised"]

    options = comfy.model_patcher.set_model_options_post_cfg_function(options, keep, disable_cfg1_optimization=bool(solver.free))
    given = {**(extra_args or {}), "model_options": options}
    mask, steps = given.get("denoise_mask"), itertools.count()

    def velocities(x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        denoised = model(x, x.new_full((len(x),), sigma), **given)
        if callback is not None:
            callback({"x": x, "i": next(steps), "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        both = seen if mask is None else [at * mask + model.latent_image * (1 - mask) for at in seen if at is not None]
        return (x - both[0]) / sigma, (x - both[1]) / sigma if solver.free else None

    return solve(solver, ladder, velocities, x)
