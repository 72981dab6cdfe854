"""python -m glance_core.tiny.paint_references --out FILE: paint the teacher's 1024 reference pictures again.

It takes five minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..allocator import keep_freed_memory
from ..plots.image_grid import save_grid
from ..progress import Progress
from ..schedule.sigmas import TEACHER_STEPS
from .painting import REFERENCES, paint_references


def main(arguments: Sequence[str] | None = None) -> int:
    """Paint the pictures, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m glance_core.tiny.paint_references", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new .png file")
    options = parser.parse_args(arguments)
    if options.out.exists() or options.out.suffix != ".png" or not options.out.parent.is_dir():
        raise SystemExit(f"{options.out} must be a new .png file in an existing folder; choose another name")
    keep_freed_memory()
    with Progress("teacher", REFERENCES * TEACHER_STEPS) as bar:
        save_grid(paint_references(tick=lambda count: bar.step(count=count)), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
