"""The rows that benchmarks.quality measures, and the numbers that a row holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.origin import Origin
from glance_core.evaluation.metrics import Measure, paired
from glance_core.tiny.distillation import PairSettings
from glance_core.tiny.judging import Row as Judged
from glance_core.tiny.methods import SPLITS, Method, searched_controls
from glance_core.training.objectives import Learn, Objective

CALIBRATION_NFE = 10
CONTROL = "base, searched"
FOLDED = "guidance folded in"
HELD_OUT = 48  # with 24, a run that gains 1.3 dB was dropped in a quarter of all draws


class Budget(NamedTuple):
    """steps: of training. runs: of the teacher to learn from."""

    steps: int
    runs: int


# Within five minutes on two cores.
BUDGETS = {
    Objective.FLOW_MATCHING: Budget(60, 1),
    Objective.TEACHER_FORCED: Budget(80, 192),
    Objective.ON_POLICY: Budget(150, 192),
    Objective.END_TO_END: Budget(170, 320),
}
TAUGHT = (Objective.TEACHER_FORCED, Objective.ON_POLICY, Objective.END_TO_END)


@dataclass(frozen=True)
class Entry:
    """What a row measures: a `method` as it is, or one that `settings` train or `calibrate` finds.

    prompts: how many it learns from. seed: of its training.
    """

    name: str
    prompts: int = 0
    seed: int | None = None
    method: Method | None = None
    settings: PairSettings | None = None

    @property
    def is_control(self) -> bool:
        """Whether other rows are compared to it."""
        return self.name.startswith(CONTROL)

    @property
    def runs(self) -> int:
        """How many runs of the teacher it learns from."""
        assert self.settings is not None
        return BUDGETS[Objective(self.settings.objective)].runs

    @property
    def nfe(self) -> int:
        """Model calls per picture."""
        if self.settings:
            steps = self.settings.student_steps
            return Method("", steps.split, steps.cfg, solver=steps.start).nfe
        return self.method.nfe if self.method else CALIBRATION_NFE

    @property
    def place(self) -> tuple[Any, ...]:
        """What tells this row of a table from the others."""
        return self.name, self.nfe, self.method.steps if self.method else None, self.prompts, self.seed

    @property
    def key(self) -> str:
        """Everything that the row's numbers depend on, besides the code and the prompts to judge on."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Row:
    """The numbers of one entry.

    threads: that it was trained on. all_right, background, fd: [value, standard error over pictures]. column: PSNR (n,)
    in dB of each picture. date, commit: of the measurement.
    """

    method: str
    steps: int
    nfe: int
    prompts: int
    seed: int | None
    kept: str | None
    train_s: float | None
    threads: int | None
    all_right: list[float]
    background: list[float]
    fd: list[float] | None
    column: list[float] | None
    date: str | None = None
    commit: str | None = None

    @property
    def psnr(self) -> float:
        """The mean PSNR in dB, 0 without pictures to compare to."""
        return sum(self.column) / len(self.column) if self.column else 0.0

    def describe(self, control: Row | None) -> dict[str, Any]:
        """Return plain numbers, each measure with its standard error over pictures."""
        plain = asdict(self)
        del plain["column"]
        measures: dict[str, list[float] | None] = {"psnr": None, "paired_to_control": None}
        measures |= {name: plain.pop(name) for name in ("all_right", "background", "fd")}
        if self.column:
            column = torch.tensor(self.column, dtype=torch.float64)
            measures["psnr"] = rounded(Measure.of(column))
            if control and control.column:
                measures["paired_to_control"] = rounded(paired(column, torch.tensor(control.column).double()))
        for name, measure in measures.items():
            plain[name], plain[f"{name}_error"] = measure or (None, None)
        return plain


def rounded(measure: Measure) -> list[float]:
    """Return value and standard error to four digits."""
    return [round(measure.value, 4), round(measure.error, 4)]


def teacher_row(seen: Judged, origin: Origin) -> Row:
    """Return the teacher's row."""
    return Row(
        "teacher",
        seen.steps,
        seen.nfe,
        prompts=0,
        seed=None,
        kept=None,
        train_s=None,
        threads=None,
        all_right=rounded(seen.all_right),
        background=rounded(seen.background),
        fd=None,
        column=None,
        date=origin.date,
        commit=origin.commit,
    )


def kept_place(row: dict[str, Any], untrained: set[str]) -> tuple[Any, ...]:
    """Return `Entry.place` of a row as `Row.describe` gave it.

    Args:
        untrained: methods that learn nothing. Only their steps tell rows apart.
    """
    steps = row["steps"] if row["method"] in untrained else None
    return row["method"], row["nfe"], steps, row["prompts"], row["seed"]


def entries(seeds: int, prompts: int) -> Iterator[Entry]:
    """Yield every row in the table's order. Rows behind a claim use every seed, rows that only explain the first."""
    yield from _untrained()
    for seed in range(seeds):
        yield Entry("calibrated in 60 s", 32, seed)
        yield Entry(
            "the paper's loss, one picture", 1, seed, settings=_settings(Objective.FLOW_MATCHING, seed, checks=0)
        )
        for objective in TAUGHT:
            for count in _counts(objective, seed, prompts):
                yield Entry(str(objective), count, seed, settings=_settings(objective, seed))
        for objective in TAUGHT if seed == 0 else (Objective.END_TO_END,):
            yield _folded(objective, prompts, seed)
    for learn, part in ((Learn.SOLVER, "solver alone"), (Learn.ADAPTERS, "adapters alone")):
        name = f"{Objective.END_TO_END}, {part}"
        yield Entry(name, prompts, 0, settings=_settings(Objective.END_TO_END, 0, learn=learn))
    for nfe in (5, 4, 3):
        yield Entry(str(Objective.END_TO_END), prompts, 0, settings=_settings(Objective.END_TO_END, 0, nfe=nfe))
    for nfe in (4, 3, 2):  # 5 are above
        yield _folded(Objective.END_TO_END, prompts, 0, nfe)


def _untrained() -> Iterator[Entry]:
    for splits in SPLITS.values():
        yield Entry("base, uniform", method=Method("", splits["uniform"]))
    yield Entry("base, uniform, second order", method=Method("", SPLITS[5]["uniform"], coefficient=1.0))
    for method in searched_controls():
        yield Entry(f"{CONTROL}{_guidance(method)}", method=method)


def _counts(objective: Objective, seed: int, prompts: int) -> list[int]:
    """Return how many prompts to learn from, one number for each row."""
    if seed == 0:
        return sorted({1, 16, prompts})
    return sorted({1, prompts}) if objective is Objective.END_TO_END else [prompts]


def _folded(objective: Objective, prompts: int, seed: int, nfe: int = 0) -> Entry:
    settings = _settings(objective, seed, fold_guidance=True, nfe=nfe)
    return Entry(f"{objective}, {FOLDED}", prompts, seed, settings=settings)


def _settings(objective: Objective, seed: int, checks: int = HELD_OUT, **more: Any) -> PairSettings:
    return PairSettings(objective, steps=BUDGETS[objective].steps, seed=seed, checks=checks, **more)


def _guidance(method: Method) -> str:
    """Return which steps are guided, if not all are guided alike."""
    if method.solver is None:
        return "" if method.guidance != 1 else ", no guidance"
    guided = sum(method.solver.guided_steps)
    return ", guidance by step" if guided == method.steps else f", {guided} of {method.steps} steps guided"
