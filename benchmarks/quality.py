"""The best picture per forward on the embedded model: the bare base, its searched control, calibration, and every way to train a pair.

Unseen prompts (the first colour and shape never occur together in training) drawn by --seed, the teacher's own noise. Every row is paired
to the searched control (benchmarks.search) at as many forwards. What is trained is kept only where it helps (glance_core/parts.py), by
prompts of its own; the paper's loss is shown as it comes out. A row that was measured stays in --out until the code changes, so a
run that was stopped goes on.

    python -m benchmarks.quality [--json] [--seeds 3] [--seed N] [--prompts 64] [--count 1024] [--out FOLDER]
    python -m benchmarks.quality --minutes 30 --kept docs/quality.json      the rows measured longest ago; the others stay as they are there
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.origin import state
from benchmarks.pairs import examples
from benchmarks.quality_table import table
from glance_core.errors import GlanceError
from glance_core.memory import keep_freed_memory
from glance_core.metrics import Measure, paired, psnr
from glance_core.objectives import ADAPTERS, AIMED, END_TO_END, FLOW, FOLD, SOLVER, TRAJECTORY
from glance_core.parts import named
from glance_core.progress import Progress
from glance_core.tiny import GUIDANCE, load_evaluator, teacher_sigmas
from glance_core.tiny.examples import drawn, with_noise
from glance_core.tiny.judging import Judge
from glance_core.tiny.methods import WALKS, Method, calibrated, model_hash, searched_walks
from glance_core.tiny.painting import REFERENCE_SEED, REFERENCES, Painter, Prompts, draw_prompts, load_references
from glance_core.tiny.pair import PairSettings, keep, sampled, train

CALIBRATED = 10  # forwards
CONTROL = "base, searched"
HELD_OUT = 48  # 24 let a run that gains 1.3 dB be dropped in a quarter of all draws
# Steps of training, and runs of the teacher to learn from; within five minutes on two cores.
BUDGETS = {FLOW: (60, 1), TRAJECTORY: (80, 192), AIMED: (150, 192), END_TO_END: (170, 320)}


@dataclass(frozen=True)
class Entry:
    """What a row measures: a method that is there, or one that `settings` train or `calibrate` finds, from so many prompts."""

    name: str
    prompts: int = 0
    seed: int | None = None
    method: Method | None = None
    settings: PairSettings | None = None

    @property
    def harmless(self) -> bool:
        """Whether what does not help is dropped; the paper's loss is shown as it comes out."""
        return self.settings is not None and self.settings.objective != FLOW

    @property
    def forwards(self) -> int:
        """Of the model, for a picture."""
        if self.settings:
            way = self.settings.way
            return Method("", way.split, way.guidance, solver=way.start).forwards
        return self.method.forwards if self.method else CALIBRATED

    @property
    def place(self) -> tuple[Any, ...]:
        """Which row of a table it is."""
        return self.name, self.forwards, self.method.steps if self.method else None, self.prompts, self.seed

    @property
    def key(self) -> str:
        return json.dumps(asdict(self) | ({"held_out": HELD_OUT} if self.harmless else {}))


@dataclass(frozen=True)
class Row:
    """Numbers of one entry; threads: that it was trained on; column: PSNR (n,) by picture; date and commit of the measurement; others
    [value, standard error over pictures]."""

    method: str
    steps: int
    forwards: int
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each training (default 3)")
    parser.add_argument(
        "--seed", type=int, default=5, help=f"of the prompts to judge on; {REFERENCE_SEED} are those of the other tables (default 5)"
    )
    parser.add_argument("--prompts", type=int, default=64, help="the most prompts to learn from (default 64)")
    parser.add_argument("--count", type=int, default=REFERENCES, help=f"prompts to judge on (default {REFERENCES})")
    parser.add_argument("--only", metavar="TEXT", help="only rows whose name holds this, and the controls")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after so many (default: all rows)")
    parser.add_argument("--kept", type=Path, metavar="JSON", help="of an earlier run; its rows stand where none is measured now")
    parser.add_argument("--out", type=Path, default=Path("glance_quality"), help="where rows are kept (default glance_quality)")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print the table of a run's JSON, and measure nothing")
    parser.add_argument("--forwards", type=int, help="with --show: only the rows with so many forwards, and the teacher")
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(options.show.read_text(encoding="utf-8")), options.forwards))
        return 0
    if not 32 <= options.count <= REFERENCES or options.seeds < 1 or options.prompts < 1:
        parser.error(f"give --count 32 to {REFERENCES}, and --seeds and --prompts of at least 1")
    keep_freed_memory()
    try:
        measured = Bench(options).run()
    except GlanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(measured) if options.json else table(measured))
    return 0


