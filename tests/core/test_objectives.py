"""What the student is trained towards: the teacher's secants, and the paper's flow matching."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import Linear

from glance_core.errors import GlanceError
from glance_core.objectives import FlowMatching, both, losses, rollout
from glance_core.sampling import euler
from glance_core.schedule import shifted_ladder

LADDER = shifted_ladder(20, 2.0)
POINTS = (0, 4, 10, 15)
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
def data(model):
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    return rollout(model, noise, LADDER, POINTS, batch=4)


def test_the_rollout_keeps_what_a_sampler_passes_through(model, data):
    passed = {}
    final = euler(
        lambda x, sigma: model(x, torch.full((len(x),), sigma)), data.states[0], LADDER, lambda i, x, sigma: passed.update({i: x})
    )
    for at, step in enumerate(POINTS):
        assert torch.allclose(data.states[at], passed[step], atol=1e-6)
    assert torch.allclose(data.states[-1], final, atol=1e-6)
    assert data.sigmas.tolist() == pytest.approx([*(LADDER[step] for step in POINTS), 0])
    assert data.points == pytest.approx([LADDER[step] for step in POINTS]) and data.rows == 10


def test_one_euler_step_along_a_secant_lands_where_the_teacher_did(data):
    points, rows = torch.tensor([0, 2, 3, 1]), torch.tensor([7, 0, 3, 9])
    x, sigma, target = data.draw(points, rows, torch.Generator())
    assert torch.equal(sigma, data.sigmas[points]) and torch.equal(x, data.states[points, rows])
    landed = x + (data.sigmas[points + 1] - sigma)[:, None] * target
    assert torch.allclose(landed, data.states[points + 1, rows], atol=1e-6)


def test_the_gradient_of_the_loss_is_that_of_finite_differences(model, data, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the loss is taken in fp32, too coarse for differences
    model, data = model.double(), replace(data, states=data.states.double(), sigmas=data.sigmas.double())
    weight = model.two.weight.requires_grad_(True)
    points, rows = torch.tensor([0, 3, 2]), torch.tensor([1, 1, 5])

    def loss():
        return losses(model, data.secants(points, rows), rows).mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    for at in ((0, 0), (2, 7), (3, 15)):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight[at] += shift
                values.append(loss().item())
                weight[at] -= shift
        assert gradient[at].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_the_loss_is_the_mean_squared_distance_of_every_example():
    x, sigma, target = torch.zeros(2, 3, 2), torch.ones(2), torch.tensor([[[1.0, 2], [3, 4], [5, 6]], [[0.0, 0], [0, 0], [0, 3]]])
    found = losses(lambda x, sigma, rows: x + rows[:, None, None], (x, sigma, target), torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([91 / 6, (5 * 1 + 4) / 6])


def test_points_that_do_not_rise_below_the_end_are_refused(model):
    for points in ((), (0, 20), (5, 3), (-1, 4)):
        with pytest.raises(GlanceError, match="must rise and lie from 0 to 19"):
            rollout(model, torch.zeros(1, 4), LADDER, points)


# arXiv 2512.02899, section 4: x_t = (1 - t) x_0 + t eps, the target is eps - x_0


def drawn(flow=True, seed=5):
    data = FlowMatching(torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)), SIGMAS, flow)
    points, rows = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([3, 0, 1, 1, 2])
    return data, points, rows, data.draw(points, rows, torch.Generator().manual_seed(seed))


def test_flow_matching_is_the_papers_formula():
    data, points, rows, (x, sigma, target) = drawn()
    for i in range(5):
        level, x0 = SIGMAS[points[i]], data.latents[rows[i]]
        noise = target[i] + x0
        assert float(sigma[i]) == pytest.approx(level)
        assert torch.allclose(x[i], (1 - level) * x0 + level * noise, atol=1e-6)
    assert data.points == SIGMAS and data.rows == 4


def test_its_noise_is_standard_normal_fresh_and_seeded():
    data, _, _, (_, _, target) = drawn()
    again, other = drawn()[3][2], drawn(seed=6)[3][2]
    assert torch.equal(target, again) and not torch.equal(target, other)
    assert not torch.equal(target[2] + data.latents[1], target[3] + data.latents[1])
    many = FlowMatching(torch.zeros(1, 1000), SIGMAS).draw(
        torch.zeros(200, dtype=torch.long), torch.zeros(200, dtype=torch.long), torch.Generator()
    )
    assert float(many[2].mean()) == pytest.approx(0, abs=0.01) and float(many[2].std()) == pytest.approx(1, abs=0.01)


def test_one_exact_step_from_any_point_lands_on_the_picture():
    data, _, rows, (x, sigma, target) = drawn()
    assert torch.allclose(x - sigma[:, None, None, None] * target, data.latents[rows], atol=1e-6)


def test_a_model_that_is_no_flow_learns_the_noise():
    data, points, rows, (x, _, target) = drawn(flow=False)
    for i in range(5):
        assert torch.allclose(x[i], data.latents[rows[i]] + SIGMAS[points[i]] * target[i], atol=1e-6)


def test_a_teacher_that_visits_fewer_steps_is_of_second_order():
    """dx/dsigma = x has the solution x0 exp(sigma - 1): three times as many steps divide the error by nine."""
    noise, errors = torch.ones(2, 3, dtype=torch.float64), []
    for steps in (30, 90):
        ladder = shifted_ladder(steps, 1.0)
        data = rollout(lambda x, sigma, rows: x, noise, ladder, (0, steps // 3), visited=range(0, steps, 2))
        exact = torch.tensor([1.0, ladder[steps // 3], 0.0], dtype=torch.float64).sub(1).exp()
        assert torch.equal(data.states[0], noise)
        errors.append(float((data.states[:, 0, 0] - exact).abs().max()))
    assert 7 < errors[0] / errors[1] < 11
    whole = rollout(lambda x, sigma, rows: x, noise, shifted_ladder(90, 1.0), (0,))
    assert errors[1] < 0.2 * float((whole.states[-1] - math.exp(-1)).abs().max())  # half the steps, and nearer than Euler


def test_visited_steps_that_leave_a_point_out_are_refused():
    with pytest.raises(GlanceError, match=r"must hold 0 and \[0, 5\]"):
        rollout(lambda x, sigma, rows: x, torch.ones(1, 2), shifted_ladder(10, 1.0), (0, 5), visited=(0, 4))


def test_both_runs_one_batch_with_the_prompts_and_without():
    asked = []

    def velocity(x, sigma, rows):
        asked.append(rows.tolist())
        return x * (rows + 2).reshape(-1, 1)

    cond, free = both(velocity)(torch.ones(2, 1), torch.ones(2), torch.tensor([3, 5]), True)
    assert asked == [[3, 5, -1, -1]]
    assert cond.flatten().tolist() == [5, 7] and free.flatten().tolist() == [1, 1]
