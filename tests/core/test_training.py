"""What the training loop gives on a small model, compared with a loop written by hand."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from trained_net import (
    SETTINGS,
    Net,
    frozen_net,
    same_factors,
    student_of,
    teacher_forced,
)

from glance_core.sampling.rollout import TeacherTrajectory
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.objectives import TeacherForced
from glance_core.training.trainer import train_pair


@pytest.fixture
def model():
    return frozen_net()


@pytest.fixture
def data(model):
    return teacher_forced(model)


def test_training_brings_the_student_closer_to_the_teachers_secants(model, data):
    outcome = train_pair(student_of(model), data, 2, replace(SETTINGS, steps=150))

    def distance(at, steps):
        with torch.no_grad():
            drawn = data.draw(
                torch.tensor(steps).repeat_interleave(10), torch.arange(10).repeat(len(steps)), torch.Generator()
            )
            return float((at(drawn.x, drawn.sigma) - drawn.target).square().mean())

    for phase, steps in ((SLOW, [0, 1]), (FAST, [2, 3])):
        merged = Net().requires_grad_(False)
        for name, factor in outcome.factors[phase].items():
            merged.get_submodule(name).weight += factor.scale * factor.up @ factor.down
        assert distance(merged, steps) < 0.5 * distance(model, steps)


@pytest.mark.parametrize(
    "lora, scale",
    [(LoraSettings(4, 8.0), 2.0), (LoraSettings(4, 8.0, rslora=True), 4.0), (LoraSettings(2, 8.0, "gaussian"), 4.0)],
    ids=str,
)
def test_factors_are_scaled_by_alpha_over_rank_or_over_its_root(model, data, lora, scale):
    outcome = train_pair(student_of(model), data, 2, replace(SETTINGS, lora=lora, steps=2))
    assert set(outcome.factors) == {SLOW, FAST}
    for factors in outcome.factors.values():
        assert set(factors) == {"one", "two"}
        for factor in factors.values():
            assert (factor.scale, factor.alpha, factor.rank) == (scale, scale * lora.rank, lora.rank)
            assert factor.down.dtype == factor.up.dtype == torch.float32


def test_two_runs_with_one_seed_give_the_same_bits_whatever_the_global_seed(model, data):
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        expected = torch.random.get_rng_state()
        runs.append(train_pair(student_of(model), data, 2, SETTINGS))
        assert torch.equal(torch.random.get_rng_state(), expected)
    assert same_factors(runs[0].factors, runs[1].factors) and runs[0].history == runs[1].history
    other_seed = train_pair(student_of(model), data, 2, replace(SETTINGS, seed=4))
    assert not same_factors(other_seed.factors, runs[0].factors)


def test_the_history_holds_the_loss_and_the_step_of_every_example(model, data):
    reports = []
    outcome = train_pair(student_of(model), data, 2, SETTINGS, reports.append)
    assert len(outcome.history.losses) == len(outcome.history.steps) == 2 * 40 * 8
    assert set(outcome.history.steps[: 40 * 8]) == {0, 1} and set(outcome.history.steps[40 * 8 :]) == {2, 3}
    assert [(step.part, step.step, step.steps) for step in reports] == [
        (phase, i, 40) for phase in (SLOW, FAST) for i in range(1, 41)
    ]
    for i, step in enumerate(reports):
        assert step.loss == pytest.approx(sum(outcome.history.losses[8 * i : 8 * i + 8]) / 8, rel=1e-6)


def test_the_reported_factors_are_those_of_a_shorter_run(model, data):
    constant = replace(SETTINGS, steps=9, decay="constant", warmup=0)
    reported = []
    train_pair(student_of(model), data, 2, constant, lambda step: step.step == 5 and reported.append(step.factors()))
    shorter = train_pair(student_of(model), data, 2, replace(constant, steps=5)).factors
    assert same_factors({phase: reported[0][phase] for phase in (SLOW,)} | {FAST: reported[1][FAST]}, shorter)


def train_by_hand(model, batches, settings):
    """Train Slow with PEFT's own layers and torch's AdamW; batches: (x, sigma, target) of every step."""
    lora = settings.lora
    theirs = copy.deepcopy(model)
    init = {"kaiming": True, "gaussian": "gaussian"}[lora.init]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        init_lora_weights=init,
        target_modules=["one", "two"],
    )
    torch.manual_seed(settings.seed)
    inject_adapter_in_model(config, theirs)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    rising = settings.warmup * settings.steps
    for step, (x, sigma, target) in enumerate(batches):
        falling = {
            "linear": 1 - step / settings.steps,
            "cosine": 0.5 + 0.5 * math.cos(math.pi * step / settings.steps),
            "constant": 1.0,
        }[settings.decay]
        warmed = min(1, (step + 1) / rising) if rising else 1
        optimizer.param_groups[0]["lr"] = settings.learning_rate * warmed * falling
        optimizer.zero_grad()
        (theirs(x, sigma) - target).square().mean().backward()
        if settings.clip:
            norm = torch.stack([p.grad.square().sum() for p in parameters]).sum().sqrt()
            for p in parameters:
                p.grad.mul_(min(1.0, settings.clip / (float(norm) + 1e-6)))
        optimizer.step()
    return {
        name: (getattr(theirs, name).lora_A["default"].weight, getattr(theirs, name).lora_B["default"].weight)
        for name in ("one", "two")
    }


@pytest.mark.parametrize("changes", [
    {}, {"clip": 0.01}, {"clip": 0.0}, {"weight_decay": 1.0}, {"warmup": 0.0}, {"warmup": 0.5}, {"decay": "cosine"},
    {"decay": "constant"}, {"betas": (0.5, 0.9)}, {"batch": 2, "accumulation": 4},
    {"lora": LoraSettings(4, 8.0, rslora=True)}, {"lora": LoraSettings(4, 8.0, "gaussian")},
], ids=str)  # fmt: skip
def test_a_run_equals_a_loop_written_by_hand_with_peft_and_adamw(model, data, changes):
    settings = replace(SETTINGS, steps=10, learning_rate=0.02, **changes)
    seen = []

    def velocity(x, sigma, rows):
        seen.append((x.clone(), sigma.clone(), rows.clone()))
        return model(x, sigma)

    outcome = train_pair(student_of(model, velocity=velocity), data, 2, settings)
    states, sigmas = data.trajectory.states, data.trajectory.sigmas
    secants = torch.stack([(states[i] - states[i + 1]) / (sigmas[i] - sigmas[i + 1]) for i in range(2)])
    calls = settings.accumulation
    batches = []
    for step in range(settings.steps):
        x, sigma, rows = (torch.cat(parts) for parts in zip(*seen[step * calls : (step + 1) * calls], strict=True))
        at = (sigma[:, None] == sigmas[None, :2]).int().argmax(1)
        batches.append((x, sigma, secants[at, rows]))
    for name, (down, up) in train_by_hand(model, batches, settings).items():
        factor = outcome.factors[SLOW][name]
        assert up.abs().max() > 0.005
        assert torch.allclose(factor.down, down, atol=2e-5) and torch.allclose(factor.up, up, atol=2e-5)


def test_accumulated_batches_equal_one_large_batch(model):
    # With a single row, only the order of steps is random.
    states = torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(0))
    data = TeacherForced(TeacherTrajectory(states, torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0])))
    large = train_pair(student_of(model), data, 2, replace(SETTINGS, steps=6))
    small = train_pair(student_of(model), data, 2, replace(SETTINGS, steps=6, batch=2, accumulation=4))
    for phase in (SLOW, FAST):
        for name in ("one", "two"):
            assert torch.allclose(large.factors[phase][name].up, small.factors[phase][name].up, atol=1e-5)


def test_a_scaled_loss_gives_the_same_factors(model, data):
    """A half-precision model's loss is scaled by a power of two, which changes no bit in fp32."""
    assert same_factors(
        train_pair(student_of(model, half=True), data, 2, SETTINGS).factors,
        train_pair(student_of(model), data, 2, SETTINGS).factors,
    )
