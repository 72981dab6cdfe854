"""The loop that trains a pair, on a model small enough to know every number of."""

import copy
import math
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import Linear

from glance_core.errors import TrainingError
from glance_core.lora_layers import Lora, whole_slots
from glance_core.objectives import NO_PROMPT, Trajectories, rollout
from glance_core.recompute import blocks_of
from glance_core.schedule import FAST, SLOW, shifted_ladder
from glance_core.student import Student
from glance_core.training import TrainingSettings, train_pair

LADDER = shifted_ladder(20, 2.0)
POINTS = (0, 4, 10, 15)
SETTINGS = TrainingSettings(Lora(4, 8.0), steps=40, batch=8, learning_rate=1e-2, seed=3)


class Block(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.lin, self.gate = Linear(16, 16), Linear(16, 16)
        self.in_place = in_place

    def forward(self, h):
        more = torch.tanh(self.lin(h)) * self.gate(h)
        if not self.in_place:
            return h + more
        h += more
        return h


class Net(nn.Module):
    """velocity(x (B, 4), sigma (B,)), with blocks that add to their input in place or not."""

    def __init__(self, in_place=False):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Linear(5, 16), Linear(16, 4)
        self.blocks = nn.ModuleList(Block(in_place) for _ in range(2))

    def forward(self, x, sigma):
        h = torch.tanh(self.one(torch.cat([x, sigma[:, None]], 1)))
        for block in self.blocks:
            h = block(h)
        return self.two(h)


def velocity_of(model):
    return lambda x, sigma, rows: model(x, sigma)


def student_of(model, targets="one|two", velocity=None, **more):
    return Student(model, velocity or velocity_of(model), whole_slots(model, targets), **more)


@pytest.fixture
def model():
    return Net().requires_grad_(False)


@pytest.fixture
def data(model):
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    return rollout(velocity_of(model), noise, LADDER, POINTS)


def snapshot(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(name, type(module), set(vars(module))) for name, module in model.named_modules()],
        [(name, parameter.requires_grad) for name, parameter in model.named_parameters()],
    )


def unchanged(model, before):
    now = snapshot(model)
    assert now[0].keys() == before[0].keys() and all(torch.equal(now[0][name], before[0][name]) for name in now[0])
    return now[1:] == before[1:]


def same(one, two):
    pairs = [(one[phase][name], two[phase][name]) for phase in (SLOW, FAST) for name in one[phase]]
    return one.keys() == two.keys() and all(torch.equal(a.up, b.up) and torch.equal(a.down, b.down) for a, b in pairs)


# What comes of it


def test_training_brings_the_student_to_the_teachers_secants(model, data):
    done = train_pair(student_of(model), data, 2, replace(SETTINGS, steps=150))

    def distance(at, points):
        with torch.no_grad():
            x, sigma, target = data.secants(torch.tensor(points).repeat_interleave(10), torch.arange(10).repeat(len(points)))
            return float((at(x, sigma) - target).square().mean())

    for phase, points in ((SLOW, [0, 1]), (FAST, [2, 3])):
        merged = Net().requires_grad_(False)
        for name, factor in done.factors[phase].items():
            merged.get_submodule(name).weight += factor.scale * factor.up @ factor.down
        assert distance(merged, points) < 0.5 * distance(model, points)


@pytest.mark.parametrize("lora, scale", [(Lora(4, 8.0), 2.0), (Lora(4, 8.0, rslora=True), 4.0), (Lora(2, 8.0, "gaussian"), 4.0)], ids=str)
def test_the_scale_of_the_factors_is_alpha_over_rank_or_over_its_root(model, data, lora, scale):
    done = train_pair(student_of(model), data, 2, replace(SETTINGS, lora=lora, steps=2))
    assert set(done.factors) == {SLOW, FAST}
    for factors in done.factors.values():
        assert set(factors) == {"one", "two"}
        for factor in factors.values():
            assert (factor.scale, factor.alpha, factor.rank) == (scale, scale * lora.rank, lora.rank)
            assert factor.down.dtype == factor.up.dtype == torch.float32


