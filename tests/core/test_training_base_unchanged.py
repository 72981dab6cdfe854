"""Training leaves the base as it was, however it ends, and copes with blocks that write in place."""

from dataclasses import replace

import pytest
import torch
from trained_net import SETTINGS, Net, frozen_net, is_unchanged, snapshot, student_of, teacher_forced

from glance_core.errors import TrainingError
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.autograd.checkpointing import blocks_of
from glance_core.training.trainer import train_pair


@pytest.fixture
def model():
    return frozen_net()


@pytest.fixture
def data(model):
    return teacher_forced(model)


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [None, Stop, KeyboardInterrupt], ids=["finished", "exception", "interrupt"])
@pytest.mark.parametrize("blocks", [False, True], ids=["", "checkpointed"])
def test_the_base_is_unchanged_however_training_ends(data, error, blocks):
    model = Net()
    model.two.bias.requires_grad_(False)  # the others require a gradient, before and after
    before, keys = snapshot(model), list(model.state_dict())

    def velocity(x, sigma, rows):
        assert list(model.state_dict()) == keys
        assert not any(p.requires_grad for p in model.parameters())
        return model(x, sigma)

    def report(step):
        assert list(model.state_dict()) == keys and snapshot(model)[1] == before[1]
        if error and step.part == FAST and step.step == 2:
            raise error

    student = student_of(model, velocity=velocity, blocks=blocks_of(model) if blocks else None)
    if error:
        with pytest.raises(error):
            train_pair(student, data, 2, replace(SETTINGS, steps=3), report)
    else:
        train_pair(student, data, 2, replace(SETTINGS, steps=3), report)
    assert is_unchanged(model, before)
    assert all(p.grad is None for p in model.parameters())


def test_an_error_inside_the_model_leaves_it_unchanged(model, data):
    before, calls = snapshot(model), []

    def velocity(x, sigma, rows):
        calls.append(1)
        out = model(x, sigma)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return out

    with pytest.raises(KeyboardInterrupt):
        train_pair(student_of(model, velocity=velocity, blocks=blocks_of(model)), data, 2, SETTINGS)
    assert is_unchanged(model, before)


@pytest.mark.parametrize("blocks", [False, True], ids=["cached", "checkpointed"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_model_that_writes_in_place_trains_like_one_that_does_not(model, data, blocks, accumulation):
    settings = replace(SETTINGS, accumulation=accumulation)
    targets = r"one|two|blocks\.\d\.(lin|gate)"
    in_place = Net(in_place=True).requires_grad_(False)
    expected = train_pair(student_of(model, targets), data, 2, settings)
    student = student_of(in_place, targets, blocks=blocks_of(in_place) if blocks else None)
    found = train_pair(student, data, 2, settings)
    for phase in (SLOW, FAST):
        for name, factor in expected.factors[phase].items():
            assert torch.allclose(found.factors[phase][name].up, factor.up, atol=1e-4)
            assert torch.allclose(found.factors[phase][name].down, factor.down, atol=1e-4)
    assert found.history.losses == pytest.approx(expected.history.losses, rel=1e-3)


def test_plain_autograd_fails_on_blocks_that_write_in_place():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Net(in_place=True)(torch.zeros(2, 4), torch.zeros(2)).sum().backward()


def test_checkpointing_is_rejected_if_the_model_never_calls_its_blocks(model, data):
    def velocity(x, sigma, rows):
        return model.two(model.one(torch.cat([x, sigma[:, None]], 1)))

    student = student_of(model, velocity=velocity, name="Tiny")
    before = snapshot(model)
    with pytest.raises(TrainingError, match="Tiny never called its blocks as modules"):
        train_pair(replace(student, blocks=blocks_of(model)), data, 2, SETTINGS)
    assert is_unchanged(model, before)
