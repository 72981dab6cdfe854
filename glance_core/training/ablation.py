"""Do no harm: keep a trained component (Slow, Fast or solver) only if it helps on held-out examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluation.comparison import PairedComparison
from ..sampling.solver import Solver
from ..schedule.split import FAST, SLOW
from .trainer import Outcome

SOLVER = "solver"
Components = tuple[str, ...]

# Standard errors by which the best subset must beat the base. It is the best of up to seven, so one is too few: in 1000
# draws of 48 examples, a pair that harms (trained on one prompt, -0.2 to -1.5 dB on others) was kept in 9 % at one
# standard error and in 1 % at two.
ERRORS = 2.0


@dataclass(frozen=True)
class AblationResult:
    """What is kept of a training run.

    trained: everything. outcome: the kept components; the others are zero, or the solver it began with.
    comparison: the kept components and the base. tried: PSNR (n,) to the teacher in dB of each subset.
    """

    trained: Outcome
    outcome: Outcome
    kept: Components
    comparison: PairedComparison
    tried: Mapping[Components, Tensor]

    @property
    def all_kept(self) -> AblationResult:
        """The same with all components kept, whatever they do."""
        components = max(self.tried, key=len)
        comparison = replace(self.comparison, pair=self.tried[components])
        return replace(self, outcome=self.trained, kept=components, comparison=comparison)

    @property
    def dropped(self) -> Components:
        """The trained components that are not kept."""
        return tuple(name for name in max(self.tried, key=len) if name not in self.kept)

    @property
    def kept_text(self) -> str:
        """The kept components as text."""
        return component_text(self.kept)

    def __str__(self) -> str:
        if not self.dropped:
            return f"{self.comparison}; kept {self.kept_text}"
        everything = replace(self.all_kept.comparison, base=self.comparison.pair)
        if not self.kept:
            typical = (
                f", {everything.typical_gain:+.2f} dB without the fifths that differ most"
                if len(everything.pair) > 4
                else ""
            )
            return (
                f"Training did not improve on the base model, so the saved LoRAs are zero. Everything that was trained "
                f"changes PSNR by {everything.difference} on {everything.examples}{typical}"
            )
        return (
            f"{self.comparison}; kept {self.kept_text}, not {component_text(self.dropped)}: with everything that was "
            f"trained PSNR changes by {everything.difference}"
        )


def component_text(components: Components) -> str:
    """Return components as text."""
    return ", ".join(components) or "nothing"


def trained_components(outcome: Outcome, start: Solver | None) -> Components:
    """Return what was trained.

    Args:
        start: the solver that training began with.
    """
    return (SLOW, FAST, SOLVER) if outcome.solver is not None and outcome.solver != start else (SLOW, FAST)


def subsets(components: Components, keep_all: bool = False) -> list[Components]:
    """Return the subsets to compare, from nothing to all; only these two if all are kept anyway."""
    if keep_all:
        return [(), components]
    chosen = itertools.product((0, 1), repeat=len(components))
    return [tuple(itertools.compress(components, each)) for each in chosen]


def with_components(outcome: Outcome, kept: Components, start: Solver | None) -> Outcome:
    """Return the outcome with the other components zero, or with the solver that training began with."""
    factors = {
        phase: {
            slot: factor if phase in kept else replace(factor, up=torch.zeros_like(factor.up))
            for slot, factor in phase_factors.items()
        }
        for phase, phase_factors in outcome.factors.items()
    }
    return replace(outcome, factors=factors, solver=outcome.solver if SOLVER in kept else start)


def select_components(
    outcome: Outcome,
    start: Solver | None,
    psnr: Callable[[Outcome], Tensor],
    examples: str,
    keep_all: bool = False,
) -> AblationResult:
    """Return the subset with the best trimmed mean, or nothing if it is not clearly better than the base.

    Args:
        start: the solver that training began with.
        psnr: PSNR (n,) in dB to the teacher on held-out examples, the same each time.
        examples: what they were.
        keep_all: keep every component, and say what they do.
    """
    components = trained_components(outcome, start)
    tried = {kept: psnr(with_components(outcome, kept, start)) for kept in subsets(components, keep_all)}

    def comparison(kept: Components) -> PairedComparison:
        return PairedComparison(tried[kept], tried[()], examples)

    kept = components if keep_all else max(tried, key=lambda each: comparison(each).typical_gain)
    if not keep_all and not comparison(kept).is_better_by(ERRORS):
        kept = ()
    return AblationResult(outcome, with_components(outcome, kept, start), kept, comparison(kept), tried)
