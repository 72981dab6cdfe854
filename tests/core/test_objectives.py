"""What the student is trained towards: the teacher's secants, and the paper's flow matching."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import Linear

from glance_core.errors import GlanceError
from glance_core.sampling.rollout import Teacher, rollout
from glance_core.sampling.samplers import euler
from glance_core.sampling.velocity import with_and_without_prompt
from glance_core.schedule.sigmas import shifted_sigmas
from glance_core.training.objectives import Drawn, FlowMatching, TeacherForced, losses

TEACHER_SIGMAS = shifted_sigmas(20, 2.0)
STEPS = (0, 4, 10, 15)
SIGMAS = (1.0, 0.75, 0.3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Linear(5, 16), Linear(16, 4)

    def forward(self, x, sigma, rows=None):
        return self.two(torch.tanh(self.one(torch.cat([x, sigma[:, None]], 1))))


@pytest.fixture
def model():
    return Net().requires_grad_(False)


@pytest.fixture
def trajectory(model):
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    return rollout(Teacher(model, TEACHER_SIGMAS, batch=4), noise, STEPS)


def test_a_rollout_keeps_the_states_that_a_sampler_passes_through(model, trajectory):
    passed = {}
    final = euler(
        lambda x, sigma: model(x, torch.full((len(x),), sigma)),
        trajectory.states[0],
        TEACHER_SIGMAS,
        lambda i, x, sigma: passed.update({i: x}),
    )
    for at, step in enumerate(STEPS):
        assert torch.allclose(trajectory.states[at], passed[step], atol=1e-6)
    assert torch.allclose(trajectory.states[-1], final, atol=1e-6)
    assert trajectory.sigmas.tolist() == pytest.approx([*(TEACHER_SIGMAS[step] for step in STEPS), 0])
    data = TeacherForced(trajectory)
    assert data.sigmas == pytest.approx([TEACHER_SIGMAS[step] for step in STEPS]) and data.rows == 10


def test_one_euler_step_along_a_secant_lands_where_the_teacher_did(trajectory):
    steps, rows = torch.tensor([0, 2, 3, 1]), torch.tensor([7, 0, 3, 9])
    drawn = TeacherForced(trajectory).draw(steps, rows, torch.Generator())
    assert torch.equal(drawn.sigma, trajectory.sigmas[steps])
    assert torch.equal(drawn.x, trajectory.states[steps, rows])
    landed = drawn.x + (trajectory.sigmas[steps + 1] - drawn.sigma)[:, None] * drawn.target
    assert torch.allclose(landed, trajectory.states[steps + 1, rows], atol=1e-6)


def test_the_gradient_of_the_loss_equals_finite_differences(model, trajectory, monkeypatch):
    # The loss is computed in fp32, which is too coarse for differences.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model = model.double()
    data = TeacherForced(replace(trajectory, states=trajectory.states.double(), sigmas=trajectory.sigmas.double()))
    weight = model.two.weight.requires_grad_(True)
    steps, rows = torch.tensor([0, 3, 2]), torch.tensor([1, 1, 5])

    def loss():
        return losses(model, data.draw(steps, rows, torch.Generator()), rows).mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    for at in ((0, 0), (2, 7), (3, 15)):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight[at] += shift
                values.append(loss().item())
                weight[at] -= shift
        assert gradient[at].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_the_loss_is_the_mean_squared_distance_of_each_example():
    target = torch.tensor([[[1.0, 2], [3, 4], [5, 6]], [[0.0, 0], [0, 0], [0, 3]]])
    drawn = Drawn(torch.zeros(2, 3, 2), torch.ones(2), target)
    found = losses(lambda x, sigma, rows: x + rows[:, None, None], drawn, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([91 / 6, (5 * 1 + 4) / 6])


def test_teacher_steps_that_do_not_rise_or_lie_outside_are_rejected(model):
    for steps in ((), (0, 20), (5, 3), (-1, 4)):
        with pytest.raises(GlanceError, match="must rise and lie from 0 to 19"):
            rollout(Teacher(model, TEACHER_SIGMAS), torch.zeros(1, 4), steps)


# arXiv 2512.02899, section 4: x_t = (1 - t) x_0 + t eps, and the target is eps - x_0.


def draw_five(flow=True, seed=5):
    """Return the objective, steps (5,), rows (5,) and what is drawn for them."""
    data = FlowMatching(torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)), SIGMAS, flow)
    steps, rows = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([3, 0, 1, 1, 2])
    return data, steps, rows, data.draw(steps, rows, torch.Generator().manual_seed(seed))


def test_flow_matching_follows_the_papers_formula():
    data, steps, rows, drawn = draw_five()
    for i in range(5):
        level, x0 = SIGMAS[steps[i]], data.latents[rows[i]]
        noise = drawn.target[i] + x0
        assert float(drawn.sigma[i]) == pytest.approx(level)
        assert torch.allclose(drawn.x[i], (1 - level) * x0 + level * noise, atol=1e-6)
    assert data.sigmas == SIGMAS and data.rows == 4


def test_flow_matching_noise_is_standard_normal_fresh_and_seeded():
    data, _, _, drawn = draw_five()
    target, again, other = drawn.target, draw_five()[3].target, draw_five(seed=6)[3].target
    assert torch.equal(target, again) and not torch.equal(target, other)
    assert not torch.equal(target[2] + data.latents[1], target[3] + data.latents[1])
    first = torch.zeros(200, dtype=torch.long)
    many = FlowMatching(torch.zeros(1, 1000), SIGMAS).draw(first, first, torch.Generator()).target
    assert float(many.mean()) == pytest.approx(0, abs=0.01) and float(many.std()) == pytest.approx(1, abs=0.01)


def test_one_exact_step_from_any_sigma_lands_on_the_picture():
    data, _, rows, drawn = draw_five()
    assert torch.allclose(drawn.x - drawn.sigma[:, None, None, None] * drawn.target, data.latents[rows], atol=1e-6)


def test_a_model_that_is_not_a_flow_learns_the_noise():
    data, steps, rows, drawn = draw_five(flow=False)
    for i in range(5):
        assert torch.allclose(drawn.x[i], data.latents[rows[i]] + SIGMAS[steps[i]] * drawn.target[i], atol=1e-6)


def test_a_teacher_that_visits_fewer_steps_is_second_order():
    """dx/dsigma = x has the solution x0 exp(sigma - 1): three times as many steps divide the error by nine."""

    def velocity(x, sigma, rows):
        return x

    noise, errors = torch.ones(2, 3, dtype=torch.float64), []
    for steps in (30, 90):
        sigmas = shifted_sigmas(steps, 1.0)
        found = rollout(Teacher(velocity, sigmas), noise, (0, steps // 3), visited_steps=range(0, steps, 2))
        exact = torch.tensor([1.0, sigmas[steps // 3], 0.0], dtype=torch.float64).sub(1).exp()
        assert torch.equal(found.states[0], noise)
        errors.append(float((found.states[:, 0, 0] - exact).abs().max()))
    assert 7 < errors[0] / errors[1] < 11
    every_step = rollout(Teacher(velocity, shifted_sigmas(90, 1.0)), noise, (0,))
    euler_error = float((every_step.states[-1] - math.exp(-1)).abs().max())
    assert errors[1] < 0.2 * euler_error  # with half the steps


def test_visited_steps_that_leave_a_wanted_step_out_are_rejected():
    teacher = Teacher(lambda x, sigma, rows: x, shifted_sigmas(10, 1.0))
    with pytest.raises(GlanceError, match=r"must hold 0 and \[0, 5\]"):
        rollout(teacher, torch.ones(1, 2), (0, 5), visited_steps=(0, 4))


def test_one_call_gives_the_velocities_with_and_without_prompt():
    asked = []

    def velocity(x, sigma, rows):
        asked.append(rows.tolist())
        return x * (rows + 2).reshape(-1, 1)

    cond, uncond = with_and_without_prompt(velocity)(torch.ones(2, 1), torch.ones(2), torch.tensor([3, 5]), True)
    assert asked == [[3, 5, -1, -1]]
    assert cond.flatten().tolist() == [5, 7] and uncond.flatten().tolist() == [1, 1]
