"""A cheaper teacher: every third of its steps in second order, if that was measured to be close enough to all steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .rollout import Teacher, rollout

EVERY = 3  # measured: 3 reached 44 dB, 4 and more at most 38
CLOSE_ENOUGH = 40.0  # dB: ten times less error than a pair of 30 dB is left with
PROBES = 4  # runs that are sampled both ways
Closeness = Callable[[Tensor, Tensor], Tensor]  # (results, the teacher's results) -> PSNR (n,) in dB


@dataclass(frozen=True)
class CheapTeacher:
    """visited_steps: the teacher steps to take, None for all. psnr: of its results to all steps', dB, if measured."""

    visited_steps: tuple[int, ...] | None = None
    psnr: float | None = None

    def __str__(self) -> str:
        if self.psnr is None:
            return "all steps"
        measured = f"every {EVERY}rd step in second order reaches {self.psnr:.1f} dB on {PROBES} runs"
        return f"{measured}, so only these steps" if self.visited_steps else f"{measured}, so all steps"

    def with_steps(self, steps: Sequence[int]) -> tuple[int, ...] | None:
        """Return the steps to take if these are needed too."""
        return tuple(sorted({*self.visited_steps, *steps})) if self.visited_steps else None


def find_cheap_teacher(
    teacher: Teacher, noise: Tensor, closeness: Closeness, steps: Sequence[int] = (0,)
) -> CheapTeacher:
    """Measure on the first runs whether fewer teacher steps are close enough.

    Args:
        noise: the start of every run (n, ...). For few runs all steps cost less than the measurement.
        steps: teacher steps that are taken anyway.
    """
    if len(noise) < 3 * PROBES or teacher.steps < 4 * EVERY:
        return CheapTeacher()
    fewer = tuple(sorted({*range(0, teacher.steps, EVERY), *steps}))
    cheap, full = (rollout(teacher, noise[:PROBES], (0,), visited).states[-1] for visited in (fewer, None))
    psnr = float(closeness(cheap, full).mean())
    return CheapTeacher(fewer if psnr >= CLOSE_ENOUGH else None, psnr)
