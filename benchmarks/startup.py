"""What the pack adds to ComfyUI's start, from real starts of main.py: with it, with an empty pack, and with none.

The three take turns. Seconds are those of the whole process. `loading` is what ComfyUI itself measures for each pack.
CPU seconds (user and system) stand beside them, because other work on the machine changes those less.

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
from .process import NO_COMFYUI, ROOT, comfyui, machine

EMPTY = {
    "pyproject.toml": '[project]\nname = "empty"\nversion = "1.0.0"\n\n[tool.comfy]\nPublisherId = "empty"\n',
    "__init__.py": "NODE_CLASS_MAPPINGS = {}\n",
}
PACKS = ("none", "empty", "glance")
_LOADING = re.compile(r"([\d.]+) seconds: \S*custom_nodes/(?:empty|glance)\b")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each kind (default 5)")
    options = parser.parse_args()
    host = comfyui.find()
    if host is None or options.rounds < 1:
        print(NO_COMFYUI if host is None else "error: give --rounds of at least 1", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        bases = {pack: base_folder(Path(folder) / pack, pack) for pack in PACKS}
        for each in bases.values():
            start(host, each)  # unmeasured: Python compiles the modules
        runs = {pack: [] for pack in PACKS}
        for _ in range(options.rounds):
            for pack, each in bases.items():
                runs[pack].append(start(host, each))
    rows = [row(pack, runs[pack], runs["none"]) for pack in PACKS]
    found = {"machine": machine(), "rounds": options.rounds, "rows": rows}
    print(json.dumps(found) if options.json else f"{report_tables.startup_table(found)} {found['machine']}.")
    return 0


def base_folder(folder: Path, pack: str) -> Path:
    """Make and return a --base-directory with this pack among its custom nodes."""
    (folder / "custom_nodes").mkdir(parents=True)
    if pack == "glance":
        (folder / "custom_nodes" / "glance").symlink_to(ROOT, target_is_directory=True)
    elif pack == "empty":
        (folder / "custom_nodes" / "empty").mkdir()
        for name, text in EMPTY.items():
            (folder / "custom_nodes" / "empty" / name).write_text(text, encoding="utf-8")
    return folder


def start(host: Path, folder: Path) -> dict[str, float | None]:
    """Return the seconds of one start that ends as soon as the server could answer. loading: the pack's, by ComfyUI."""
    command = [
        *(sys.executable, "main.py", "--cpu", "--quick-test-for-ci", "--base-directory", str(folder)),
        *("--disable-api-nodes", "--database-url", "sqlite:///:memory:"),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=host, env=environment, capture_output=True, text=True, check=True)
    after = os.times()
    loading = _LOADING.search(done.stdout + done.stderr)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": after.children_user + after.children_system - before.children_user - before.children_system,
        "loading": float(loading.group(1)) if loading else None,
    }


def row(pack: str, runs: list[dict], without: list[dict]) -> dict:
    """Return medians, and the paired difference to the starts without a pack in the same rounds."""
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
