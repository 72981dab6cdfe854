"""A Solver as a SAMPLER of ComfyUI: it combines the predictions with and without the prompt by itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch

from ...glance_core.errors import GlanceError
from ...glance_core.sampling.solver import Solver, check_steps, solve
from .log import log


def solver_sampler(solver: Solver) -> Any:
    """Return a SAMPLER whose guidance is the solver's own, whatever cfg the guider has."""
    return comfy.samplers.KSAMPLER(_sample, {"solver": solver})


def _sample(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Sample in k-diffusion's calling convention. options: `solver`."""
    solver: Solver = options["solver"]
    levels = sigmas.tolist()
    check_steps(solver, levels)
    predictions = _Predictions(model, extra_args or {}, callback)
    return solve(solver, levels, predictions.velocities, x)


class _Predictions:
    """The model's predictions with and without the prompt, as ComfyUI's guidance hands them to a function of ours."""

    def __init__(self, model: Any, extra_args: dict[str, Any], callback: Any):
        self.model, self.callback, self.steps = model, callback, itertools.count()
        self.mask = extra_args.get("denoise_mask")
        options = dict(extra_args.get("model_options", {}))
        if "sampler_cfg_function" in options or options.get("sampler_post_cfg_function"):
            log.warning(
                "Glance: patches that change this model's guidance have no effect with the pair's own solver; choose "
                "sampler euler"
            )
        self.cond = self.uncond = self.negative = None
        self.extra_args = {
            guided: {
                **extra_args,
                "model_options": comfy.model_patcher.set_model_options_post_cfg_function(
                    dict(options), self._keep, guided
                ),
            }
            for guided in (False, True)
        }

    def _keep(self, args: dict[str, Any]) -> Any:
        self.cond, self.uncond, self.negative = args["cond_denoised"], args["uncond_denoised"], args["uncond"]
        return args["denoised"]

    def velocities(self, x: torch.Tensor, sigma: float, guided: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return noise - data with the prompt and without it; the second is None if not guided."""
        with nullcontext() if guided else _without_guidance(self.model.inner_model):
            denoised = self.model(x, x.new_full((len(x),), sigma), **self.extra_args[guided])
        if guided and self.negative is None:
            raise GlanceError(
                "the pair's solver needs a negative prompt, and this guider has none; use Phase Split Sampler or "
                "CFGGuider"
            )
        if self.callback is not None:
            step = next(self.steps)
            self.callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        cond = (x - self._masked(self.cond)) / sigma
        return cond, (x - self._masked(self.uncond)) / sigma if guided else None

    def _masked(self, denoised: Any) -> torch.Tensor:
        """Return the prediction with the kept part of the latent where a mask says so."""
        if self.mask is None:
            return denoised
        return denoised * self.mask + self.model.latent_image * (1 - self.mask)


@contextmanager
def _without_guidance(guider: Any) -> Iterator[None]:
    """Set the guider to cfg 1, so that it skips the negative prompt."""
    before = getattr(guider, "cfg", None)
    if before is None:  # a guider of another kind computes what it computes
        yield
        return
    guider.cfg = 1.0
    try:
        yield
    finally:
        guider.cfg = before
