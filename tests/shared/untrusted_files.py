"""What fuzzing asks of everything that reads other people's files.

Each `check_*` takes what a fuzzer made and returns whether it was accepted. An accepted object must be valid. A
rejected one must raise the package's own error, in one printable line. Any other exception is a crash.
"""

import contextlib
import itertools
import json
import math
import os
import struct
from pathlib import Path

import torch
from torch import nn
from torch.nn import Linear

from glance_core.errors import GlanceError
from glance_core.lora import file_type
from glance_core.lora.metadata import read_metadata, written_metadata
from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter
from glance_core.lora.scale import StatedScale
from glance_core.lora.slots import whole_slots
from glance_core.lora.writer import convert
from glance_core.sampling.rollout import TeacherTrajectory
from glance_core.sampling.solver import Solver
from glance_core.schedule.phase_schedule import build_schedule
from glance_core.schedule.sigmas import teacher_sigmas
from glance_core.schedule.split import FAST, SLOW, parse_split, parse_steps, split_steps
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.objectives import TeacherForced
from glance_core.training.run.checkpoint import load_run
from glance_core.training.run.run_dir import find_run_dir
from glance_core.training.run.run_state import Checkpoint
from glance_core.training.settings import TrainingSettings
from glance_core.training.student import Student
from glance_core.training.trainer import train_pair


def safetensors(header, data=b""):
    """Return the bytes of a file with this header. The header is bytes, or anything that JSON can hold."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def accepted(attempt, *arguments):
    """Return what the attempt returns, or None if it raises the package's own error."""
    try:
        return attempt(*arguments)
    except GlanceError as error:
        message = str(error)
        assert message and message.isprintable() and len(message) < 1010, message
        return None


def check_file(path, again=None):
    """Check an adapter file.

    Args:
        again: where to convert it to. The copy must be read with the same numbers.
    """
    adapter = accepted(read_adapter, path)
    if adapter is None:
        return False
    assert adapter.factors
    for factor in adapter.factors.values():
        assert factor.down.shape[0] == factor.up.shape[1] == factor.rank > 0
        assert math.isfinite(factor.scale) and factor.scale != 0
        assert torch.isfinite(factor.down).all() and torch.isfinite(factor.up).all()
    for line in (*adapter.assumed, *adapter.remarks, *adapter.skipped):
        assert line.isprintable() and len(line) < 3000, line
    json.dumps(adapter.describe(), allow_nan=False)
    accepted(check_pair, adapter, adapter)
    if again is not None:
        written = accepted(convert, adapter, again)
        if written is not None:
            second = read_adapter(written)
            os.unlink(written)
            assert second.factors.keys() == adapter.factors.keys()
            for module, factor in adapter.factors.items():
                assert math.isclose(second.factors[module].scale, factor.scale, rel_tol=1e-6)
                assert torch.equal(second.factors[module].up, factor.up)
    return True


def check_metadata(metadata):
    """Check a file's metadata."""
    pair = accepted(read_metadata, "a.safetensors", metadata)
    file_type.remarks("a.safetensors", metadata)
    if pair is None:
        return False
    assert pair.split is None or pair.split.steps
    assert all(isinstance(value, str) for value in written_metadata(pair, "a").values())
    return True


def check_scale(metadata, modules):
    """Check what PEFT or kohya say about the scale of modules."""

    def scales():
        stated = StatedScale(Path("a.safetensors"), metadata)
        return [stated.of(module, 4, None) for module in modules]

    found = accepted(scales)
    return found is not None and all(scale > 0 for _, scale in found)


def check_steps(text, teacher_steps, denoise=1.0):
    """Check teacher steps as a user types them."""
    split = accepted(parse_steps, text, teacher_steps)
    if split is None:
        return False
    assert str(parse_steps(str(split), teacher_steps)) == str(split)
    schedule = accepted(build_schedule, teacher_sigmas("shift", teacher_steps, shift=3.0), split, denoise)
    return schedule is not None and _is_falling(schedule)


def check_split(text, teacher_steps, boundary=None):
    """Check a split like 5+5."""
    counts = accepted(parse_split, text)
    split = accepted(split_steps, *counts, teacher_steps, boundary) if counts else None
    assert split is None or (len(split.slow), len(split.fast)) == counts
    return split is not None


def check_sigmas(rule, steps, tokens, shift):
    """Check the arguments of a sigma rule."""
    sigmas = accepted(lambda: teacher_sigmas(rule, steps, tokens=tokens, shift=shift))
    return sigmas is not None and len(sigmas) == steps + 1 and all(math.isfinite(sigma) for sigma in sigmas)


def _is_falling(schedule):
    assert all(a > b for a, b in itertools.pairwise(schedule.sigmas)) and schedule.sigmas[-1] == 0
    assert set(schedule.phases()) <= {SLOW, FAST}
    return True


def check_solver(text):
    """Check a solver as metadata holds it."""
    solver = accepted(Solver.loads, text)
    if solver is None:
        return False
    assert Solver.loads(solver.dumps()) == solver and solver.steps <= solver.nfe <= 2 * solver.steps
    return True


def check_file_type(start, keys, name):
    """Check the first bytes of a file, and the names of its tensors."""
    what = file_type.of_bytes(start)
    assert what is None or len(what) < 1000
    return accepted(lambda: file_type.check_has_lora(name, keys) or True) is not None


def check_checkpoint(path):
    """Check a file that may be a checkpoint."""
    return accepted(load_run, path) is not None


def check_name(folder, name):
    """Check the name of a pair. It must not lead out of its folder."""
    run_dir = accepted(lambda: find_run_dir(folder, name, True))
    if run_dir is None:
        return False
    assert run_dir.run.resolve().parent == folder.resolve() and run_dir.teacher.resolve().parent == folder.resolve()
    return True


# A run that is small enough to be resumed a thousand times.

_STEPS = 3
_SETTINGS = TrainingSettings(LoraSettings(1, 1.0), steps=_STEPS, batch=1, learning_rate=1e-2)
_OBJECTIVE = TeacherForced(
    TeacherTrajectory(torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.5, 0.0]))
)


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = Linear(2, 2)

    def forward(self, x, sigma, rows):
        return self.one(x)


class _Stop(Exception):
    pass


def _train(path, report=None):
    model = _Net().requires_grad_(False)
    student = Student(model, model, whole_slots(model, "one"))
    return train_pair(student, _OBJECTIVE, 1, _SETTINGS, report, Checkpoint(path))


def saved_runs(folder):
    """Return the bytes of three checkpoints: stopped inside each phase, and finished."""
    path, runs = folder / "kept.safetensors", []
    for stop in (2, _STEPS + 2, None):
        steps = []

        def report(step, steps=steps, stop=stop):
            steps.append(step)
            if len(steps) == stop:
                raise _Stop

        path.unlink(missing_ok=True)
        with contextlib.suppress(_Stop):
            _train(path, report)
        runs.append(path.read_bytes())
    return runs


def check_resume(path):
    """Check a run that resumes from a file that may be its checkpoint."""
    done = accepted(_train, path)
    if done is None:
        return False
    assert set(done.factors) >= {SLOW, FAST} and len(done.history.steps) == len(done.history.losses)
    for factors in done.factors.values():
        for factor in factors.values():
            assert torch.isfinite(factor.down).all() and torch.isfinite(factor.up).all() and math.isfinite(factor.scale)
    return True
