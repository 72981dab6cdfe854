"""python -m glance_core inspect: print what the loader makes of an adapter or a pair."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import AdapterError, printable
from ..lora.pair_check import check_pair
from ..lora.reader import read_adapter


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="one adapter, or a pair with Slow first")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    """Print the description. Raises AdapterError."""
    if len(options.files) > 2:
        raise AdapterError(f"inspect takes one adapter or a pair, got {len(options.files)} files; give Slow, then Fast")
    adapters = [read_adapter(path) for path in options.files]
    notes = check_pair(adapters[0], adapters[1]) if len(adapters) == 2 else ()
    if options.json:
        print(json.dumps({"files": [a.describe() for a in adapters], "pair": list(notes)}))
        return
    for adapter in adapters:
        print("\n".join(_lines(adapter.describe())))
    for note in notes:
        print(f"pair: {note}")


def _lines(described: dict[str, Any]) -> list[str]:
    lines = [described["file"]]
    for name, value in described.items():
        if name == "file" or value is None or value == []:
            continue
        if name in ("assumed", "skipped", "remarks"):
            lines += [f"  {name:13s} {item}" for item in value]
            continue
        shown = value
        if isinstance(value, list):
            shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        lines.append(f"  {name:13s} {shown}")
    return [printable(line) for line in lines]
