"""Sigma rules as data: how a teacher's noise levels follow from the size of the picture and the number of steps.

`schedule/sigmas.py` computes with them. Sources: the scheduler nodes of ComfyUI 0.33 and the pipelines of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class DynamicShift:
    """Shift exp(mu), mu linear in the token count, the last sigma before 0 stretched to `terminal`."""

    name: str
    tokens: tuple[int, int]
    mu: tuple[float, float]
    terminal: float | None = None


class MuLine(NamedTuple):
    """mu = slope * tokens + offset, at this number of steps."""

    steps: int
    slope: float
    offset: float


@dataclass(frozen=True)
class EmpiricalShift:
    """Shift exp(mu), mu linear in the number of steps between two lines.

    Above `most_tokens`, the line of `many` holds at every number of steps.
    """

    name: str
    few: MuLine
    many: MuLine
    most_tokens: int


@dataclass(frozen=True)
class LogitNormal:
    """The logits of the sigmas are normal quantiles with this spread.

    Their mean is `mean` at `tokens` tokens, and rises by half the logarithm of the token count. highest: the first
    sigma, since the quantile of 1 has no end.
    """

    name: str
    mean: float
    spread: float
    tokens: int
    highest: float


@dataclass(frozen=True)
class LinearQuadratic:
    """Half of the steps fall evenly from 1 to 1 - threshold, the others quadratically to 0."""

    name: str
    threshold: float


SigmaRule = DynamicShift | EmpiricalShift | LogitNormal | LinearQuadratic
