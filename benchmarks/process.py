"""What the benchmarks inside ComfyUI share: booting it, the most memory a run takes, and a process of its own to measure that in."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "host"))
import comfyui  # noqa: E402


def boot() -> None:
    """ComfyUI in this process; ends it with 2 where there is none."""
    found = comfyui.find()
    if found is None:
        print("error: no ComfyUI found; set COMFYUI_PATH, or put one at ~/ComfyUI", file=sys.stderr)
        raise SystemExit(2)
    comfyui.boot(found)


def last_line(module: str, *arguments: str) -> str:
    """What `python -m benchmarks.<module>` prints last, in a process whose allocator hands freed tensors back at once."""
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip().splitlines()[-1]


@contextmanager
def most_resident() -> Iterator[list[int]]:
    """[bytes]: afterwards the most anonymous resident memory there was inside, above what there was when it began."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _resident() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024
