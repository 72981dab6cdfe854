"""python -m glance_core demo: train a pair for the embedded model and compare it with its rivals."""

from __future__ import annotations

import argparse
from pathlib import Path

from .demo import DemoOptions, demo


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--seconds", type=float, default=60, help="how long to train, on two cores (default 60)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("glance_demo"),
        help="folder for the picture and the pair (default glance_demo)",
    )
    parser.add_argument("--seed", type=int, default=0, help="two runs with one seed give the same numbers (default 0)")
    parser.add_argument(
        "--judged", type=int, default=256, metavar="N", help="unseen prompts to compare on (default 256)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    """Print the demo's table. Raises GlanceError."""
    print(demo(DemoOptions(options.seconds, options.out, options.seed, options.judged, options.json)))
