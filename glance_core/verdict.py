"""Before and after: is the pair nearer to the teacher than the bare base is on the same ladder?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import TrainingError
from .metrics import Measure, paired, trimmed


@dataclass(frozen=True)
class Verdict:
    """PSNR (n,) to the teacher's results, in dB, of the pair and of the bare base, on `examples` (what they were: for the reader)."""

    pair: Tensor
    base: Tensor
    examples: str

    @property
    def gain(self) -> float:
        return float((self.pair - self.base).mean())

    @property
    def worse(self) -> bool:
        return self.gain < 0

    def nearer_by(self, errors: float) -> bool:
        """Whether the pair is nearer by more than so many standard errors, by trimmed means; with one example, at all."""
        return self.typical > (errors * trimmed(self.pair - self.base).error if len(self.pair) > 1 else 0.0)

    @property
    def typical(self) -> float:
        """The gain in dB without the examples that differ most, either way: what choices are made by."""
        return trimmed(self.pair - self.base).value if len(self.pair) > 1 else self.gain

    @property
    def difference(self) -> str:
        """The paired gain for a reader."""
        return f"{self.gain:+.2f} dB" if len(self.pair) < 2 else f"{self.gain:+.2f} ± {paired(self.pair, self.base).error:.2f} dB"

    def __str__(self) -> str:
        told = f"PSNR to the teacher on {self.examples}: pair {mean(self.pair)} dB, bare base on the same ladder {mean(self.base)} dB, {self.difference}"
        if self.worse:
            return f"WORSE THAN THE BARE BASE: {told}; use the base on this ladder without the pair, or train otherwise"
        return told


def latent_psnr(results: Tensor, teacher: Tensor) -> Tensor:
    """PSNR (n,) in dB of latents (n, ...) to the teacher's, the peak being the range of all of the teacher's numbers; 100 dB at most."""
    if results.shape != teacher.shape:
        raise TrainingError(f"results of shape {tuple(results.shape)} cannot be compared with the teacher's {tuple(teacher.shape)}")
    peak = float(teacher.max() - teacher.min()) or 1.0
    error = ((results - teacher).double() / peak).flatten(1).square().mean(1)
    return -10 * torch.log10(error.clamp(min=1e-10))


def mean(column: Tensor) -> str:
    """For a reader, with its standard error where there is one."""
    if len(column) < 2:
        return f"{float(column.mean()):.2f}"
    measure = Measure.of(column)
    return f"{measure.value:.2f} ± {measure.error:.2f}"
