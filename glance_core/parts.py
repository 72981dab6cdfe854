"""Do no harm: of what a training gave, the Slow adapter, the Fast one and a solver, only those are kept that help on held-out examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .objectives import SOLVER
from .schedule import FAST, SLOW
from .solver import Solver
from .training import Outcome
from .verdict import Verdict

Parts = tuple[str, ...]

# Standard errors by which the best set of parts has to be nearer than the bare base. It is the best of up to seven, so one error is too few:
# of 1000 draws of 48 examples a pair that harms (trained on one prompt, -0.2 to -1.5 dB on others) was kept in 9 % at one error, 1 % at two.
ERRORS = 2.0


@dataclass(frozen=True)
class Choice:
    """What is kept of a training: `outcome` has adapters of nothing and the solver it began with in place of what is not.

    trained: all of it; verdict: the kept parts beside the bare base; tried: PSNR (n,) to the teacher, in dB, of each set of parts on the same
    examples.
    """

    trained: Outcome
    outcome: Outcome
    kept: Parts
    verdict: Verdict
    tried: Mapping[Parts, Tensor]

    @property
    def whole(self) -> Choice:
        """The same with all parts kept, whatever they do."""
        parts = max(self.tried, key=len)
        return replace(self, outcome=self.trained, kept=parts, verdict=replace(self.verdict, pair=self.tried[parts]))

    @property
    def dropped(self) -> Parts:
        """The trained parts that are not kept."""
        return tuple(part for part in max(self.tried, key=len) if part not in self.kept)

    @property
    def names(self) -> str:
        """The kept parts, for a reader."""
        return named(self.kept)

    def __str__(self) -> str:
        if not self.dropped:
            return f"{self.verdict}; kept {self.names}"
        beside = replace(self.whole.verdict, base=self.verdict.pair)
        if not self.kept:
            typical = f", {beside.typical:+.2f} dB without the fifths that differ most" if len(beside.pair) > 4 else ""
            return f"NOTHING OF IT HELPED, so the files have no effect: all that was trained comes to {beside.difference} on {beside.examples}{typical}"
        return f"{self.verdict}; kept {self.names}, not {named(self.dropped)}: all that was trained comes to {beside.difference} beside it"


def named(parts: Parts) -> str:
    return ", ".join(parts) or "nothing"


def parts_of(outcome: Outcome, start: Solver | None) -> Parts:
    """What was trained; start: the solver that training began with."""
    return (SLOW, FAST, SOLVER) if outcome.solver is not None and outcome.solver != start else (SLOW, FAST)


def sets_of(parts: Parts, everything: bool = False) -> list[Parts]:
    """The sets of parts that are compared, from nothing to all of them; those two alone where everything is kept anyway."""
    if everything:
        return [(), parts]
    return [tuple(itertools.compress(parts, chosen)) for chosen in itertools.product((0, 1), repeat=len(parts))]


def only(outcome: Outcome, kept: Parts, start: Solver | None) -> Outcome:
    """The outcome without the other parts."""
    factors = {
        phase: {slot: factor if phase in kept else replace(factor, up=torch.zeros_like(factor.up)) for slot, factor in own.items()}
        for phase, own in outcome.factors.items()
    }
    return replace(outcome, factors=factors, solver=outcome.solver if SOLVER in kept else start)


def what_helps(
    outcome: Outcome, start: Solver | None, near: Callable[[Outcome], Tensor], examples: str, everything: bool = False
) -> Choice:
    """The set of parts that comes nearest to the teacher by its trimmed mean, and nothing where that is not clearly nearer (ERRORS) than the bare base.

    near(outcome): PSNR (n,) in dB on held-out examples, the same ones each time; examples: what they were. everything: keep all parts, and
    tell what they do.
    """
    parts = parts_of(outcome, start)
    tried = {kept: near(only(outcome, kept, start)) for kept in sets_of(parts, everything)}
    kept = parts if everything else max(tried, key=lambda each: Verdict(tried[each], tried[()], examples).typical)
    if not everything and not Verdict(tried[kept], tried[()], examples).nearer_by(ERRORS):
        kept = ()
    return Choice(outcome, only(outcome, kept, start), kept, Verdict(tried[kept], tried[()], examples), tried)