def test_two_runs_with_one_seed_give_the_same_bits_whatever_the_global_seed(model, data):
    runs = []
    for world in (1, 2):
        torch.manual_seed(world)
        expected = torch.random.get_rng_state()
        runs.append(train_pair(student_of(model), data, 2, SETTINGS))
        assert torch.equal(torch.random.get_rng_state(), expected)
    assert same(runs[0].factors, runs[1].factors) and runs[0].history == runs[1].history
    assert not same(train_pair(student_of(model), data, 2, replace(SETTINGS, seed=4)).factors, runs[0].factors)


def test_the_history_holds_every_examples_loss_at_its_point(model, data):
    told = []
    done = train_pair(student_of(model), data, 2, SETTINGS, told.append)
    assert len(done.history.losses) == len(done.history.points) == 2 * 40 * 8
    assert set(done.history.points[: 40 * 8]) == {0, 1} and set(done.history.points[40 * 8 :]) == {2, 3}
    assert [(step.phase, step.step, step.steps) for step in told] == [(phase, i, 40) for phase in (SLOW, FAST) for i in range(1, 41)]
    for i, step in enumerate(told):
        assert step.loss == pytest.approx(sum(done.history.losses[8 * i : 8 * i + 8]) / 8, rel=1e-6)


def test_the_factors_on_the_way_are_those_of_a_shorter_run(model, data):
    constant = replace(SETTINGS, steps=9, decay="constant", warmup=0)
    on_the_way = []
    train_pair(student_of(model), data, 2, constant, lambda step: step.step == 5 and on_the_way.append(step.factors()))
    shorter = train_pair(student_of(model), data, 2, replace(constant, steps=5)).factors
    assert same({phase: on_the_way[0][phase] for phase in (SLOW,)} | {FAST: on_the_way[1][FAST]}, shorter)


# Beside a loop written by hand


def by_hand(model, batches, settings):
    """Slow's training with PEFT's own layers and torch's AdamW; batches: (x, sigma, target) of every step, whole."""
    lora = settings.lora
    theirs = copy.deepcopy(model)
    init = {"kaiming": True, "gaussian": "gaussian"}[lora.init]
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, use_rslora=lora.rslora, init_lora_weights=init, target_modules=["one", "two"]
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    inject_adapter_in_model(config, theirs)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay)
    rising = settings.warmup * settings.steps
    for step, (x, sigma, target) in enumerate(batches):
        falling = {
            "linear": 1 - step / settings.steps,
            "cosine": 0.5 + 0.5 * math.cos(math.pi * step / settings.steps),
            "constant": 1.0,
        }[settings.decay]
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (min(1, (step + 1) / rising) if rising else 1) * falling
        optimizer.zero_grad()
        (theirs(x, sigma) - target).square().mean().backward()
        if settings.clip:
            norm = torch.stack([p.grad.square().sum() for p in parameters]).sum().sqrt()
            for p in parameters:
                p.grad.mul_(min(1.0, settings.clip / (float(norm) + 1e-6)))
        optimizer.step()
    return {
        name: (getattr(theirs, name).lora_A["default"].weight, getattr(theirs, name).lora_B["default"].weight) for name in ("one", "two")
    }


