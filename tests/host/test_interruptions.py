"""After interrupts, faults, locked names, files that vanish and clocks that jump, the next run is as it always was."""

import contextlib
import random
import time

import adapters
import comfy.model_management
import comfyui
import folder_paths
import pack
import pytest
import tiny_models
import torch
import train_node
from faults import AtOperation, left_on
from safetensors.torch import load_file
from torch.nn import Linear

from glance_core.training.run.run_dir import RunDir


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny_models.build("flux", depth=1, depth_single_blocks=1)


def assert_same_pairs(loras, first, second):
    for phase in ("slow", "fast"):
        one, other = (load_file(loras / f"{name}_{phase}.safetensors") for name in (first, second))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_run_interrupted_after_every_step_ends_with_the_bits_of_an_unbroken_one(model, loras, output, monkeypatch):
    observer = train_node.observer_class()
    before, trained, steps = tiny_models.state(model), observer.trained, []

    def interrupting(self, step):
        steps.append((step.part, step.step))
        comfy.model_management.interrupt_current_processing()
        trained(self, step)

    train_node.train(model, "flux", name="unbroken", steps=3)
    monkeypatch.setattr(observer, "trained", interrupting)
    for _ in range(6):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train_node.train(model, "flux", name="broken", steps=3)
        assert left_on(model, before) == ""
    train_node.train(model, "flux", name="broken", steps=3)
    assert steps == [(phase, step) for phase in ("slow", "fast") for step in (1, 2, 3)]  # no step runs twice
    assert_same_pairs(loras, "unbroken", "broken")


def test_name_that_is_being_trained_is_rejected_before_anything_runs(model, loras, output):
    before = tiny_models.state(model)
    (output / "glance_training").mkdir(parents=True)
    with RunDir(output / "glance_training", "tiny").alone():
        with pytest.raises(ValueError, match="tiny is being trained already"):
            train_node.train(model, "flux")
        assert left_on(model, before) == "" and train_node.files(loras) == []
    assert train_node.files(output) == []


def test_queued_prompts_with_pairs_of_their_own_do_not_mix(model, loras):
    """They share one base. Between two of them ComfyUI unloads everything, and one of them fails."""
    before, pairs = tiny_models.state(model), []
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
            fault = AtOperation(rng.randrange(200, 1000), torch.OutOfMemoryError())
            with contextlib.suppress(torch.OutOfMemoryError), fault:
                pack.phase_split(pairs[0], "flux", 2, 2)
            assert fault.raised
        assert torch.equal(pack.phase_split((model, *pairs)[which], "flux", 2, 2), alone[which]), number
        assert left_on(model, before) == ""


@pytest.mark.parametrize("when", [None, 0, 3])
def test_only_layers_that_were_never_called_are_reported_without_effect(when, loras, caplog):
    """Also if ComfyUI removed the branches and put them back in mid-run, or after the last step."""
    model = tiny_models.build("flux", depth=1, depth_single_blocks=1)
    block = model.model.diffusion_model.double_blocks[0]
    block.register_module("unused", Linear(8, 8).requires_grad_(False))
    with_pair = pack.load_pair(model, *adapters.save_pair(model, loras))[0]

    def renew(step, *_):
        if step == when:
            with with_pair.use_ejected():
                pass

    pack.host_sample(with_pair, "flux", pack.scheduler(with_pair, "flux", 2, 2), callback=renew)
    (message,) = [record.message for record in caplog.records if "never" in record.message]
    assert "Glance: 1 of " in message and "double_blocks.0.unused" in message


def test_run_without_steps_causes_no_warning(model, loras, caplog):
    with_pair = pack.load_pair(model, *adapters.save_pair(model, loras))[0]
    pack.host_sample(with_pair, "flux", pack.scheduler(with_pair, "flux", 2, 2)[-1:])
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("lost", [0, 1])
def test_file_that_vanishes_between_listing_and_loading_is_named(lost, model, loras):
    before, names = tiny_models.state(model), adapters.save_pair(model, loras)
    paths = [folder_paths.get_full_path_or_raise("loras", name) for name in names]
    (loras / names[lost]).unlink()
    message = f"^{names[lost]}: cannot be opened .No such file or directory.; check the path$"
    with pytest.raises(ValueError, match=message):
        comfyui.pack_module("nodes.host.pair_loading").load_pair(model, *paths)
    with pytest.raises(FileNotFoundError, match=names[lost]):
        pack.load_pair(model, *names)
    assert left_on(model, before) == ""


def test_clock_that_jumps_changes_nothing_in_a_training_run(model, loras, output, monkeypatch):
    """Only the time of day jumps, as when somebody sets a clock or a machine sleeps. Durations stay right."""
    train_node.train(model, "flux", name="steady", steps=2)
    now, jumps = time.time(), random.Random(0)
    monkeypatch.setattr(time, "time", lambda: now + jumps.uniform(-1e6, 1e6))
    train_node.train(model, "flux", name="jumping", steps=2)
    assert train_node.files(output) == []
    assert_same_pairs(loras, "steady", "jumping")
