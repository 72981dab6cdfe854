"""How close pictures come to the teacher's, each number with its standard error.

psnr, latent_psnr and trajectory_error give one number per picture, and Measure.of averages them. Two methods on the
same pictures are compared by their paired difference, whose error is far smaller than that of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GlanceError, TrainingError

_FOLDS = 16
_SMALLEST_ERROR = 1e-10  # mean square; equal pictures get 100 dB


@dataclass(frozen=True)
class Measure:
    """A mean and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, column: Tensor) -> Measure:
        """Average a column (n,) of numbers or booleans over pictures."""
        column = column.double()
        if column.ndim != 1 or len(column) < 2:
            raise GlanceError(f"a standard error needs a column of at least 2 values, got shape {tuple(column.shape)}")
        return cls(float(column.mean()), float(column.std() / len(column) ** 0.5))

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


def paired(column: Tensor, control: Tensor) -> Measure:
    """Return the mean difference of two columns (n,) measured on the same pictures."""
    if column.shape != control.shape:
        raise GlanceError(
            f"a paired difference needs equal columns, got {tuple(column.shape)} and {tuple(control.shape)}"
        )
    return Measure.of(column.double() - control.double())


def trimmed(column: Tensor) -> Measure:
    """Average a column (n,) without its lowest and highest fifth.

    A few pictures that turn out as another scene move a plain mean of decibels as much as all others together.
    Differences of two methods had a kurtosis of 10 (docs/RESEARCH.md). Below 5 values nothing is cut.

    Source: Tukey and McLaughlin 1963.
    """
    Measure.of(column)  # raises for columns without a standard error
    ordered = column.double().sort().values
    n, cut = len(ordered), len(ordered) // 5
    winsorized = ordered.clamp(ordered[cut], ordered[n - 1 - cut])  # its spread gives the trimmed mean's error
    return Measure(float(ordered[cut : n - cut].mean()), float(winsorized.std() / ((1 - 2 * cut / n) * n**0.5)))


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (n,) in dB of images (n, C, H, W) in [-1, 1]; 100 dB at most."""
    if images.shape != reference.shape:
        raise GlanceError(
            f"images of shape {tuple(images.shape)} cannot be compared with references of shape "
            f"{tuple(reference.shape)}"
        )
    difference = (images.clamp(-1, 1) - reference.clamp(-1, 1)).double() / 2
    return -10 * torch.log10(difference.square().mean((1, 2, 3)).clamp(min=_SMALLEST_ERROR))


def latent_psnr(results: Tensor, teacher: Tensor) -> Tensor:
    """Return the PSNR (n,) in dB of latents (n, ...) to the teacher's. The peak is the teacher's range."""
    if results.shape != teacher.shape:
        raise TrainingError(
            f"results of shape {tuple(results.shape)} cannot be compared with the teacher's {tuple(teacher.shape)}"
        )
    peak = float(teacher.max() - teacher.min()) or 1.0
    error = ((results - teacher).double() / peak).flatten(1).square().mean(1)
    return -10 * torch.log10(error.clamp(min=_SMALLEST_ERROR))


def trajectory_error(states: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Return the RMS distance (n,) to the teacher's states (each (n, ...)), averaged over the noise levels."""
    if len(states) != len(reference) or not states:
        raise GlanceError(
            f"{len(states)} states cannot be compared with {len(reference)}; both must hold the same noise levels"
        )
    distances = [(a - b).double().flatten(1).square().mean(1).sqrt() for a, b in zip(states, reference, strict=True)]
    return torch.stack(distances).mean(0)


def frechet(features: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features (n, d).

    Source: Heusel et al., arXiv 1706.08500.
    """
    a, b = features.double(), reference.double()
    values, vectors = torch.linalg.eigh(torch.cov(a.T))
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return float(apart + a.var(0).sum() + b.var(0).sum() - 2 * cross)


def frechet_measure(features: Tensor, reference: Tensor) -> Measure:
    """Return `frechet` with its jackknife error.

    Picture i of both sets has the same prompt and noise, so each fold leaves it out of both.
    """
    if len(features) != len(reference):
        raise GlanceError(f"paired sets must have one size, got {len(features)} and {len(reference)} pictures")
    return jackknife(lambda keep: frechet(features[keep], reference[keep]), len(features))


def jackknife(statistic: Callable[[Tensor], float], count: int) -> Measure:
    """Return a statistic of pictures 0 .. count - 1 and its standard error, leaving out a sixteenth at a time.

    Source: Efron 1982.
    """
    if count < 2 * _FOLDS:
        raise GlanceError(f"a jackknife over {_FOLDS} folds needs at least {2 * _FOLDS} pictures, got {count}")
    rows = torch.arange(count)
    left_out = [statistic(rows[rows % _FOLDS != fold]) for fold in range(_FOLDS)]
    values = torch.tensor(left_out, dtype=torch.float64)
    spread = (values - values.mean()).square().sum() * (_FOLDS - 1) / _FOLDS
    return Measure(statistic(rows), float(spread.sqrt()))
