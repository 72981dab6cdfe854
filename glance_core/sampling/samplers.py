"""Samplers: free functions of (velocity, x, sigmas), as short as k-diffusion's.

All of them share their arguments:
    velocity: velocity(x, sigma) returns noise - data at noise level sigma (a float), shaped like x.
    x: noisy data (B, ...) at sigmas[0].
    sigmas: falling noise levels.
    callback: callback(step, x, sigma) runs before each call of the model.
Each returns the data (B, ...) at sigmas[-1].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, Tensor, float], None]


def euler(velocity: Velocity, x: Tensor, sigmas: Sequence[float], callback: Callback | None = None) -> Tensor:
    """Sample with Euler's method."""
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
        if callback is not None:
            callback(i, x, sigma)
        x = x + (next_sigma - sigma) * velocity(x, sigma)
    return x


def multistep(
    velocity: Velocity, x: Tensor, sigmas: Sequence[float], callback: Callback | None = None, coefficient: float = 1.0
) -> Tensor:
    """Sample with the two-step Adams-Bashforth method on uneven steps; the first step is Euler's.

    Args:
        coefficient: scales the correction by the last velocity. 1 is second order, 0 is Euler. Few guided steps do
            best in between.

    Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section III.5.
    """
    last: tuple[Tensor, float] | None = None
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
        if callback is not None:
            callback(i, x, sigma)
        v, h = velocity(x, sigma), next_sigma - sigma
        slope = v if last is None else v + (v - last[0]) * (coefficient * h / (2 * last[1]))
        x = x + h * slope
        last = v, h
    return x
