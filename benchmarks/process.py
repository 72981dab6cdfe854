"""What benchmarks inside ComfyUI share: booting it, peak memory, a process to measure it in, and the machine's name."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "host"))
import comfyui  # noqa: E402

NO_COMFYUI = "error: no ComfyUI found; set COMFYUI_PATH, or put one at ~/ComfyUI"
_SECONDS_BETWEEN_LOOKS = 0.002


def boot() -> None:
    """Boot ComfyUI in this process. Without one, end the process with exit code 2."""
    found = comfyui.find()
    if found is None:
        print(NO_COMFYUI, file=sys.stderr)
        raise SystemExit(2)
    comfyui.boot(found)


def last_line(module: str, *arguments: str) -> str:
    """Return the last line that `python -m benchmarks.<module>` prints.

    The allocator of its process returns freed tensors to the system at once.
    """
    environment = os.environ | {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip().splitlines()[-1]


class PeakMemory:
    """The most anonymous resident memory that a block of code took, in bytes above what was there before it."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Watch the memory of this process. The peak stands in the yielded object afterwards."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, done = _resident(), PeakMemory(), threading.Event()

    def watch() -> None:
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            peak.bytes = max(peak.bytes, _resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _resident() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def machine() -> str:
    """Return the processor, its cores, and torch with its threads."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