@pytest.mark.parametrize("changes", [
    {}, {"clip": 0.01}, {"clip": 0.0}, {"weight_decay": 1.0}, {"warmup": 0.0}, {"warmup": 0.5}, {"decay": "cosine"}, {"decay": "constant"},
    {"betas": (0.5, 0.9)}, {"batch": 2, "accumulation": 4}, {"lora": Lora(4, 8.0, rslora=True)}, {"lora": Lora(4, 8.0, "gaussian")},
], ids=str)  # fmt: skip
def test_a_run_is_the_loop_one_would_write_by_hand_with_peft_and_adamw(model, data, changes):
    settings = replace(SETTINGS, steps=10, learning_rate=0.02, **changes)
    seen = []

    def velocity(x, sigma, rows):
        seen.append((x.clone(), sigma.clone(), rows.clone()))
        return model(x, sigma)

    done = train_pair(student_of(model, velocity=velocity), data, 2, settings)
    targets = [(data.states[i, rows] - data.states[i + 1, rows]) / (data.sigmas[i] - data.sigmas[i + 1]) for i in range(2)
               for rows in [torch.arange(10)]]  # fmt: skip
    every = settings.accumulation
    batches = []
    for step in range(settings.steps):
        x, sigma, rows = (torch.cat(parts) for parts in zip(*seen[step * every : (step + 1) * every], strict=True))
        point = (sigma[:, None] == data.sigmas[None, :2]).int().argmax(1)
        batches.append((x, sigma, torch.stack(targets)[point, rows]))
    for name, (down, up) in by_hand(model, batches, settings).items():
        factor = done.factors[SLOW][name]
        assert up.abs().max() > 0.005
        assert torch.allclose(factor.down, down, atol=2e-5) and torch.allclose(factor.up, up, atol=2e-5)


def test_accumulated_batches_are_one_large_batch(model):
    states = torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(0))  # one row: what is drawn is then the points alone
    data = Trajectories(states, torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0]))
    large = train_pair(student_of(model), data, 2, replace(SETTINGS, steps=6))
    small = train_pair(student_of(model), data, 2, replace(SETTINGS, steps=6, batch=2, accumulation=4))
    for phase in (SLOW, FAST):
        for name in ("one", "two"):
            assert torch.allclose(large.factors[phase][name].up, small.factors[phase][name].up, atol=1e-5)


def test_a_scaled_loss_gives_the_same_factors(model, data):
    """For models in half precision the loss is scaled by a power of two, which fp32 does not notice."""
    assert same(
        train_pair(student_of(model, half=True), data, 2, SETTINGS).factors, train_pair(student_of(model), data, 2, SETTINGS).factors
    )


# What is drawn


def drawn(model, data, settings, slow_steps=2):
    seen = []

    def velocity(x, sigma, rows):
        seen.extend(zip(sigma.tolist(), rows.tolist(), strict=True))
        return model(x, sigma)

    train_pair(student_of(model, velocity=velocity), data, slow_steps, settings)
    return seen


def test_every_point_and_every_row_is_trained_equally_often(model, data):
    seen = drawn(model, data, SETTINGS)
    for sigma in data.sigmas[:-1].tolist():
        assert sum(s == sigma for s, _ in seen) == 40 * 8 / 2
    for row in range(10):
        assert sum(r == row for _, r in seen) == 2 * 40 * 8 / 10


def test_with_one_example_a_step_no_point_waits_longer_than_a_round(model, data):
    seen = drawn(model, data, replace(SETTINGS, steps=60, batch=1), slow_steps=1)[60:]
    fast = set(data.sigmas[1:-1].tolist())
    for at in range(0, 60, 3):
        assert {sigma for sigma, _ in seen[at : at + 3]} == fast
    for at in range(0, 60, 10):
        assert {row for _, row in seen[at : at + 10]} == set(range(10))
    assert len({tuple(sigma for sigma, _ in seen[at : at + 3]) for at in range(0, 60, 3)}) > 3  # and the order changes


def test_caption_dropout_shows_the_empty_prompt_to_its_share_of_the_examples(model, data):
    settings = replace(SETTINGS, steps=100, caption_dropout=0.3)
    dropped = sum(row == NO_PROMPT for _, row in drawn(model, data, settings))
    assert abs(dropped - 0.3 * 1600) < 4 * math.sqrt(1600 * 0.3 * 0.7)
    assert not any(row == NO_PROMPT for _, row in drawn(model, data, replace(settings, caption_dropout=0.0)))
    assert all(row == NO_PROMPT for _, row in drawn(model, data, replace(settings, caption_dropout=1.0, steps=2)))


