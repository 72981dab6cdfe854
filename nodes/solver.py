"""The pair's own solver as a sampler of the host: it takes the predictions with and without the prompt, and combines them as it was fitted to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
        seen[:] = args["cond_denoised"], args["uncond_denoised"], args["uncond"]
        return args["denoised"]

    given = [
        {**(extra_args or {}), "model_options": comfy.model_patcher.set_model_options_post_cfg_function(dict(options), keep, guided)}
        for guided in (False, True)
    ]
    mask, steps = given[0].get("denoise_mask"), itertools.count()

    def velocities(x: torch.Tensor, sigma: float, guided: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        with nullcontext() if guided else _without_guidance(model.inner_model):
            denoised = model(x, x.new_full((len(x),), sigma), **given[guided])
        if guided and seen[2] is None:
            raise GlanceError("the pair's solver needs a negative prompt, which this guider has not; use Phase Split Sampler or CFGGuider")
        if callback is not None:
            callback({"x": x, "i": next(steps), "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        both = [at if mask is None else at * mask + model.latent_image * (1 - mask) for at in seen[: 1 + guided]]
        return (x - both[0]) / sigma, (x - both[1]) / sigma if guided else None

    return solve(solver, ladder, velocities, x)


@contextmanager
def _without_guidance(guider: Any) -> Iterator[None]:
    """The guider at cfg 1, so that it leaves out the negative prompt."""
    before = getattr(guider, "cfg", None)
    if before is None:  # a guider of another kind: it computes what it computes
        yield
        return
    guider.cfg = 1.0
    try:
        yield
    finally:
        guider.cfg = before
