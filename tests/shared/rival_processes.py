"""What several processes do at the same time in the tests of concurrency. They import it from here."""

import contextlib
import sys
import time
from pathlib import Path

import torch

from glance_core.__main__ import main
from glance_core.lora.factors import Factor
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.pair_writer import TrainedPair, write_pair
from glance_core.lora.safetensors_io import write_new, write_over
from glance_core.schedule.phase_schedule import PhaseSchedule
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.run.file_lock import locked
from glance_core.training.run.run_dir import RunDir


def count_up(folder: Path, times: int, begin) -> None:
    """Add 1 to the number in a file, each time under the lock. Without the lock, additions would be lost."""
    begin.wait()
    while times:
        with locked(folder / "lock") as ours:
            if ours:
                number = folder / "number"
                number.write_text(str(int(number.read_text()) + 1))
                times -= 1


def write_pairs(folder: Path, who: int, times: int, begin) -> None:
    """Write pairs that all want one name, each with the writer's number in its factors."""
    begin.wait()
    for count in range(times):
        number = float(100 * who + count)
        factors = {
            phase: {"double_blocks.0.img_attn.proj": _factor(number + half)}
            for phase, half in ((SLOW, 0.0), (FAST, 0.5))
        }
        common = PairMetadata(base="flux", pair=f"{number}")
        write_pair(folder, "mine", TrainedPair(factors, common, PhaseSchedule((1.0, 0.9, 0.5, 0.0), 2)))


def _factor(number: float) -> Factor:
    return Factor(torch.full((2, 4), number), torch.ones(4, 2), 2.0, 1.0, "m")


def keep_writing(folder: Path, times: int) -> None:
    """Replace one file many times, and write new ones beside it. All numbers of a file equal its metadata's."""
    for count in range(times):
        tensors, metadata = {str(i): torch.full((2_000,), float(count)) for i in range(8)}, {"count": str(count)}
        write_over(folder / "run.safetensors", tensors, metadata)
        write_new(folder / f"new{count}.safetensors", tensors, metadata)


def train(arguments: list[str], output: Path) -> None:
    """Run the command line, and write what it prints into a file."""
    with open(output, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.exit(main(arguments))


def hold(folder: Path, name: str) -> None:
    """Hold the lock of a training run that never ends."""
    with RunDir(folder, name).alone():
        (folder / "held").touch()
        time.sleep(600)