def entries(seeds: int, prompts: int) -> Iterator[Entry]:
    """Every row, in the table's order; what a claim rests on is trained with every seed, what only explains with the first."""
    for count in WALKS:
        yield Entry("base, uniform", method=Method("", WALKS[count]["uniform"]))
    yield Entry("base, uniform, second order", method=Method("", WALKS[5]["uniform"], coefficient=1.0))
    for method in searched_walks():
        yield Entry(f"{CONTROL}{_guidance(method)}", method=method)
    for seed in range(seeds):
        yield Entry("calibrated in 60 s", 32, seed)
        yield Entry("the paper's loss, one picture", 1, seed, settings=PairSettings(FLOW, BUDGETS[FLOW][0], seed=seed))
        for objective in (TRAJECTORY, AIMED, END_TO_END):
            for count in sorted({1, 16, prompts}) if seed == 0 else sorted({1, prompts}) if objective == END_TO_END else [prompts]:
                yield Entry(objective, count, seed, settings=PairSettings(objective, BUDGETS[objective][0], seed=seed))
        for objective in (TRAJECTORY, AIMED, END_TO_END) if seed == 0 else (END_TO_END,):
            yield Entry(f"{objective}{FOLD}", prompts, seed, settings=PairSettings(f"{objective}{FOLD}", BUDGETS[objective][0], seed=seed))
    steps = BUDGETS[END_TO_END][0]
    for learn, name in ((SOLVER, "solver alone"), (ADAPTERS, "adapters alone")):
        yield Entry(f"{END_TO_END}, {name}", prompts, 0, settings=PairSettings(END_TO_END, steps, learn=learn))
    for objective, fewer in ((END_TO_END, (5, 4, 3)), (f"{END_TO_END}{FOLD}", (4, 3, 2))):  # folded, 5 are above
        for forwards in fewer:
            yield Entry(objective, prompts, 0, settings=PairSettings(objective, steps, forwards=forwards))


def _guidance(method: Method) -> str:
    """Which steps have it, where not all have the same."""
    if method.solver is None:
        return "" if method.guidance != 1 else ", no guidance"
    guided = sum(method.solver.guides)
    return ", guidance by step" if guided == method.steps else f", {guided} of {method.steps} steps guided"


