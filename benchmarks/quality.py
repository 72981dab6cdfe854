"""The best picture per model call on the embedded model: the base, its searched control, calibration, and every pair.

--seed draws unseen prompts: their first colour and shape never occur together in training. All methods start from the
teacher's own noise. Every row is paired to the searched control (benchmarks.control_search) with as many model calls.
A trained component is kept only if it helps on prompts of its own (glance_core/training/ablation.py); the paper's loss
is shown as it is. --out keeps measured rows until the code changes, so a stopped run continues.

    python -m benchmarks.quality [--json] [--seeds 3] [--seed N] [--prompts 64] [--count 1024] [--out FOLDER]
    python -m benchmarks.quality --minutes 30 --kept docs/quality.json      measure the oldest rows, keep the others
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.origin import current_origin
from benchmarks.pairs import examples
from benchmarks.quality_rows import CALIBRATION_NFE, Entry, Row, entries, kept_place, rounded, teacher_row
from benchmarks.quality_table import table
from glance_core.allocator import keep_freed_memory
from glance_core.calibration.calibrate import Budget
from glance_core.errors import GlanceError
from glance_core.evaluation.metrics import psnr
from glance_core.lora.factors import Factor
from glance_core.progress import Progress
from glance_core.schedule.sigmas import TEACHER_STEPS
from glance_core.tiny import GUIDANCE, load_evaluator, tiny_sigmas
from glance_core.tiny.distillation import distill_pair, pair_method
from glance_core.tiny.examples import drawn, with_noise
from glance_core.tiny.judging import Judge
from glance_core.tiny.methods import Method, calibrated, model_hash
from glance_core.tiny.painting import (
    REFERENCE_SEED,
    REFERENCES,
    Painter,
    Prompts,
    Watch,
    draw_prompts,
    load_references,
)

CALIBRATION_SECONDS = 60.0
Place = tuple[Any, ...]  # which row of the table


def main() -> int:
    """Print the table or its JSON, and return the exit status."""
    parser = _parser()
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(options.show.read_text(encoding="utf-8")), options.model_calls))
        return 0
    if not 32 <= options.count <= REFERENCES or options.seeds < 1 or options.prompts < 1:
        parser.error(f"use --count 32 to {REFERENCES}, and --seeds and --prompts of at least 1")
    keep_freed_memory()
    try:
        measured = Bench(options).run()
    except GlanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(measured) if options.json else table(measured))
    return 0


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON instead of the table")
    add("--seeds", type=int, default=3, help="runs of each training (default 3)")
    seed_help = f"draws the prompts to judge on; {REFERENCE_SEED} draws those of the other tables (default 5)"
    add("--seed", type=int, default=5, help=seed_help)
    add("--prompts", type=int, default=64, help="the most prompts to learn from (default 64)")
    add("--count", type=int, default=REFERENCES, help=f"prompts to judge on (default {REFERENCES})")
    add("--only", metavar="TEXT", help="only rows whose name contains this, and the controls")
    add("--minutes", type=float, default=float("inf"), help="start no row after this time (default: all rows)")
    add("--kept", type=Path, metavar="JSON", help="an earlier run; its rows stay if they are not measured now")
    add("--out", type=Path, default=Path("glance_quality"), help="folder for measured rows (default glance_quality)")
    add("--show", type=Path, metavar="JSON", help="print the table of a run's JSON, and measure nothing")
    add("--model-calls", type=int, help="with --show: only rows with this many model calls, and the teacher")
    return parser


class Bench:
    """The prompts, the teacher's pictures of them, and the rows that are measured already.

    Raises:
        GlanceError: as `run` does, or for a control of other weights.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.painter, self.origin = options, Painter(), current_origin()
        self.facts = {"seed": options.seed, "count": options.count, "model_sha256": model_hash()}
        self.folder: Path = options.out / f"{model_hash()[:8]}-{options.seed}-{options.count}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prompts: Prompts = draw_prompts(REFERENCES, options.seed, "unseen")[: options.count]
        self.teacher = self._teacher()
        self.judge = Judge(load_evaluator(), self.prompts.scenes, self.teacher)

    def run(self) -> dict[str, Any]:
        """Measure the rows and return them.

        Raises:
            GlanceError: for what cannot be trained, and if the kept rows are not of this table.
        """
        kept = self._kept()
        every = list(entries(self.options.seeds, self.options.prompts))
        rows = {entry.place: self._row(entry) for entry in self._chosen(every, kept)}
        controls = {entry.place for entry in every if entry.is_control}
        best = {row.nfe: row for place, row in sorted(rows.items(), key=lambda each: each[1].psnr) if place in controls}
        lines = [
            rows[place].describe(best[rows[place].nfe]) if place in rows else kept.get(place)
            for place in (entry.place for entry in every)
        ]
        teacher = teacher_row(self.judge.teacher_row(), self.origin).describe(None)
        return self.facts | {
            "date": self.origin.date,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "rows": [teacher, *(line for line in lines if line)],
        }

    def _chosen(self, every: list[Entry], kept: Mapping[Place, dict[str, Any]]) -> Iterator[Entry]:
        """Yield what to measure, the oldest first, until the time is over. Each brings its controls."""
        until = time.monotonic() + 60 * self.options.minutes
        chosen: set[Place] = set()
        for entry in sorted(every, key=lambda entry: (kept.get(entry.place, {}).get("date") or "", -entry.prompts)):
            if self._is_wanted(entry) and time.monotonic() < until:
                for each in (entry, *(other for other in every if other.is_control and other.nfe == entry.nfe)):
                    if each.place not in chosen:
                        chosen.add(each.place)
                        yield each

    def _kept(self) -> dict[Place, dict[str, Any]]:
        """Return the rows of an earlier run."""
        if not self.options.kept:
            return {}
        found = json.loads(self.options.kept.read_text(encoding="utf-8"))
        for name, value in self.facts.items():
            if found[name] != value:
                raise GlanceError(
                    f"{self.options.kept}: {name} is {found[name]} there and {value} here; measure all rows, without "
                    "--kept"
                )
        untrained = {row["method"] for row in found["rows"] if row["train_s"] is None}
        return {kept_place(row, untrained): row for row in found["rows"]}

    def _is_wanted(self, entry: Entry) -> bool:
        return not self.options.only or self.options.only in entry.name or entry.is_control

    def _teacher(self) -> Tensor:
        """Return the teacher's pictures, painted once."""
        if self.options.seed == REFERENCE_SEED:
            return load_references(self.options.count)
        file = self.folder / "teacher.safetensors"
        if not file.exists():
            with Progress("teacher", TEACHER_STEPS * self.options.count) as bar:
                watch = Watch(tick=lambda count: bar.step(count=count))
                pictures = self.painter.paint(self.prompts, tiny_sigmas(), GUIDANCE, watch=watch)
            part = file.with_suffix(".part")
            save_file({"pictures": pictures}, part)
            part.replace(file)
        return load_file(file)["pictures"]

    def _row(self, entry: Entry) -> Row:
        """Return the row, from the folder if this code measured it already."""
        file = self.folder / "rows.jsonl"
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                key, found = json.loads(line)
                if key == entry.key and found.get("commit") == self.origin.commit:
                    return Row(**found)
        row = self._measured(entry)
        with open(file, "a", encoding="utf-8") as kept:
            kept.write(json.dumps([entry.key, asdict(row)]) + "\n")
        return row

    def _measured(self, entry: Entry) -> Row:
        began = time.monotonic()
        method, factors, kept = self._trained(entry)
        seconds = time.monotonic() - began
        with Progress(entry.name, method.nfe * len(self.prompts)) as bar:
            pictures = method.paint(self.painter, self.prompts, factors, lambda calls: bar.step(count=calls))
        judged = self.judge.row(entry.name, pictures, method.steps, method.nfe, 0.0)
        assert judged.fd is not None
        return Row(
            entry.name,
            method.steps,
            method.nfe,
            entry.prompts,
            entry.seed,
            kept,
            train_s=None if entry.method else round(seconds, 1),
            threads=None if entry.method else torch.get_num_threads(),
            all_right=rounded(judged.all_right),
            background=rounded(judged.background),
            fd=rounded(judged.fd),
            column=[round(value, 4) for value in psnr(pictures, self.teacher).tolist()],
            date=self.origin.date,
            commit=self.origin.commit,
        )

    def _trained(self, entry: Entry) -> tuple[Method, Mapping[str, Mapping[str, Factor]] | None, str | None]:
        """Return how the entry paints, its LoRAs, and which components were kept."""
        if entry.method:
            return entry.method, None, None
        if entry.settings is None:
            seed = entry.seed or 0
            learnt = with_noise(drawn(entry.prompts, seed), seed, 1)
            budget = Budget(CALIBRATION_NFE, GUIDANCE, CALIBRATION_SECONDS)
            return calibrated(self.painter, learnt.slots, learnt.latents, budget)[0], None, None
        learnt = examples(entry.settings, entry.prompts, entry.runs)
        found = distill_pair(self.painter, entry.settings, learnt)
        kept = found.ablation.kept_text if found.ablation else None
        return pair_method(entry.settings, found.kept), found.kept.factors, kept


if __name__ == "__main__":
    sys.exit(main())
