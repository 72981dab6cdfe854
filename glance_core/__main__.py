"""python -m glance_core demo | train | sigmas | inspect | convert"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from collections.abc import Sequence
from types import ModuleType

from .errors import GlanceError

# command -> (help, whether it needs the packages for training)
COMMANDS = {
    "demo": ("train a pair for the embedded model and paint with it, beside its rivals", True),
    "train": ("train a pair for the embedded model on your prompts or on one picture", True),
    "sigmas": ("print the sigmas of a Glance schedule", False),
    "inspect": ("print what the loader makes of an adapter or a pair", False),
    "convert": ("rewrite an adapter in the project's format, or for diffusers", False),
}
_PACKAGES = {"peft": "peft", "numpy": "numpy", "PIL": "pillow"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± shows a question mark
    try:
        options = _parser(words[:1]).parse_args(words)
        options.run(options)
    except GlanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    return 0


def _parser(chosen: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, with the options of the chosen command only."""
    parser = argparse.ArgumentParser(
        prog="python -m glance_core", description="Glance without ComfyUI: a demo, training, sigmas, adapter files."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (text, trains) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in chosen:
            if trains:
                _check_packages(name)
            module = _module(name)
            module.add_options(command)
            command.set_defaults(run=module.run)
    return parser


def _module(command: str) -> ModuleType:
    """Import a command's module. Only the chosen one loads: torch is slow to import, and `sigmas` does without it."""
    if command == "demo":
        from .tiny import demo_command

        return demo_command
    if command == "train":
        from .tiny import train_command

        return train_command
    if command == "sigmas":
        from .cli import sigmas_command

        return sigmas_command
    if command == "inspect":
        from .cli import inspect_command

        return inspect_command
    from .cli import convert_command

    return convert_command


def _check_packages(command: str) -> None:
    for module, package in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise GlanceError(f"{command} needs {package}; install it with: pip install peft numpy pillow")


if __name__ == "__main__":
    sys.exit(main())
