"""What ends a run of TrainGlanceAdapter early leaves the base and ComfyUI as they were, and the run can be resumed."""

from unittest import mock

import comfy.model_management
import pytest
import tiny_models
import torch
import train_node
from comfy.patcher_extension import WrappersMP
from safetensors.torch import load_file

ERRORS = {
    "exception": RuntimeError("stop"),
    "interrupt": comfy.model_management.InterruptProcessingException(),
    "out of memory": torch.OutOfMemoryError("stop"),
}


@pytest.fixture
def runs(output):
    """The folder of unfinished runs."""
    return output / "glance_training"


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("step", [1, 6])
def test_a_stopped_run_leaves_no_trace_on_the_model_and_resumes_bit_for_bit(kind, step, loras, output, runs):
    model = tiny_models.build("flux")
    before = tiny_models.state(model)
    train_node.train(model, "flux", name="whole")
    error = ERRORS[kind]
    with train_node.stopped_at(step, error), pytest.raises(type(error)):
        train_node.train(model, "flux", name="broken")
    tiny_models.assert_bit_exact(model, before)
    assert not comfy.model_management.in_training
    assert train_node.files(runs) == ["broken.run.safetensors", "broken.teacher.safetensors"]
    train_node.train(model, "flux", name="broken")
    assert train_node.files(output) == []
    for phase in ("slow", "fast"):
        whole, broken = (load_file(loras / f"{name}_{phase}.safetensors") for name in ("whole", "broken"))
        assert whole.keys() == broken.keys() and all(torch.equal(whole[key], broken[key]) for key in whole)


TRIAL = 10  # model calls before the teacher: three that try it, two steps, five losses beside its gradient


def test_a_run_stopped_in_its_checks_resumes_without_training_again(loras, output, runs):
    model = tiny_models.build("flux")
    calls = (
        TRIAL + 50 + 2 * 4 + 1
    )  # the trial's, the teacher's, two phases of 4 steps, then the first one of the checks
    with pytest.raises(KeyboardInterrupt):
        train_node.train(with_model_call(model, calls, stop), "flux", name="broken")
    assert train_node.files(runs) == ["broken.run.safetensors", "broken.teacher.safetensors"]
    steps = []
    with mock.patch.object(train_node.observer_class(), "trained", lambda self, step: steps.append(step)):
        *_, report = train_node.train(model, "flux", name="broken")
    assert steps == [] and "(0.00 steps per second)" in report
    train_node.train(model, "flux", name="whole")
    for phase in ("slow", "fast"):
        whole, broken = (load_file(loras / f"{name}_{phase}.safetensors") for name in ("whole", "broken"))
        assert whole.keys() == broken.keys() and all(torch.equal(whole[key], broken[key]) for key in whole)


def stop(call):
    raise KeyboardInterrupt


def with_model_call(model, number, act):
    """A clone of the model whose call of this number, from 1, is act(call)."""
    seen = []

    def acting(executor, *args, **kwargs):
        seen.append(1)
        return act(lambda: executor(*args, **kwargs)) if len(seen) == number else executor(*args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", acting)
    return patched


def test_an_interrupt_inside_a_model_call_keeps_the_finished_steps(loras, output, runs):
    """ComfyUI's layers raise its interrupt, in the middle of a step."""
    model = tiny_models.build("flux")
    before = tiny_models.state(model)

    def interrupted(call):
        comfy.model_management.interrupt_current_processing()
        return call()

    patched = with_model_call(model, TRIAL + 57, interrupted)  # after the teacher's 50 calls, in the seventh step
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train_node.train(patched, "flux")
    comfy.model_management.interrupt_current_processing(False)
    tiny_models.assert_bit_exact(model, before)
    tensors = load_file(runs / "tiny.run.safetensors")
    assert len(tensors["history/losses"]) == 6


def test_a_loss_that_is_not_a_number_stops_the_run_and_the_last_good_state_is_kept(loras, output, runs):
    model = tiny_models.build("flux")
    before = tiny_models.state(model)
    patched = with_model_call(model, TRIAL + 56, lambda call: call() * float("nan"))
    message = r"stopped at step 2 of fast: the loss is nan; the last good state is in tiny.run.safetensors; lower"
    with pytest.raises(ValueError, match=message):
        train_node.train(patched, "flux")
    tiny_models.assert_bit_exact(model, before)
    kept = load_file(runs / "tiny.run.safetensors")
    assert len(kept["history/losses"]) == 4 and all(torch.isfinite(value).all() for value in kept.values())


def test_files_are_not_overwritten_and_without_resume_a_run_starts_beside_an_unfinished_one(loras, output, runs):
    model = tiny_models.build("flux")
    first = train_node.train(model, "flux")[1:3]
    kept = {name: (loras / name).read_bytes() for name in first}
    assert train_node.train(model, "flux", seed=1)[1:3] == ("tiny-2_slow.safetensors", "tiny-2_fast.safetensors")
    assert {name: (loras / name).read_bytes() for name in first} == kept
    with train_node.stopped_at(2, RuntimeError("stop")), pytest.raises(RuntimeError):
        train_node.train(model, "flux", name="other")
    unfinished = (runs / "other.run.safetensors").read_bytes()
    train_node.train(model, "flux", name="other", resume=False, seed=5)
    assert (runs / "other.run.safetensors").read_bytes() == unfinished
    with pytest.raises(ValueError, match=r"other\.run\.safetensors holds a run with rank 2, but this run has 3"):
        train_node.train(model, "flux", name="other", rank=3)
