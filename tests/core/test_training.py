"""The trajectory objective and the loop around it, on a model small enough to know every number of."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from glance_core.errors import GlanceError
from glance_core.objectives import rollout, trajectory_loss
from glance_core.sampling import euler
from glance_core.schedule import FAST, SLOW, shifted_ladder
from glance_core.training import TrainingSettings, adapters, train_pair

LADDER = shifted_ladder(20, 2.0)
POINTS = (0, 4, 10, 15)
SETTINGS = TrainingSettings(r"(one|two)", steps=40, batch=8, rank=4, alpha=8.0, learning_rate=1e-2, seed=3)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(5, 16), nn.Linear(16, 4)

    def forward(self, x, sigma):
        return self.two(torch.tanh(self.one(torch.cat([x, sigma[:, None]], 1))))


def velocity_of(model):
    return lambda x, sigma, rows: model(x, sigma)


@pytest.fixture
def student():
    return Student().requires_grad_(False)


@pytest.fixture
def data(student):
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    return rollout(velocity_of(student), noise, LADDER, POINTS, batch=4)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_rollout_keeps_what_a_sampler_passes_through(student, data):
    noise = data.states[0]
    passed = {}
    final = euler(lambda x, sigma: student(x, torch.full((len(x),), sigma)), noise, LADDER, lambda i, x, sigma: passed.update({i: x}))
    for at, step in enumerate(POINTS):
        assert torch.allclose(data.states[at], passed[step], atol=1e-6)
    assert torch.allclose(data.states[-1], final, atol=1e-6)
    assert data.sigmas.tolist() == pytest.approx([*(LADDER[step] for step in POINTS), 0])


def test_one_euler_step_along_a_secant_lands_where_the_teacher_did(data):
    points, rows = torch.tensor([0, 2, 3, 1]), torch.tensor([7, 0, 3, 9])
    x, sigma, target = data.secants(points, rows)
    landed = x + (data.sigmas[points + 1] - sigma)[:, None] * target
    assert torch.allclose(landed, data.states[points + 1, rows], atol=1e-6)


def test_the_gradient_of_the_loss_is_that_of_finite_differences(student, data):
    student, data = student.double(), replace(data, states=data.states.double(), sigmas=data.sigmas.double())
    weight = student.two.weight.requires_grad_(True)
    points, rows = torch.tensor([0, 3, 2]), torch.tensor([1, 1, 5])
    loss = trajectory_loss(velocity_of(student), data, points, rows)
    (gradient,) = torch.autograd.grad(loss, weight)
    for at in ((0, 0), (2, 7), (3, 15)):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight[at] += shift
                values.append(float(trajectory_loss(velocity_of(student), data, points, rows)))
                weight[at] -= shift
        assert float(gradient[at]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_points_that_do_not_rise_below_the_end_are_refused(student):
    for points in ((), (0, 20), (5, 3), (-1, 4)):
        with pytest.raises(GlanceError, match="must rise and lie from 0 to 19"):
            rollout(velocity_of(student), torch.zeros(1, 4), LADDER, points)


def test_training_brings_the_student_to_the_teachers_secants_and_leaves_the_base_as_it_was(student, data):
    before, names = state(student), [name for name, _ in student.named_modules()]
    losses = {SLOW: [], FAST: []}
    factors = train_pair(student, velocity_of(student), data, 2, replace(SETTINGS, steps=150), lambda p, i, loss: losses[p].append(loss))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert [name for name, _ in student.named_modules()] == names
    assert not any(p.requires_grad for p in student.parameters())
    for phase, points in ((SLOW, [0, 1]), (FAST, [2, 3])):
        assert len(losses[phase]) == 150
        rows = torch.arange(10)

        def loss(model, points=points, rows=rows):
            return sum(float(trajectory_loss(velocity_of(model), data, torch.full((10,), point), rows)) for point in points)

        merged = Student().requires_grad_(False)
        for name, factor in factors[phase].items():
            merged.get_submodule(name).weight += factor.scale * factor.up @ factor.down
        assert loss(merged) < 0.5 * loss(student)


def test_the_scale_of_the_factors_is_alpha_over_rank(student, data):
    factors = train_pair(student, velocity_of(student), data, 2, replace(SETTINGS, steps=2))
    assert {(f.alpha, f.scale, f.rank) for phase in factors.values() for f in phase.values()} == {(8.0, 2.0, 4)}
    assert set(factors[SLOW]) == {"one", "two"}


def test_two_runs_with_one_seed_give_the_same_bits_whatever_the_global_seed(student, data):
    runs = []
    for world in (1, 2):
        torch.manual_seed(world)
        runs.append(train_pair(student, velocity_of(student), data, 2, SETTINGS))
    for phase in (SLOW, FAST):
        for name in ("one", "two"):
            assert torch.equal(runs[0][phase][name].up, runs[1][phase][name].up)
            assert torch.equal(runs[0][phase][name].down, runs[1][phase][name].down)
    other = train_pair(student, velocity_of(student), data, 2, replace(SETTINGS, seed=4))
    assert not torch.equal(other[SLOW]["one"].up, runs[0][SLOW]["one"].up)


def test_an_exception_in_training_leaves_the_base_as_it_was(student, data):
    before = state(student)

    def fail(phase, step, loss):
        if phase == FAST and step == 3:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train_pair(student, velocity_of(student), data, 2, SETTINGS, fail)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert type(student.one) is nn.Linear and not hasattr(student, "peft_config")


def test_peft_layers_are_where_the_targets_match_and_nowhere_else(student):
    with adapters(student, replace(SETTINGS, targets="two")) as layers:
        assert list(layers) == ["two"]
        assert type(student.one) is nn.Linear
        assert student.two.lora_A[SLOW].weight.shape == (4, 16)
    assert type(student.two) is nn.Linear


def test_every_point_is_trained_equally_often(student, data):
    seen = []

    def velocity(x, sigma, rows):
        seen.extend(sigma.tolist())
        return student(x, sigma)

    train_pair(student, velocity, data, 2, SETTINGS)
    assert {round(s, 6): seen.count(s) for s in seen} == {round(float(s), 6): 40 * 8 / 2 for s in data.sigmas[:-1]}


@pytest.mark.parametrize("slow_steps", [0, 4])
def test_a_phase_without_points_is_refused(student, data, slow_steps):
    with pytest.raises(GlanceError, match=f"slow_steps = {slow_steps} of 4 leaves a phase without training"):
        train_pair(student, velocity_of(student), data, slow_steps, SETTINGS)
