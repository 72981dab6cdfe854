"""Which steps, rows and prompts a training run shows the model."""

import math
from dataclasses import replace

import pytest
from trained_net import SETTINGS, frozen_net, student_of, teacher_forced

from glance_core.sampling.velocity import NO_PROMPT
from glance_core.training.trainer import train_pair


@pytest.fixture
def model():
    return frozen_net()


@pytest.fixture
def data(model):
    return teacher_forced(model)


def examples_seen(model, data, settings, slow_steps=2):
    """Return (sigma, prompt row) of every example in the order of training."""
    seen = []

    def velocity(x, sigma, rows):
        seen.extend(zip(sigma.tolist(), rows.tolist(), strict=True))
        return model(x, sigma)

    train_pair(student_of(model, velocity=velocity), data, slow_steps, settings)
    return seen


def test_every_step_and_every_row_is_trained_equally_often(model, data):
    seen = examples_seen(model, data, SETTINGS)
    assert len(data.sigmas) == 4
    for sigma in data.sigmas:
        assert sum(s == sigma for s, _ in seen) == 40 * 8 / 2
    for row in range(10):
        assert sum(r == row for _, r in seen) == 2 * 40 * 8 / 10


def test_with_batches_of_one_every_step_comes_once_per_round(model, data):
    seen = examples_seen(model, data, replace(SETTINGS, steps=60, batch=1), slow_steps=1)[60:]
    fast = set(data.sigmas[1:])
    for at in range(0, 60, 3):
        assert {sigma for sigma, _ in seen[at : at + 3]} == fast
    for at in range(0, 60, 10):
        assert {row for _, row in seen[at : at + 10]} == set(range(10))
    assert len({tuple(sigma for sigma, _ in seen[at : at + 3]) for at in range(0, 60, 3)}) > 3  # the order changes


def test_caption_dropout_shows_the_empty_prompt_to_its_share_of_the_examples(model, data):
    settings = replace(SETTINGS, steps=100, caption_dropout=0.3)
    dropped = sum(row == NO_PROMPT for _, row in examples_seen(model, data, settings))
    assert abs(dropped - 0.3 * 1600) < 4 * math.sqrt(1600 * 0.3 * 0.7)  # four standard deviations of a binomial
    never, always = replace(settings, caption_dropout=0.0), replace(settings, caption_dropout=1.0, steps=2)
    assert not any(row == NO_PROMPT for _, row in examples_seen(model, data, never))
    assert all(row == NO_PROMPT for _, row in examples_seen(model, data, always))


def test_an_example_without_its_caption_keeps_its_state_and_target(model, data):
    seen = []

    def velocity(x, sigma, rows):
        seen.append((x, sigma, rows))
        return model(x, sigma)

    settings = replace(SETTINGS, steps=1, caption_dropout=1.0)
    outcome = train_pair(student_of(model, velocity=velocity), data, 2, settings)
    states, sigmas = data.trajectory.states, data.trajectory.sigmas
    losses = iter(outcome.history.losses)  # of fresh adapters, which leave the model as it is
    assert len(seen) == 2
    for x, sigma, rows in seen:
        assert (rows == NO_PROMPT).all()
        for state, level in zip(x, sigma, strict=True):
            at = sigmas.tolist().index(float(level))
            own = (states[at] == state).all(1)
            assert own.any()
            secant = (states[at] - states[at + 1])[own][0] / (sigmas[at] - sigmas[at + 1])
            error = (model(state[None], level[None])[0] - secant).square().mean()
            assert next(losses) == pytest.approx(float(error), rel=1e-4)
