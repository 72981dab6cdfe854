"""Before and after: is the pair closer to the teacher than the base is on the same sigmas?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .metrics import Measure, paired, trimmed


@dataclass(frozen=True)
class PairedComparison:
    """PSNR (n,) to the teacher in dB, of the pair and of the base on the same examples. examples: what they were."""

    pair: Tensor
    base: Tensor
    examples: str

    @property
    def gain(self) -> float:
        """The mean gain in dB."""
        return float((self.pair - self.base).mean())

    @property
    def worse(self) -> bool:
        """Whether the pair is further from the teacher than the base."""
        return self.gain < 0

    def is_better_by(self, errors: float) -> bool:
        """Return whether the trimmed gain exceeds this many standard errors; with one example, whether it exceeds 0."""
        return self.typical_gain > (errors * trimmed(self.pair - self.base).error if len(self.pair) > 1 else 0.0)

    @property
    def typical_gain(self) -> float:
        """The gain in dB without the examples that differ most, either way. Choices are made by this one."""
        return trimmed(self.pair - self.base).value if len(self.pair) > 1 else self.gain

    @property
    def difference(self) -> str:
        """The paired gain as text."""
        if len(self.pair) < 2:
            return f"{self.gain:+.2f} dB"
        return f"{self.gain:+.2f} ± {paired(self.pair, self.base).error:.2f} dB"

    def __str__(self) -> str:
        text = (
            f"PSNR to the teacher on {self.examples}: pair {mean_text(self.pair)} dB, base on the same sigmas "
            f"{mean_text(self.base)} dB, {self.difference}"
        )
        if self.worse:
            return f"WORSE THAN THE BASE: {text}. Use the base on these sigmas without the pair, or train another pair"
        return text


def mean_text(column: Tensor) -> str:
    """Return the mean of a column (n,) as text, with its standard error if there is one."""
    if len(column) < 2:
        return f"{float(column.mean()):.2f}"
    measure = Measure.of(column)
    return f"{measure.value:.2f} ± {measure.error:.2f}"
