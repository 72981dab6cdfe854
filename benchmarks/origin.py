"""Where a number comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("glance_core", "nodes", "benchmarks", "__init__.py")  # what a number depends on


def state(root: Path = ROOT) -> str:
    """The last commit that changed the code, and whether it was changed since; raises subprocess.CalledProcessError outside of a clone."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    last = git("log", "-1", "--format=%h", "--", *CODE)
    return f"{last} and changes" if git("status", "--porcelain", "--", *CODE) else last
