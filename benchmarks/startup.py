"""What the pack adds to ComfyUI's start: real starts of main.py with the pack, with a pack of one empty file, and with none, in turn.

Seconds are the whole process's, from its first to its last; `loading` is what ComfyUI itself measures for each pack. CPU seconds (user and system)
stand beside them, as other work on the machine moves those less.

    python -m benchmarks.startup [--json] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import report_tables
from .process import ROOT, comfyui
from .sampling import machine

EMPTY = {
    "pyproject.toml": '[project]\nname = "empty"\nversion = "1.0.0"\n\n[tool.comfy]\nPublisherId = "empty"\n',
    "__init__.py": "NODE_CLASS_MAPPINGS = {}\n",
}
PACKS = ("none", "empty", "glance")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each kind (default 5)")
    options = parser.parse_args()
    host = comfyui.find()
    if host is None or options.rounds < 1:
        print(
            "error: no ComfyUI found; set COMFYUI_PATH, or put one at ~/ComfyUI" if host is None else "error: give --rounds of at least 1",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        bases = {pack: base(Path(folder) / pack, pack) for pack in PACKS}
        for each in bases.values():
            start(host, each)  # compiles what is compiled once
        runs = {pack: [] for pack in PACKS}
        for _ in range(options.rounds):
            for pack, each in bases.items():
                runs[pack].append(start(host, each))
    rows = [row(pack, runs[pack], runs["none"]) for pack in PACKS]
    found = {"machine": machine(), "rounds": options.rounds, "rows": rows}
    print(json.dumps(found) if options.json else f"{report_tables.startup(found)} {found['machine']}.")
    return 0


def base(folder: Path, pack: str) -> Path:
    """A --base-directory with this pack among its custom nodes."""
    (folder / "custom_nodes").mkdir(parents=True)
    if pack == "glance":
        (folder / "custom_nodes" / "glance").symlink_to(ROOT, target_is_directory=True)
    elif pack == "empty":
        (folder / "custom_nodes" / "empty").mkdir()
        for name, text in EMPTY.items():
            (folder / "custom_nodes" / "empty" / name).write_text(text, encoding="utf-8")
    return folder


def start(host: Path, folder: Path) -> dict[str, float | None]:
    """Seconds of one start that ends as soon as the server could answer; loading: of the pack, as ComfyUI says."""
    command = [sys.executable, "main.py", "--cpu", "--quick-test-for-ci", "--base-directory", str(folder), "--disable-api-nodes",
               "--database-url", "sqlite:///:memory:"]  # fmt: skip
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=host, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True)
    after = os.times()
    told = re.search(r"([\d.]+) seconds: \S*custom_nodes/(?:empty|glance)\b", done.stdout + done.stderr)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": after.children_user + after.children_system - before.children_user - before.children_system,
        "loading": float(told.group(1)) if told else None,
    }


def row(pack: str, runs: list[dict], without: list[dict]) -> dict:
    """Medians, and the paired difference to the starts without a pack of the same rounds."""
    added = sorted(one["cpu"] - other["cpu"] for one, other in zip(runs, without, strict=True))
    loading = [run["loading"] for run in runs if run["loading"] is not None]
    return {
        "pack": pack,
        "seconds": round(statistics.median(run["seconds"] for run in runs), 2),
        "cpu_seconds": round(statistics.median(run["cpu"] for run in runs), 2),
        "cpu_added": round(statistics.median(added), 2),
        "cpu_added_range": [round(added[0], 2), round(added[-1], 2)],
        "loading": round(statistics.median(loading), 2) if loading else None,
    }


if __name__ == "__main__":
    sys.exit(main())