def test_an_example_without_its_caption_keeps_its_state_and_target(model, data):
    seen = []

    def velocity(x, sigma, rows):
        seen.append((x, sigma, rows))
        return model(x, sigma)

    train_pair(student_of(model, velocity=velocity), data, 2, replace(SETTINGS, steps=1, caption_dropout=1.0))
    for x, sigma, rows in seen:
        assert (rows == NO_PROMPT).all()
        for one, level in zip(x, sigma, strict=True):
            at = data.sigmas.tolist().index(float(level))
            assert (data.states[at] == one).all(1).any()


# The base is sacred


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [None, Stop, KeyboardInterrupt], ids=["finished", "exception", "interrupt"])
@pytest.mark.parametrize("blocks", [False, True], ids=["", "recomputed"])
def test_the_base_is_bit_exact_and_as_it_was_however_training_ends(data, error, blocks):
    model = Net()  # its parameters ask for gradients, some do not: so shall it be afterwards
    model.two.bias.requires_grad_(False)
    before, keys = snapshot(model), list(model.state_dict())

    def velocity(x, sigma, rows):
        assert list(model.state_dict()) == keys
        assert not any(p.requires_grad for p in model.parameters())
        return model(x, sigma)

    def report(step):
        assert list(model.state_dict()) == keys and snapshot(model)[1] == before[1]
        if error and step.phase == FAST and step.step == 2:
            raise error

    student = student_of(model, velocity=velocity, blocks=blocks_of(model) if blocks else None)
    if error:
        with pytest.raises(error):
            train_pair(student, data, 2, replace(SETTINGS, steps=3), report)
    else:
        train_pair(student, data, 2, replace(SETTINGS, steps=3), report)
    assert unchanged(model, before)
    assert all(p.grad is None for p in model.parameters())


def test_an_error_inside_the_model_leaves_it_as_it_was(model, data):
    before, calls = snapshot(model), []

    def velocity(x, sigma, rows):
        calls.append(1)
        out = model(x, sigma)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return out

    with pytest.raises(KeyboardInterrupt):
        train_pair(student_of(model, velocity=velocity, blocks=blocks_of(model)), data, 2, SETTINGS)
    assert unchanged(model, before)


# Blocks that change their inputs in place


