"""The velocity of a loaded model of ComfyUI on its prompts, inside one run of a guider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch

from ...glance_core.sampling.velocity import NO_PROMPT, RowVelocity
from .base_model import base_of
from .host_caches import clear_caches


def entries(conditionings: list[Any] | None) -> list[Any]:
    """Return the prompts of an input list of CONDITIONINGs, each of which may combine several."""
    return [entry for conditioning in conditionings or [] for entry in conditioning or []]


@dataclass(frozen=True)
class Kept:
    """The part of a latent that is not sampled: an inpainting's surroundings, or a video's first picture.

    mask: (1, 1 or C, ...), 1 where it is sampled. latent: (1, C, ...), in the model's scale.
    """

    mask: torch.Tensor
    latent: torch.Tensor


class Conditioned:
    """The guided model on prompts. Rows of a training set are prompts of `positive`, in turn."""

    def __init__(self, guider: Any, extra_args: Mapping[str, Any], kept: Kept | None = None):
        self.guider, self.extra_args, self.kept = guider, dict(extra_args), kept
        self.one_at_a_time = base_of(guider.model_patcher).one_at_a_time
        self.prompts: list[Any] = list(guider.conds["positive"])
        self.negative: list[Any] = list(guider.conds.get("negative") or [])

    def velocity(self, cfg: float, prompts: range | None = None) -> RowVelocity:
        """Return noise - data (B, ...), in float32.

        Args:
            prompts: which of the prompts the rows take; None for all.
        """
        among = prompts if prompts is not None else range(len(self.prompts))

        def predict(x: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            texts = [NO_PROMPT if row == NO_PROMPT else among[row % len(among)] for row in rows.tolist()]
            # One noise level a call: ComfyUI asks the first row whether a control net or a prompt's range applies.
            asked = list(zip(texts, sigma.tolist(), strict=True))
            out: list[Any] = [None] * len(asked)
            for call in dict.fromkeys(asked):
                at, prompt = [i for i, other in enumerate(asked) if other == call], call[0]
                level = sigma[at].reshape(-1, *(1,) * (x.ndim - 1))  # (B, 1, ...)
                self.guider.conds["positive"] = self.negative if prompt == NO_PROMPT else [self.prompts[prompt]]
                self.guider.set_cfg(cfg)
                denoised = self._in_batches(x[at], sigma[at])
                for i, row in zip(at, (x[at] - denoised) / level, strict=True):
                    out[i] = row
            return torch.stack(out)

        return predict

    def _in_batches(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return what `_denoised` does, one row at a time for models that take no batch."""
        if not self.one_at_a_time:
            return self._denoised(x, sigma)
        rows = zip(x.split(1), sigma.split(1), strict=True)
        return torch.cat([self._denoised(*row) for row in rows])

    def _denoised(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the clean latent (B, ...) that the model predicts, with the kept part as it is."""
        clear_caches(self.guider.model_patcher)  # what it kept was computed with other factors
        if self.kept is None:
            return self.guider(x, sigma, **self.extra_args)  # type: ignore[no-any-return]
        masked = comfy.samplers.KSamplerX0Inpaint(self.guider, sigma)
        masked.latent_image, masked.noise = self.kept.latent, self._noise(x.detach(), sigma)
        return masked(x, sigma, denoise_mask=self.kept.mask, **self.extra_args)  # type: ignore[no-any-return]

    def _noise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the noise that a run at x began with, where it is kept: there, every step only takes noise away."""
        sampling, latent = self.guider.inner_model.model_sampling, self.kept.latent  # type: ignore[union-attr]
        level = sigma.reshape(-1, *(1,) * (x.ndim - 1))  # (B, 1, ...)
        zero, one = torch.zeros_like(latent), torch.ones_like(latent)
        unit = sampling.noise_scaling(level, one, zero)
        return (x - sampling.noise_scaling(level, zero, latent)) / unit  # type: ignore[no-any-return]
