"""After a fault anywhere, the base has its bits, nothing stays on it, and the next run gives the usual bits.

Nobody lists the places by hand. Faults come before the lines that the pack runs and in the operations that torch
counts, drawn by seed. GLANCE_FAULTS=500 asks for this many of each kind, GLANCE_FAULTS=all for every line
(`make faults`).
"""

import os
import random
import shutil
import sys

import adapters
import comfy.model_management
import comfyui
import pack
import pytest
import test_other_methods
import tiny_models
import torch
import train_node
from faults import AtLine, AtOperation, left_on, places, run_under
from safetensors.torch import load_file, save_file
from test_phase_lora import load

from glance_core.training.run.run_dir import RunDir

ASKED = os.environ.get("GLANCE_FAULTS")
ERRORS = (
    RuntimeError,
    MemoryError,
    KeyboardInterrupt,
    torch.OutOfMemoryError,
    comfy.model_management.InterruptProcessingException,
)
MOST_OPERATIONS = 1_000  # that "all" draws; a run has tens of thousands


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny_models.build("flux", depth=1, depth_single_blocks=1)


def drawn(lines, operations, usual):
    """Yield (place, fault). usual: how many lines and operations the suite tries if GLANCE_FAULTS is not set."""
    rng, (line_count, operation_count) = random.Random(0), usual
    if ASKED:
        line_count, operation_count = (len(lines), MOST_OPERATIONS) if ASKED == "all" else (int(ASKED),) * 2
    for line, occurrence in rng.sample(lines, min(line_count, len(lines))):
        error = rng.choice(ERRORS)("injected")
        yield f"{type(error).__name__} at {line[0]}:{line[1]}, time {occurrence}", AtLine(line, occurrence, error)
    for number in rng.sample(operations, min(operation_count, len(operations))):
        yield f"no memory in operation {number}", AtOperation(number, torch.OutOfMemoryError("injected"))


def check_faults(cases, run, trace):
    """Run once with each (place, fault), and fail if any leaves a trace. Print the counts.

    Args:
        trace: trace(ended) returns what is left of such a run as text. ended: whether it ended well in spite of the
            fault.
    """
    lost, tried = [], 0
    for place, fault in cases:
        reached, ended = run_under(fault, run)
        if not reached and isinstance(fault, AtLine):  # a text sent every half second is sent less often in a fast run
            reached, ended = run_under(AtLine(fault.at, 1, fault.error), run)
        assert reached, f"{place} was not reached, so nothing was tried"
        tried += 1
        if left := trace(ended):
            lost.append(f"{place}: {left}")
            print(lost[-1], file=sys.stderr)
    print(f"{tried} faults injected, {tried - len(lost)} survived, {len(lost)} lost")
    assert tried and lost == []


@pytest.fixture
def sampling(model, loras):
    """(run, trace): runs with a pair, with a second one on it, and one where ComfyUI removes it and puts it back.

    Then one of two models, with a LoRA of another method.
    """
    names, before = adapters.save_pair(model, loras), tiny_models.state(model)
    late = tiny_models.build("flux", depth=1, depth_single_blocks=1, seed=1)
    save_file(test_other_methods.of_layers(late, test_other_methods.glora), loras / "other.safetensors")
    late_before = tiny_models.state(late)

    def run():
        with_pair = pack.load_pair(model, *names)[0]

        def renew(step, *_):
            if step == 2:
                with with_pair.use_ejected():
                    pass

        sigmas = pack.scheduler(with_pair, "flux", 2, 2)
        first = pack.phase_split(pack.load_pair(with_pair, *names, 0.1, 0.0)[0], "flux", 2, 2)
        other, _ = load(late, "other.safetensors", strengths="0, 1, 0.5")
        two = pack.phase_split(with_pair, "flux", 1, 2, sampler="dpmpp_2m", late_model=other)
        return torch.cat([first, pack.host_sample(with_pair, "flux", sigmas, callback=renew), two])

    good = run()

    def trace(ended):
        left = left_on(model, before) or left_on(late, late_before)
        return left or ("" if torch.equal(run(), good) else "another result")

    return run, trace


def test_no_fault_in_a_sampling_run_leaves_a_trace(sampling):
    run, trace = sampling
    check_faults(drawn(*places(run), (24, 12)), run, trace)


def test_all_code_that_installs_or_removes_branches_is_among_the_places(sampling):
    """The classes themselves say what that code is."""
    run, _ = sampling
    switching = comfyui.pack_module("glance_core.switch")
    classes = (switching.PhaseSwitch, switching._Target, comfyui.pack_module("nodes.host.patcher").ModelAdapters)
    codes = [function.__code__ for each in classes for function in vars(each).values() if hasattr(function, "__code__")]
    lines = {line for line, _ in places(run)[0]}
    assert len(codes) > 10

    def is_reached(code):
        return any((code.co_filename, number) in lines for *_, number in code.co_lines())

    assert [code.co_name for code in codes if not is_reached(code)] == []


def is_close(found, good):
    """Equal up to what rounding grows to in a few steps of Adam: 3.5e-6 was seen."""
    return torch.allclose(found, good, rtol=1e-3, atol=3e-5)


class TrainingRun:
    """A training run, and what is left after a fault in it."""

    def __init__(self, model, loras, output):
        self.model, self.loras, self.output = model, loras, output
        self.before = tiny_models.state(model)
        self.tables = [
            (table, dict(table)) for module in model.model.modules() for table in (module._parameters, module._buffers)
        ]
        self.run()
        self.good = self.pair()
        self.clean()

    def run(self):
        train_node.train(self.model, "flux", steps=3, save_every=1, preview_every=2, keep="what helps")

    def pair(self):
        return {path.name: load_file(path) for path in self.loras.glob("*.safetensors")}

    def has_pair(self, same):
        """Whether the pair is complete, and the same as without a fault."""
        found = self.pair()
        return self.good.keys() <= found.keys() and all(
            same(found[name][key], self.good[name][key]) for name in self.good for key in self.good[name]
        )

    def clean(self):
        for folder in (self.loras, self.output):
            shutil.rmtree(folder, ignore_errors=True)
        self.loras.mkdir()
        # A fault between the lines that give inference tensors back leaves normal ones of the same memory.
        for table, loaded in self.tables:
            table.update(loaded)

    def trace(self, ended):
        """Return what is left, as text. The same run once more must write the pair if it is not written yet.

        ComfyUI answers some faults itself: without memory, its attention takes a slower way. Then the pair is the same
        up to rounding.
        """
        same = is_close if ended else torch.equal
        still_training = comfy.model_management.in_training
        left = left_on(self.model, self.before) or ("ComfyUI still in training" if still_training else "")
        comfy.model_management.in_training = False
        if not self.has_pair(same):
            self.run()
        left = left or ("" if self.has_pair(same) else "another pair")
        self.clean()
        return left


def test_no_fault_in_a_training_run_leaves_a_trace(model, loras, output):
    training = TrainingRun(model, loras, output)
    check_faults(drawn(*places(training.run), (2, 1)), training.run, training.trace)


def test_lock_of_a_name_is_released_wherever_an_interrupt_comes(tmp_path):
    def run():
        with RunDir(tmp_path, "tiny").alone():
            pass

    lines, _ = places(run)
    assert {line[0].rpartition("/")[2] for line, _ in lines} >= {"run_dir.py", "file_lock.py"}
    for line, occurrence in lines:
        # The fault keeps its error, and so the traceback and every frame.
        fault = AtLine(line, occurrence, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt), fault:
            run()
        run()  # raises if the name is still locked
