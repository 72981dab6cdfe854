"""A few model calls before a long run, so that what would spoil it is said at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ModelError
from .velocity import NO_PROMPT, RowVelocity

_SAME = 0.01  # of a velocity: some kernels round otherwise each time


def try_model(velocity: Callable[[float], RowVelocity], cfg: float, x: Tensor, sigmas: tuple[float, ...]) -> None:
    """Call the model as a teacher and as a student would, with and without guidance, at two noise levels.

    Args:
        velocity: the model's, by guidance.
        x: noise (1, ...) at the first sigma.
        sigmas: of the teacher.

    Raises:
        ModelError: for an answer of another shape, without a finite value, or that earlier calls change.
    """
    prompt = torch.zeros(1, dtype=torch.long)
    rows = [prompt, torch.full_like(prompt, NO_PROMPT)] if cfg != 1 else [prompt]

    def call(scale: float, sigma: float, row: Tensor) -> Tensor:
        answer = velocity(scale)(x.clone(), x.new_full((1,), sigma), row).float()
        if answer.shape != x.shape:
            raise ModelError(
                f"the model answers a latent of shape {tuple(x.shape)} with one of {tuple(answer.shape)}, so it cannot "
                "be sampled by its noise levels; use another model"
            )
        if not answer.isfinite().all():
            raise ModelError(
                f"the model's answer at noise level {sigma:.3g} is not finite; load it in another precision, such as "
                "bfloat16"
            )
        return answer

    first = call(cfg, sigmas[0], prompt)
    for row in rows:
        call(1.0, sigmas[len(sigmas) // 2], row)
    change = float((call(cfg, sigmas[0], prompt) - first).norm() / first.norm().clamp(min=1e-12))
    if change > _SAME:
        raise ModelError(
            f"the model's answer to the same input changed by {100 * change:.0f} % after a call at another noise "
            "level, so it keeps values between calls; remove nodes that cache or skip steps from it"
        )
