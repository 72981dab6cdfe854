"""What stops a training run, and settings that are rejected before it begins."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from trained_net import SETTINGS, frozen_net, is_unchanged, snapshot, student_of, teacher_forced

from glance_core.errors import TrainingError
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.run.run_state import Checkpoint
from glance_core.training.trainer import train_pair


@pytest.fixture
def model():
    return frozen_net()


@pytest.fixture
def data(model):
    return teacher_forced(model)


def copy_to(copies, path):
    """Return a report that appends the checkpoint's bytes after every step."""
    return lambda step: copies.append(path.read_bytes() if path.exists() else b"")


def test_a_loss_that_is_not_a_number_stops_the_run_before_it_reaches_the_factors(model, data, tmp_path):
    path, copies = tmp_path / "run.safetensors", []

    def velocity(x, sigma, rows):
        out = model(x, sigma)
        return out * math.nan if len(copies) == 7 else out

    before = snapshot(model)
    student, settings = student_of(model, velocity=velocity), replace(SETTINGS, save_every=2)
    with pytest.raises(
        TrainingError,
        match=r"training stopped at step 8 of slow: the loss is nan; the last good state is in run.safetensors",
    ):
        train_pair(student, data, 2, settings, copy_to(copies, path), Checkpoint(path))
    assert path.read_bytes() == copies[-1] != b""
    assert is_unchanged(model, before)


def test_a_gradient_that_is_not_a_number_stops_the_run(model, data):
    def velocity(x, sigma, rows):
        out = model(x, sigma)
        return out + torch.sqrt(out - out.detach())  # 0, with an infinite slope

    with pytest.raises(TrainingError, match="training stopped at step 1 of slow: the gradient's norm is"):
        train_pair(student_of(model, velocity=velocity), data, 2, SETTINGS)


def test_a_loss_that_grows_beyond_ten_times_its_start_stops_the_run(model, data, tmp_path):
    path, copies = tmp_path / "run.safetensors", []
    settings = replace(SETTINGS, learning_rate=1e3, clip=0.0, warmup=0.0, save_every=1)
    with pytest.raises(
        TrainingError,
        match=r"training stopped at step \d+ of slow: the loss grew from .+ to .+; lower the learning_rate",
    ) as caught:
        train_pair(student_of(model), data, 2, settings, copy_to(copies, path), Checkpoint(path))
    assert "the last good state is in run.safetensors" in str(caught.value)
    assert path.read_bytes() == copies[-1] != b""


@pytest.mark.parametrize("scale", [1e-9, 1.0])
def test_a_base_that_is_already_right_does_not_count_as_diverging(model, scale):
    """On neighbouring teacher steps the secant is the base's velocity, and the first losses are rounding errors."""
    data = teacher_forced(model, (0, 1, 2, 3), scale)
    train_pair(student_of(model), data, 3, replace(SETTINGS, batch=1))


@pytest.mark.parametrize("slow_steps", [0, 4])
def test_a_phase_without_steps_is_rejected(model, data, slow_steps):
    with pytest.raises(
        TrainingError,
        match=f"slow_steps is {slow_steps} of 4, so a phase has nothing to train; choose 1 to 3",
    ):
        train_pair(student_of(model), data, slow_steps, SETTINGS)


@pytest.mark.parametrize("name, value", [
    ("steps", 0), ("batch", 0), ("accumulation", 0), ("save_every", -1), ("learning_rate", 0.0),
    ("learning_rate", -1.0), ("learning_rate", math.nan), ("learning_rate", math.inf), ("warmup", -0.1),
    ("warmup", 1.1), ("warmup", math.nan), ("caption_dropout", 2.0), ("clip", -1.0), ("clip", math.nan),
    ("weight_decay", -1.0), ("weight_decay", math.nan), ("decay", "sudden"), ("weight_decay", math.inf),
    ("betas", (0.9, 1.0)), ("betas", (-0.1, 0.9)), ("optimizer", "sgd"), ("seed", -1), ("seed", 2**63),
])  # fmt: skip
def test_settings_out_of_range_are_rejected_by_name(name, value):
    with pytest.raises(TrainingError, match=name):
        replace(SETTINGS, **{name: value})


@pytest.mark.parametrize("arguments, message", [
    ((0, 1.0), "rank is 0"), ((4, 0.0), "alpha 0"), ((4, math.nan), "alpha nan"), ((4, math.inf), "alpha inf"),
    ((4, 4.0, "zeros"), "init is 'zeros'; choose"),
])  # fmt: skip
def test_impossible_lora_settings_are_rejected(arguments, message):
    with pytest.raises(TrainingError, match=message):
        LoraSettings(*arguments)


def test_dora_is_rejected_with_its_reason():
    with pytest.raises(TrainingError, match=r"DoRA rescales the base's weights.+train plain LoRA or rslora"):
        LoraSettings(4, 4.0, dora=True)


def test_eight_bit_adam_without_bitsandbytes_is_rejected(model, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        TrainingError,
        match="optimizer adamw8bit needs bitsandbytes; install it with pip install bitsandbytes, or choose adamw",
    ):
        train_pair(student_of(model), data, 2, replace(SETTINGS, optimizer="adamw8bit"))
