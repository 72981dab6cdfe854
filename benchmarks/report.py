"""docs/BENCHMARKS.md, made from what the benchmarks measured, which lies as JSON in docs/benchmarks; quality's is docs/quality.json.

python -m benchmarks.report                            writes the pages from the JSON that is there
python -m benchmarks.report --measure                  runs every benchmark first (hours; on a machine that does nothing else): `make bench`
python -m benchmarks.report --measure sampling growth  runs these
python -m benchmarks.report --measure --quick          runs them in minutes, into glance_bench, to see that they run
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .origin import ROOT, state
from .report_tables import LIMITS, growth, memory, quality, sampling, startup, table, training

DOCS = ROOT / "docs"
SHOWN = re.compile(
    r"(<!-- from docs/quality\.json by [^>]*?--show docs/quality\.json(?: --forwards (\d+))? -->\n).*?(?=<!-- end -->)", re.S
)


@dataclass(frozen=True)
class Section:
    """A benchmark: `python -m benchmarks.<name>` with `full` or `quick` measures it, `table` makes Markdown of its JSON."""

    name: str
    title: str
    said: str
    table: Callable[[dict[str, Any]], str]
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    def file(self, docs: Path) -> Path:
        return docs / "quality.json" if self.name == "quality" else docs / "benchmarks" / f"{self.name}.json"


SECTIONS = (
    Section(
        "sampling", "What a pair costs in sampling",
        "One full-width Qwen-Image block of 369 M parameters, 1024 image tokens, rank 32 on the paper's targets, 10 steps (5 + 5), euler, cfg 1, inside ComfyUI. Every method runs once a "
        "round, in turn; ratios are to the bare base's run of the same round. The switch of this pack is timed itself; a rival's is what two forwards lie further apart there than "
        "elsewhere. Extra memory is the peak above the bare base's own run.",
        sampling, ("--rounds", "5"), ("--rounds", "1", "--dtype", "bf16"),
    ),
    Section(
        "growth", "How that cost grows",
        "The same block: steps with the pair beside bare steps, alternating; ratios are within a round. One thing changes at a time, from 1024 tokens, rank 32, the paper's targets, 2 steps, "
        "batch 1 and 2 phases.",
        growth, ("--rounds", "9"), ("--rounds", "1", "--only", "rank", "phases"),
    ),
    Section(
        "training", "What a step of training costs",
        "This pack, a plain PEFT loop and ComfyUI's own *Train LoRA* on the same model, every Linear, rank 16, batch 1, AdamW, computed in fp32, in turn; ratios are to this pack's run of the "
        "same round, *quicker in* counts the rounds that the rival won, and memory is the peak above the loaded base. What is a quarter slower in each of five rounds is left out of the others. "
        "*Wrong gradients*: FLUX's blocks write into their inputs, and the usual checkpointing runs them again on what was written. Without checkpointing *Train LoRA* cannot train them at all, and "
        "the PEFT loop can only with torch's `allow_mutation_on_saved_tensors`, which it gets here. *Train LoRA* also trains norms and biases and keeps a copy of the model.",
        training, ("--rounds", "21"), ("--rounds", "1", "--case", "4"),
    ),
    Section(
        "memory", "What a step of training takes of a GPU's memory",
        "Predicted for the real sizes at 1024x1024, batch 1, without a GPU; the second table is the check: the same prediction for models that fit here, beside what a process really took.",
        memory, (), ("--check-only",),
    ),
    Section(
        "quality", "What few steps lose, and what training gives back",
        "The embedded model, ten forwards a picture. All rows take four hours: each `make bench` measures as many as its `MINUTES` allow, those measured longest ago first, and the last column says at "
        "which commit each was. Every other number of forwards is in [QUALITY.md](QUALITY.md), and what the columns mean in the "
        "[README](../README.md#what-few-steps-lose-and-what-training-gives-back).",
        quality, ("--minutes", "{minutes}", "--kept", "docs/quality.json"), ("--count", "32", "--seeds", "1", "--only", "searched"),
    ),
    Section(
        "startup", "What the pack adds to ComfyUI's start",
        "Real starts of ComfyUI's `main.py` with this pack, with a pack of one empty file and with none, in turn; *loading* is by ComfyUI's own clock.",
        startup, ("--rounds", "5"), ("--rounds", "1"),
    ),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n\n")[0])
    names = [section.name for section in SECTIONS]
    parser.add_argument("--measure", nargs="*", choices=names, metavar="NAME", help=f"run these first, or all: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="with --measure: settings of minutes, into glance_bench")
    parser.add_argument("--minutes", type=float, default=30, help="for quality, whose rows take four hours in all (default 30)")
    options = parser.parse_args()
    docs = ROOT / "glance_bench" if options.quick else DOCS
    failed = []
    if options.measure is not None:
        for section in SECTIONS:
            if section.name in (options.measure or names) and not measure(section, docs, options.quick, options.minutes):
                failed.append(section.name)
    (docs / "BENCHMARKS.md").write_text(page(docs), encoding="utf-8")
    if not options.quick:
        for path in (ROOT / "README.md", DOCS / "QUALITY.md"):
            path.write_text(renewed(path.read_text(encoding="utf-8"), docs / "quality.json"), encoding="utf-8")
    if failed:
        print(f"error: these did not end well: {', '.join(failed)}; their tables are what they were, or say what is wrong", file=sys.stderr)
    return 1 if failed else 0


def measure(section: Section, docs: Path, quick: bool, minutes: float = 30) -> bool:
    """Run it, and keep what it printed with where it comes from. False where it ended with an error."""
    arguments = [each.format(minutes=f"{minutes:g}") for each in (section.quick if quick else section.full)]
    print(f"measuring {section.name}", file=sys.stderr, flush=True)
    commit, date = state(ROOT), datetime.date.today().isoformat()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{section.name}", "--json", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return False
    origin = {"command": " ".join(["python -m", f"benchmarks.{section.name}", *arguments]), "date": date, "commit": commit}
    file = section.file(docs)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(origin | found, indent=1) + "\n", encoding="utf-8")
    return done.returncode == 0


def page(docs: Path) -> str:
    """Markdown of everything that was measured."""
    measured = {
        section.name: json.loads(section.file(docs).read_text(encoding="utf-8")) for section in SECTIONS if section.file(docs).exists()
    }
    parts = [
        "# Benchmarks",
        "Written by `python -m benchmarks.report` from [docs/benchmarks](benchmarks); `make bench` measures everything anew first. Rivals run beside this pack in one run, in turn; a ratio is the "
        "median over rounds (min .. max), other numbers are medians. No GPU was at hand. Below each table is the command that made it, and where.",
        "## Limits",
        table(["what", "limit", "measured", "holds"], [cells for name, limits in LIMITS.items() for cells in limits(measured.get(name))]),
    ]
    for section in SECTIONS:
        found = measured.get(section.name)
        parts += [f"## {section.title}", section.said]
        parts += (
            [section.table(found), origin(found)]
            if found
            else [f"Not measured yet: `python -m benchmarks.report --measure {section.name}`."]
        )
    return "\n\n".join(parts) + "\n"


def origin(found: dict[str, Any]) -> str:
    note = f" {found['note']}" if "note" in found else ""
    return f"`{found.get('command', 'python -m benchmarks.quality')}`, {found['date']}, commit {found.get('commit', 'not kept')}. Machine: {found['machine']}.{note}"


def renewed(text: str, file: Path) -> str:
    """A page whose tables of quality are those of the JSON."""

    def anew(mark: re.Match[str]) -> str:
        from .quality_table import table as rows

        return mark.group(1) + rows(json.loads(file.read_text(encoding="utf-8")), int(mark.group(2)) if mark.group(2) else None) + "\n"

    return SHOWN.sub(anew, text)


if __name__ == "__main__":
    sys.exit(main())
