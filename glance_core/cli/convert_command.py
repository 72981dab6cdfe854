"""python -m glance_core convert: rewrite an adapter in the project's format, or for diffusers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import AdapterError
from ..lora.reader import read_adapter, with_alpha
from ..lora.writer import COMFYUI, DIFFUSERS, convert
from ..schedule.split import FAST, SLOW


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", metavar="OUT", help="a new .safetensors file")
    parser.add_argument("--phase", choices=[SLOW, FAST], help="what the adapter was trained for")
    parser.add_argument("--alpha", type=float, help="the alpha it was trained with; replaces what the file says")
    parser.add_argument(
        "--layout",
        default=COMFYUI,
        choices=[COMFYUI, DIFFUSERS],
        help="who will read it (default comfyui, and this pack)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the new file, and print its path. Raises AdapterError."""
    if Path(options.output).suffix != ".safetensors":
        raise AdapterError(f"{options.output}: adapters are safetensors files; let the name end with .safetensors")
    adapter = read_adapter(options.input)
    if options.alpha is not None:
        adapter = with_alpha(adapter, options.alpha)
    for note in adapter.assumed:
        print(f"assumed: {note}", file=sys.stderr)
    if options.layout == DIFFUSERS and adapter.pair.solver:
        print("note: this pair has a solver of its own, which diffusers cannot use", file=sys.stderr)
    print(convert(adapter, options.output, options.phase, options.layout))