class Bench:
    """The prompts, the teacher's pictures of them, and the rows that were measured already."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.painter, self.measured_at = options, Painter(), measured_at()
        self.folder: Path = options.out / f"{model_hash()[:8]}-{options.seed}-{options.count}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.asked: Prompts = draw_prompts(REFERENCES, options.seed, "unseen")[: options.count]
        self.teacher = self._teacher()
        self.judge = Judge(load_evaluator(), self.asked.scenes, self.teacher)

    def run(self) -> dict[str, Any]:
        """Raises GlanceError for what cannot be trained, and where the kept rows are of something else."""
        until = time.monotonic() + 60 * self.options.minutes
        what = {"seed": self.options.seed, "count": self.options.count, "model_sha256": model_hash()}
        every, kept = list(entries(self.options.seeds, self.options.prompts)), self._kept(what)
        controls = [entry for entry in every if entry.name.startswith(CONTROL)]
        rows: dict[tuple[Any, ...], Row] = {}
        for entry in sorted(every, key=lambda entry: (kept.get(entry.place, {}).get("date") or "", -entry.prompts)):
            if self._wanted(entry) and time.monotonic() < until:
                for each in (entry, *(control for control in controls if control.forwards == entry.forwards)):
                    if each.place not in rows:
                        rows[each.place] = self._row(each)
        nearest = {row.forwards: row for row in sorted(rows.values(), key=_mean) if row.method.startswith(CONTROL)}
        told = [_told(rows[place], nearest[place[1]]) if place in rows else kept.get(place) for place in (entry.place for entry in every)]
        seen = self.judge.teacher_row()
        teacher = Row(
            "teacher", 50, 100, 0, None, None, None, None, _pair(seen.all_right), _pair(seen.background), None, None, *self.measured_at
        )
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        return what | {
            "date": self.measured_at[0], "machine": machine, "rows": [_told(teacher, None), *(row for row in told if row)]
        }  # fmt: skip

    def _kept(self, what: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Rows of an earlier run, by their place."""
        if not self.options.kept:
            return {}
        found = json.loads(self.options.kept.read_text(encoding="utf-8"))
        for name, value in what.items():
            if found[name] != value:
                raise GlanceError(f"{self.options.kept}: {name} is {found[name]} there and {value} here; measure all rows, without --kept")
        bare = {row["method"] for row in found["rows"] if row["train_s"] is None}
        return {
            (row["method"], row["forwards"], row["steps"] if row["method"] in bare else None, row["prompts"], row["seed"]): row
            for row in found["rows"]
        }

    def _wanted(self, entry: Entry) -> bool:
        return not self.options.only or self.options.only in entry.name or entry.name.startswith(CONTROL)

    def _teacher(self) -> Tensor:
        if self.options.seed == REFERENCE_SEED:
            return load_references(self.options.count)
        file = self.folder / "teacher.safetensors"
        if not file.exists():
            with Progress("teacher", 50 * self.options.count) as bar:
                pictures = self.painter.paint(self.asked, teacher_sigmas(), GUIDANCE, tick=lambda count: bar.step(count=count))
            half = file.with_suffix(".part")
            save_file({"pictures": pictures}, half)
            half.replace(file)
        return load_file(file)["pictures"]

    def _row(self, entry: Entry) -> Row:
        file = self.folder / "rows.jsonl"
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                key, found = json.loads(line)
                if key == entry.key and found.get("commit") == self.measured_at[1]:
                    return Row(**found)
        row = self._measured(entry)
        with open(file, "a", encoding="utf-8") as kept:
            kept.write(json.dumps([entry.key, asdict(row)]) + "\n")
        return row

    def _measured(self, entry: Entry) -> Row:
        begun = time.monotonic()
        kept, factors, method = None, None, entry.method
        if entry.settings:
            runs = BUDGETS[entry.settings.objective.removesuffix(FOLD)][1]
            done = train(self.painter, entry.settings, examples(entry.settings, entry.prompts, runs))
            if entry.harmless:
                choice = keep(self.painter, entry.settings, done, HELD_OUT)
                done, kept = choice.outcome, named(choice.kept)
            method, factors = sampled(entry.settings, done), done.factors
        elif method is None:
            learnt = with_noise(drawn(entry.prompts, entry.seed or 0), entry.seed or 0, 1)
            method, _ = calibrated(self.painter, learnt.slots, learnt.latents, CALIBRATED, 60.0)
        train_s, threads = (None, None) if entry.method else (round(time.monotonic() - begun, 1), torch.get_num_threads())
        with Progress(entry.name, method.forwards * len(self.asked)) as bar:
            pictures = method.paint(self.painter, self.asked, factors, lambda forwards: bar.step(count=forwards))
        row = self.judge.row(entry.name, pictures, method.steps, method.forwards, 0.0)
        assert row.fd is not None
        column = [round(value, 4) for value in psnr(pictures, self.teacher).tolist()]
        return Row(entry.name, method.steps, method.forwards, entry.prompts, entry.seed, kept, train_s, threads, _pair(row.all_right),
                   _pair(row.background), _pair(row.fd), column, *self.measured_at)  # fmt: skip


def measured_at() -> tuple[str, str | None]:
    """Date and commit."""
    try:
        return datetime.date.today().isoformat(), state()
    except (OSError, subprocess.CalledProcessError):  # no git, or no clone
        return datetime.date.today().isoformat(), None


def _pair(measure: Measure) -> list[float]:
    return [round(measure.value, 4), round(measure.error, 4)]


def _mean(row: Row) -> float:
    return sum(row.column) / len(row.column) if row.column else 0.0


def _told(row: Row, control: Row | None) -> dict[str, Any]:
    """The row as plain numbers, each measure with its standard error over pictures beside it."""
    told: dict[str, Any] = {key: value for key, value in asdict(row).items() if key != "column"}
    measures = {"psnr": None, "paired_to_control": None} | {name: told.pop(name) for name in ("all_right", "background", "fd")}
    if row.column:
        column = torch.tensor(row.column, dtype=torch.float64)
        measures["psnr"] = _pair(Measure.of(column))
        if control and control.column:
            measures["paired_to_control"] = _pair(paired(column, torch.tensor(control.column, dtype=torch.float64)))
    for name, found in measures.items():
        told[name], told[f"{name}_error"] = found or (None, None)
    return told


if __name__ == "__main__":
    sys.exit(main())