@pytest.mark.parametrize("blocks", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_model_that_works_in_place_trains_as_its_twin_that_does_not(model, data, blocks, accumulation):
    settings = replace(SETTINGS, accumulation=accumulation)
    targets = r"one|two|blocks\.\d\.(lin|gate)"
    twin = Net(in_place=True).requires_grad_(False)
    expected = train_pair(student_of(model, targets), data, 2, settings)
    found = train_pair(student_of(twin, targets, blocks=blocks_of(twin) if blocks else None), data, 2, settings)
    for phase in (SLOW, FAST):
        for name, factor in expected.factors[phase].items():
            assert torch.allclose(found.factors[phase][name].up, factor.up, atol=1e-4)
            assert torch.allclose(found.factors[phase][name].down, factor.down, atol=1e-4)
    assert found.history.losses == pytest.approx(expected.history.losses, rel=1e-3)


def test_in_place_blocks_really_are_a_problem_for_plain_autograd():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Net(in_place=True)(torch.zeros(2, 4), torch.zeros(2)).sum().backward()


def test_a_model_whose_blocks_are_not_called_is_told_to_do_without_recomputing(model, data):
    student = student_of(model, velocity=lambda x, sigma, rows: model.two(model.one(torch.cat([x, sigma[:, None]], 1))), name="Tiny")
    before = snapshot(model)
    with pytest.raises(TrainingError, match="Tiny never called its blocks as modules"):
        train_pair(replace(student, blocks=blocks_of(model)), data, 2, SETTINGS)
    assert unchanged(model, before)


# What stops a run


def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_the_factors(model, data, tmp_path):
    file, copies = tmp_path / "run.safetensors", []

    def velocity(x, sigma, rows):
        out = model(x, sigma)
        return out * math.nan if len(copies) == 7 else out

    before = snapshot(model)
    settings = replace(SETTINGS, save_every=2)
    with pytest.raises(
        TrainingError, match=r"training stopped at step 8 of slow: the loss is nan; the last good state is kept in run.safetensors"
    ):
        train_pair(student_of(model, velocity=velocity), data, 2, settings,
                   lambda step: copies.append(file.read_bytes() if file.exists() else b""), file)  # fmt: skip
    assert file.read_bytes() == copies[-1] != b""
    assert unchanged(model, before)


def test_a_gradient_that_is_no_number_stops_the_run(model, data):
    def velocity(x, sigma, rows):
        out = model(x, sigma)
        return out + torch.sqrt(out - out.detach())  # 0, with an infinite slope

    with pytest.raises(TrainingError, match="training stopped at step 1 of slow: the gradient's norm is"):
        train_pair(student_of(model, velocity=velocity), data, 2, SETTINGS)


def test_a_loss_that_grows_beyond_ten_times_its_start_stops_the_run(model, data, tmp_path):
    file, copies = tmp_path / "run.safetensors", []
    settings = replace(SETTINGS, learning_rate=1e3, clip=0.0, warmup=0.0, save_every=1)
    with pytest.raises(
        TrainingError, match=r"training stopped at step \d+ of slow: the loss grew from .+ to .+; lower the learning_rate"
    ) as told:
        train_pair(student_of(model), data, 2, settings, lambda step: copies.append(file.read_bytes() if file.exists() else b""), file)
    assert "kept in run.safetensors" in str(told.value)
    assert file.read_bytes() == copies[-1] != b""


@pytest.mark.parametrize("scale", [1e-9, 1.0])
def test_a_base_that_is_right_already_does_not_count_as_diverging(model, scale):
    """Neighbouring teacher steps: the secant is the base's own velocity, and the first losses are rounding errors."""
    noise = scale * torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    data = rollout(velocity_of(model), noise, LADDER, (0, 1, 2, 3))
    train_pair(student_of(model), data, 3, replace(SETTINGS, batch=1))


@pytest.mark.parametrize("slow_steps", [0, 4])
def test_a_phase_without_points_is_refused(model, data, slow_steps):
    with pytest.raises(TrainingError, match=f"slow_steps = {slow_steps} of 4 leaves a phase without training; choose 1 to 3"):
        train_pair(student_of(model), data, slow_steps, SETTINGS)


@pytest.mark.parametrize("name, value", [
    ("steps", 0), ("batch", 0), ("accumulation", 0), ("save_every", -1), ("learning_rate", 0.0), ("learning_rate", -1.0),
    ("learning_rate", math.nan), ("learning_rate", math.inf), ("warmup", -0.1), ("warmup", 1.1), ("warmup", math.nan),
    ("caption_dropout", 2.0), ("clip", -1.0), ("clip", math.nan), ("weight_decay", -1.0), ("weight_decay", math.nan), ("decay", "sudden"),
    ("weight_decay", math.inf), ("betas", (0.9, 1.0)), ("betas", (-0.1, 0.9)), ("optimizer", "sgd"), ("seed", -1), ("seed", 2**63),
])  # fmt: skip
def test_settings_out_of_range_are_refused_by_name_before_anything_runs(name, value):
    with pytest.raises(TrainingError, match=name):
        replace(SETTINGS, **{name: value})


@pytest.mark.parametrize("stated, said", [
    ((0, 1.0), "rank is 0"), ((4, 0.0), "alpha 0"), ((4, math.nan), "alpha nan"), ((4, math.inf), "alpha inf"), ((4, 4.0, "zeros"), "init is 'zeros'; choose"),
])  # fmt: skip
def test_a_lora_that_cannot_be_meant_is_refused(stated, said):
    with pytest.raises(TrainingError, match=said):
        Lora(*stated)


def test_dora_is_refused_with_its_reason():
    with pytest.raises(TrainingError, match=r"DoRA rescales the base's weights.+train plain LoRA or rslora"):
        Lora(4, 4.0, dora=True)


def test_eight_bit_adam_without_bitsandbytes_is_one_sentence(model, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        TrainingError, match="optimizer adamw8bit needs bitsandbytes; install it with pip install bitsandbytes, or choose adamw"
    ):
        train_pair(student_of(model), data, 2, replace(SETTINGS, optimizer="adamw8bit"))
