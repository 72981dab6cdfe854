"""Whatever fails, and wherever: the base keeps its bits, nothing stays on it, and the next run gives the bits it always gave.

No list of places is kept by hand: faults fall on the lines that the pack runs and the operations that torch counts, drawn by seed.
GLANCE_FAULTS=500 asks for so many of each kind instead of the suite's few, GLANCE_FAULTS=all for every line (`make faults`).
"""

import contextlib
import os
import random
import shutil
import sys
import time

import adapters
import comfy.model_management
import comfyui
import folder_paths
import pack
import pytest
import tiny
import torch
import training
from faults import AtLine, AtOperation, places
from safetensors.torch import load_file
from torch.nn import Linear

from glance_core.run_files import RunFiles

ASKED = os.environ.get("GLANCE_FAULTS")
ERRORS = (RuntimeError, MemoryError, KeyboardInterrupt, torch.OutOfMemoryError, comfy.model_management.InterruptProcessingException)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
EVERY = 1_000  # operations that "all" draws: a run has tens of thousands


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny.build("flux", depth=1, depth_single_blocks=1)


@pytest.fixture
def output(tmp_path, monkeypatch, loras):
    """ComfyUI's output folder for this test."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def drawn(lines, operations, usual):
    """Faults with their places: of the lines and of the operations as many as the suite usually tries, or as were asked for."""
    rng, (some, few) = random.Random(0), usual
    if ASKED:
        some, few = (len(lines), EVERY) if ASKED == "all" else (int(ASKED),) * 2
    for line, occurrence in rng.sample(lines, min(some, len(lines))):
        error = rng.choice(ERRORS)("injected")
        yield f"{type(error).__name__} at {line[0]}:{line[1]}, time {occurrence}", AtLine(line, occurrence, error)
    for number in rng.sample(operations, min(few, len(operations))):
        yield f"no memory in operation {number}", AtOperation(number, torch.OutOfMemoryError("injected"))


def under(fault, run):
    """Whether the fault came up in the run, and whether the run ended well all the same. Its error is let go of as a host lets go of it: a
    kept traceback keeps every frame, and an open file in one of them keeps its lock."""
    ended = False
    with contextlib.suppress(BaseException), fault:
        run()
        ended = True
    fault.error.__traceback__ = None
    return fault.raised, ended


def refute(cases, run, trace):
    """Run once with each (place, fault); trace(ended) says what is left of it, if anything, of a run that ended well in spite of it or did
    not. Prints the count; fails where one left a trace."""
    lost, tried = [], 0
    for place, fault in cases:
        reached, ended = under(fault, run)
        if not reached and isinstance(fault, AtLine):  # what is said every half second is said less often in a quicker run
            reached, ended = under(AtLine(fault.at, 1, fault.error), run)
        assert reached, f"{place} was not reached: nothing was tried"
        tried += 1
        if left := trace(ended):
            lost.append(f"{place}: {left}")
            print(lost[-1], file=sys.stderr)
    print(f"{tried} faults injected, {tried - len(lost)} survived, {len(lost)} lost")
    assert tried and lost == []


def left_on(model, before):
    """What a run left on the model; nothing, if it is as it was."""
    try:
        tiny.assert_bit_exact(model, before)
    except AssertionError as error:
        for module in model.model.modules():  # that the later ones are not lost to this one
            module.__dict__.pop("forward", None)
        return str(error).splitlines()[0]
    hooked = [name for name, module in model.model.named_modules() for hooks in HOOKS if getattr(module, hooks, None)]
    registered = [*model.wrappers.values(), model.injections, model.additional_models, model.attachments, model.patches]
    return f"hooks on {hooked[0]}" if hooked else "something registered on the bare model" if any(registered) else ""


@pytest.fixture
def sampling(model, loras):
    """(runs with a pair, which the host takes off and puts back in the middle of the second; what is left after a fault)"""
    names, before = adapters.save_pair(model, loras), tiny.state(model)

    def run():
        with_pair = pack.load_pair(model, *names)[0]

        def renew(step, *_):
            if step == 2:
                with with_pair.use_ejected():
                    pass

        sigmas = pack.scheduler(with_pair, "flux", 2, 2)
        return torch.cat([pack.phase_split(with_pair, "flux", 2, 2), pack.host_sample(with_pair, "flux", sigmas, callback=renew)])

    good = run()

    def trace(ended):
        return left_on(model, before) or ("" if torch.equal(run(), good) else "another result")

    return run, trace


def test_no_fault_in_a_sampling_run_leaves_a_trace(sampling):
    run, trace = sampling
    refute(drawn(*places(run), (24, 12)), run, trace)


def test_whatever_puts_branches_on_or_takes_them_off_is_among_the_faults(sampling):
    """What the host calls and what switches are read off the classes."""
    run, _ = sampling
    switching = comfyui.pack_module("glance_core.phase_switch")
    classes = (switching.PhaseSwitch, switching._Target, comfyui.pack_module("nodes.pair").GlancePair)
    codes = [function.__code__ for kind in classes for function in vars(kind).values() if hasattr(function, "__code__")]
    lines = {line for line, _ in places(run)[0]}
    assert len(codes) > 10
    assert [code.co_name for code in codes if not any((code.co_filename, number) in lines for *_, number in code.co_lines())] == []


def close(found, good):
    """Up to what rounding becomes in some steps of Adam: 3.5e-6 was seen."""
    return torch.allclose(found, good, rtol=1e-3, atol=3e-5)


@pytest.fixture
def trained(model, loras, output):
    """(a training run, what is left after a fault in one)"""
    before = tiny.state(model)
    tables = [(table, dict(table)) for module in model.model.modules() for table in (module._parameters, module._buffers)]

    def run():
        training.train(model, "flux", steps=3, save_every=1, preview_every=2, keep="what helps")

    def pair():
        return {path.name: load_file(path) for path in loras.glob("*.safetensors")}

    def is_whole(same):
        found = pair()
        return good.keys() <= found.keys() and all(same(found[name][key], good[name][key]) for name in good for key in good[name])

    def fresh():
        for folder in (loras, output):
            shutil.rmtree(folder, ignore_errors=True)
        loras.mkdir()
        for table, loaded in tables:  # a fault between the lines that give inference tensors back leaves normal ones, with the same memory
            table.update(loaded)

    run()
    good = pair()
    fresh()

    def trace(ended):
        """Unless the pair was written before the fault came, the same command once more has to write it. Where the host answers for the fault
        itself, as its attention does for a lack of memory, by a slower way, the pair is the same up to rounding."""
        same = close if ended else torch.equal
        left = left_on(model, before) or ("the host still in training" if comfy.model_management.in_training else "")
        comfy.model_management.in_training = False
        if not is_whole(same):
            run()
        left = left or ("" if is_whole(same) else "another pair")
        fresh()
        return left

    return run, trace


def test_no_fault_in_a_training_run_leaves_a_trace(trained):
    run, trace = trained
    refute(drawn(*places(run), (2, 1)), run, trace)


def test_a_run_interrupted_after_every_step_ends_with_the_bits_of_an_unbroken_one(model, loras, output, monkeypatch):
    previews = comfyui.pack_module("nodes.training_run")._Previews
    before, after, steps = tiny.state(model), previews.after, []

    def interrupting(self, step):
        steps.append((step.phase, step.step))
        comfy.model_management.interrupt_current_processing()
        after(self, step)

    training.train(model, "flux", name="unbroken", steps=3)
    monkeypatch.setattr(previews, "after", interrupting)
    for _ in range(6):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            training.train(model, "flux", name="broken", steps=3)
        assert left_on(model, before) == ""
    training.train(model, "flux", name="broken", steps=3)
    assert steps == [(phase, step) for phase in ("slow", "fast") for step in (1, 2, 3)]  # none is done twice
    for phase in ("slow", "fast"):
        one, other = (load_file(loras / f"{name}_{phase}.safetensors") for name in ("unbroken", "broken"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_lock_of_a_name_is_let_go_wherever_an_interrupt_comes(tmp_path):
    def run():
        with RunFiles(tmp_path, "tiny").alone():
            pass

    lines, _ = places(run)
    assert {line[0].rpartition("/")[2] for line, _ in lines} >= {"run_files.py", "file_lock.py"}
    for line, occurrence in lines:
        fault = AtLine(line, occurrence, KeyboardInterrupt())  # it keeps its error, and so the traceback and every frame
        with pytest.raises(KeyboardInterrupt), fault:
            run()
        run()  # raises where the name is still held


def test_a_name_that_is_in_training_already_is_refused_before_anything_runs(model, loras, output):
    before = tiny.state(model)
    (output / "glance_training").mkdir(parents=True)
    with RunFiles(output / "glance_training", "tiny").alone():
        with pytest.raises(ValueError, match="a training under the name tiny is under way already"):
            training.train(model, "flux")
        assert left_on(model, before) == "" and training.files(loras) == []
    assert training.files(output) == []


def test_prompts_queued_one_behind_the_other_with_pairs_of_their_own_do_not_mix(model, loras):
    """On one base, with the host unloading everything between two of them, and one that fails on its way."""
    before, pairs = tiny.state(model), []
    for size in (0.1, 0.2, 0.3):
        pairs.append(pack.load_pair(model, *adapters.save_pair(model, loras, size=size))[0])
    alone = [pack.phase_split(each, "flux", 2, 2) for each in (model, *pairs)]
    assert not any(torch.equal(one, other) for i, one in enumerate(alone) for other in alone[:i])
    rng = random.Random(0)
    for number in range(12):
        which = rng.randrange(4)
        if number % 5 == 0:
            comfy.model_management.unload_all_models()
        if number % 7 == 3:
            with contextlib.suppress(torch.OutOfMemoryError), AtOperation(rng.randrange(200, 1000), torch.OutOfMemoryError()) as fault:
                pack.phase_split(pairs[0], "flux", 2, 2)
            assert fault.raised
        assert torch.equal(pack.phase_split((model, *pairs)[which], "flux", 2, 2), alone[which]), number
        assert left_on(model, before) == ""


@pytest.mark.parametrize("when", [None, 0, 3])
def test_only_layers_that_were_never_called_are_said_to_have_no_effect(when, loras, caplog):
    """Also where the host took the branches off and put them back in the middle, or after the last step."""
    model = tiny.build("flux", depth=1, depth_single_blocks=1)
    block = model.model.diffusion_model.double_blocks[0]
    block.register_module("unused", Linear(8, 8).requires_grad_(False))
    with_pair = pack.load_pair(model, *adapters.save_pair(model, loras))[0]

    def renew(step, *_):
        if step == when:
            with with_pair.use_ejected():
                pass

    pack.host_sample(with_pair, "flux", pack.scheduler(with_pair, "flux", 2, 2), callback=renew)
    (told,) = [record.message for record in caplog.records if "never" in record.message]
    assert "1 of the pair's" in told and "double_blocks.0.unused" in told


def test_a_run_without_steps_is_not_said_to_go_wrong(model, loras, caplog):
    with_pair = pack.load_pair(model, *adapters.save_pair(model, loras))[0]
    pack.host_sample(with_pair, "flux", pack.scheduler(with_pair, "flux", 2, 2)[-1:])
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("lost", [0, 1])
def test_a_file_that_vanishes_between_listing_and_loading_is_named(lost, model, loras):
    before, names = tiny.state(model), adapters.save_pair(model, loras)
    paths = [folder_paths.get_full_path_or_raise("loras", name) for name in names]
    (loras / names[lost]).unlink()
    with pytest.raises(ValueError, match=f"^{names[lost]}: cannot be opened .No such file or directory.; check the path$"):
        comfyui.pack_module("nodes.loader").load_pair(model, *paths)
    with pytest.raises(FileNotFoundError, match=names[lost]):
        pack.load_pair(model, *names)
    assert left_on(model, before) == ""


def test_a_clock_that_jumps_changes_nothing_in_a_training(model, loras, output, monkeypatch):
    """The time of day alone, as where a clock is set, or a machine sleeps; what measures durations goes on."""
    training.train(model, "flux", name="steady", steps=2)
    now, jumps = time.time(), random.Random(0)
    monkeypatch.setattr(time, "time", lambda: now + jumps.uniform(-1e6, 1e6))
    training.train(model, "flux", name="jumping", steps=2)
    assert training.files(output) == []
    for phase in ("slow", "fast"):
        one, other = (load_file(loras / f"{name}_{phase}.safetensors") for name in ("steady", "jumping"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
