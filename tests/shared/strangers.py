"""What fuzzing asks of everything that reads what strangers wrote: a valid object, or the package's own error in one printable line.

Each `check_*` takes what a fuzzer made and tells whether it was accepted; any other exception, or an object that is not valid, is a crash.
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

from glance_core import file_kinds
from glance_core.adapter_metadata import read_trained, written_metadata
from glance_core.checkpoint import load_run
from glance_core.errors import GlanceError
from glance_core.lora_file import check_pair, read_adapter
from glance_core.lora_layers import Lora, whole_slots
from glance_core.lora_write import convert
from glance_core.objectives import Trajectories
from glance_core.run_files import run_files
from glance_core.schedule import FAST, SLOW, build_schedule, parse_split, parse_steps, split_steps, teacher_ladder
from glance_core.solver import Solver
from glance_core.stated_scale import StatedScale
from glance_core.student import Student
from glance_core.training import TrainingSettings, train_pair


def safetensors(header, data=b""):
    """The bytes of a file with this header, be it bytes or what JSON can say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def accepted(attempt, *arguments):
    """What attempt gives; None where it refuses in the package's own way."""
    try:
        return attempt(*arguments)
    except GlanceError as error:
        said = str(error)
        assert said and said.isprintable() and len(said) < 1010, said
        return None


def check_file(path, again=None):
    """An adapter file; `again`: where to convert it to, which must then be read with the same numbers."""
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
    trained = accepted(read_trained, "a.safetensors", metadata)
    file_kinds.remarks("a.safetensors", metadata)
    if trained is None:
        return False
    assert trained.split is None or trained.split.steps
    assert all(isinstance(value, str) for value in written_metadata(trained, "a").values())
    return True


def check_scale(metadata, modules):
    """PEFT's or kohya's word on the scale of modules."""

    def scales():
        stated = StatedScale(Path("a.safetensors"), metadata)
        return [stated.of(module, 4, None) for module in modules]

    found = accepted(scales)
    return found is not None and all(scale > 0 for _, scale in found)


def check_steps(text, teacher_steps, denoise=1.0):
    split = accepted(parse_steps, text, teacher_steps)
    if split is None:
        return False
    assert str(parse_steps(str(split), teacher_steps)) == str(split)
    walked = accepted(build_schedule, teacher_ladder("shift", teacher_steps, shift=3.0), split, denoise)
    return walked is not None and _falls(walked)


def check_split(text, teacher_steps, boundary=None):
    counts = accepted(parse_split, text)
    split = accepted(split_steps, *counts, teacher_steps, boundary) if counts else None
    assert split is None or (len(split.slow), len(split.fast)) == counts
    return split is not None


def check_ladder(kind, steps, tokens, shift):
    ladder = accepted(lambda: teacher_ladder(kind, steps, tokens=tokens, shift=shift))
    return ladder is not None and len(ladder) == steps + 1 and all(math.isfinite(sigma) for sigma in ladder)


def _falls(walked):
    assert all(a > b for a, b in itertools.pairwise(walked.sigmas)) and walked.sigmas[-1] == 0
    assert set(walked.phases()) <= {SLOW, FAST}
    return True


def check_solver(text):
    solver = accepted(Solver.loads, text)
    if solver is None:
        return False
    assert Solver.loads(solver.dumps()) == solver and solver.steps <= solver.forwards <= 2 * solver.steps
    return True


def check_kind(start, keys, name):
    """The first bytes of a file, and the names of its tensors."""
    said = file_kinds.of_bytes(start)
    assert said is None or len(said) < 1000
    return accepted(lambda: file_kinds.refuse_without_lora(name, keys) or True) is not None


def check_checkpoint(path):
    return accepted(load_run, path) is not None


def check_name(folder, name):
    files = accepted(lambda: run_files(folder, name, True))
    if files is None:
        return False
    assert files.run.resolve().parent == folder.resolve() and files.teacher.resolve().parent == folder.resolve()
    return True


# A run that is small enough to be taken up a thousand times.

_STEPS = 3
_SETTINGS = TrainingSettings(Lora(1, 1.0), steps=_STEPS, batch=1, learning_rate=1e-2)
_WALKS = Trajectories(torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.5, 0.0]))


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
    return train_pair(Student(model, model, whole_slots(model, "one")), _WALKS, 1, _SETTINGS, report, path)


def kept_runs(folder):
    """The bytes of checkpoints in the midst of each phase, and of one that is whole."""
    path, runs = folder / "kept.safetensors", []
    for stop in (2, _STEPS + 2, None):
        told = []

        def report(step, told=told, stop=stop):
            told.append(step)
            if len(told) == stop:
                raise _Stop

        path.unlink(missing_ok=True)
        with contextlib.suppress(_Stop):
            _train(path, report)
        runs.append(path.read_bytes())
    return runs


def check_resume(path):
    """A run that is taken up from what may be its checkpoint."""
    done = accepted(_train, path)
    if done is None:
        return False
    assert set(done.factors) >= {SLOW, FAST} and len(done.history.points) == len(done.history.losses)
    for factors in done.factors.values():
        for factor in factors.values():
            assert torch.isfinite(factor.down).all() and torch.isfinite(factor.up).all() and math.isfinite(factor.scale)
    return True
