"""Write docs/BENCHMARKS.md, and the table in docs/quality.md, from what the benchmarks measured.

The measurements are JSON: docs/quality.json, and docs/benchmarks for all others.

python -m benchmarks.report                                   write the pages from the JSON that is there
python -m benchmarks.report --measure                         run every benchmark first: hours on an idle machine
python -m benchmarks.report --measure sampling_speed growth   run these
python -m benchmarks.report --measure --quick                 run them in minutes, into glance_bench, as a trial
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

from . import quality_table
from .origin import ROOT, state
from .report_limits import LIMITS
from .report_sections import SECTIONS, Section
from .report_tables import Found, table

DOCS = ROOT / "docs"
QUALITY_PAGE = DOCS / "quality.md"
_MARKED = re.compile(
    r"(<!-- from docs/quality\.json by [^>]*?--show docs/quality\.json -->\n).*?(?=<!-- end -->)", re.S
)
_INTRODUCTION = (
    "Written by `python -m benchmarks.report` from [docs/benchmarks](benchmarks). `make bench` measures everything "
    "first. Rivals run beside this pack in one run, in turn. A ratio is the median over rounds (min .. max); other "
    "numbers are medians. Nothing here was measured on a GPU. Below each table stand the command that made it, and "
    "the machine."
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n\n")[0])
    names = [section.name for section in SECTIONS]
    parser.add_argument(
        "--measure", nargs="*", choices=names, metavar="NAME", help=f"run these first, or all: {', '.join(names)}"
    )
    parser.add_argument("--quick", action="store_true", help="with --measure: take minutes, write to glance_bench")
    parser.add_argument(
        "--minutes", type=float, default=30, help="for quality, whose rows take four hours in all (default 30)"
    )
    options = parser.parse_args()
    docs = ROOT / "glance_bench" if options.quick else DOCS
    wanted = [] if options.measure is None else options.measure or names
    failed = [
        section.name
        for section in SECTIONS
        if section.name in wanted and not measure(section, docs, options.quick, options.minutes)
    ]
    (docs / "BENCHMARKS.md").write_text(page(docs), encoding="utf-8")
    if not options.quick:
        text = renewed(QUALITY_PAGE.read_text(encoding="utf-8"), docs / "quality.json")
        QUALITY_PAGE.write_text(text, encoding="utf-8")
    if failed:
        print(
            f"error: {', '.join(failed)} failed; their tables are unchanged, or show what is wrong",
            file=sys.stderr,
        )
    return 1 if failed else 0


def measure(section: Section, docs: Path, quick: bool, minutes: float = 30) -> bool:
    """Run a benchmark, and keep what it printed with where it comes from. Return whether it succeeded."""
    arguments = [each.format(minutes=f"{minutes:g}") for each in (section.quick if quick else section.full)]
    print(f"measuring {section.name}", file=sys.stderr, flush=True)
    commit, date = state(ROOT), datetime.date.today().isoformat()
    command = [sys.executable, "-m", f"benchmarks.{section.name}", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return False
    shown = " ".join(["python -m", f"benchmarks.{section.name}", *arguments])
    file = section.file(docs)
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"command": shown, "date": date, "commit": commit} | found
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return done.returncode == 0


def page(docs: Path) -> str:
    """Return Markdown of everything that was measured."""
    files = {section.name: section.file(docs) for section in SECTIONS}
    measured = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    limits = [line for name, limit in LIMITS.items() for line in limit(measured.get(name))]
    parts = ["# Benchmarks", _INTRODUCTION, "## Limits", table(["what", "limit", "measured", "holds"], limits)]
    for section in SECTIONS:
        parts += [f"## {section.title}", section.about]
        found = measured.get(section.name)
        if found:
            parts += [section.table(found), origin(found)]
        else:
            parts.append(f"Not measured yet: `python -m benchmarks.report --measure {section.name}`.")
    return "\n\n".join(parts) + "\n"


def origin(found: Found) -> str:
    """Return where and how it was measured."""
    command, commit = found.get("command", "python -m benchmarks.quality"), found.get("commit", "not kept")
    note = f" {found['note']}" if "note" in found else ""
    return f"`{command}`, {found['date']}, commit {commit}. Machine: {found['machine']}.{note}"


def renewed(text: str, file: Path) -> str:
    """Return a page with its marked table of quality as the JSON has it."""
    rows = quality_table.table(json.loads(file.read_text(encoding="utf-8")))
    return _MARKED.sub(lambda mark: f"{mark.group(1)}{rows}\n", text)


if __name__ == "__main__":
    sys.exit(main())
