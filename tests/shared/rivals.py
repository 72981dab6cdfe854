"""What several processes do at once in the tests of concurrency; in a module of its own, so that they can import it."""

import contextlib
import sys
import time
from pathlib import Path

import torch

from glance_core.__main__ import main
from glance_core.adapter_metadata import Trained
from glance_core.file_lock import locked
from glance_core.lora_file import Factor
from glance_core.lora_write import write_pair
from glance_core.run_files import RunFiles
from glance_core.schedule import FAST, SLOW
from glance_core.tensor_file import write_new, write_over


def count_up(folder: Path, times: int, begin) -> None:
    """Add 1 to the number in a file so many times, each time when the lock is ours; without it, additions would be lost."""
    begin.wait()
    while times:
        with locked(folder / "lock") as ours:
            if ours:
                number = folder / "number"
                number.write_text(str(int(number.read_text()) + 1))
                times -= 1


def write_pairs(folder: Path, who: int, times: int, begin) -> None:
    """Pairs that all want one name, each with the writer's number in its factors."""
    begin.wait()
    for count in range(times):
        number = float(100 * who + count)
        factors = {phase: {"double_blocks.0.img_attn.proj": _factor(number + half)} for phase, half in ((SLOW, 0.0), (FAST, 0.5))}
        write_pair(folder, "mine", factors, Trained(base="flux", pair=f"{number}"), {SLOW: (1.0, 0.9), FAST: (0.5,)})


def _factor(number: float) -> Factor:
    return Factor(torch.full((2, 4), number), torch.ones(4, 2), 2.0, 1.0, "m")


def write_and_write(folder: Path, times: int) -> None:
    """One file over and over again, and new ones beside it; every number in a file is the same, and its metadata's."""
    for count in range(times):
        tensors, told = {str(i): torch.full((2_000,), float(count)) for i in range(8)}, {"count": str(count)}
        write_over(folder / "run.safetensors", tensors, told)
        write_new(folder / f"new{count}.safetensors", tensors, told)


def train(arguments: list[str], said: Path) -> None:
    """The command line, its words in a file."""
    with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.exit(main(arguments))


def hold(folder: Path, name: str) -> None:
    """A training that never ends."""
    with RunFiles(folder, name).alone():
        (folder / "held").touch()
        time.sleep(600)
