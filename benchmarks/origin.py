"""Where a number comes from."""

from __future__ import annotations

import datetime
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("glance_core", "nodes", "benchmarks", "__init__.py")  # what a number depends on


@dataclass(frozen=True)
class Origin:
    """When and with which code a number was measured. commit: None without git or outside of a clone."""

    date: str
    commit: str | None


def current_origin() -> Origin:
    """Return today's date and the state of the code."""
    try:
        return Origin(datetime.date.today().isoformat(), state())
    except (OSError, subprocess.CalledProcessError):
        return Origin(datetime.date.today().isoformat(), None)


def state(root: Path = ROOT) -> str:
    """Return the last commit that changed the code, and whether the code was changed since.

    Raises:
        subprocess.CalledProcessError: outside of a clone.
    """

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    last = git("log", "-1", "--format=%h", "--", *CODE)
    return f"{last} and changes" if git("status", "--porcelain", "--", *CODE) else last
