"""The samplers compared with known solutions, and the reference's moves compared with diffusers' scheduler."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from glance_core.errors import ScheduleError
from glance_core.sampling.reference import reference_euler, reference_move_sigmas
from glance_core.sampling.samplers import euler, multistep
from glance_core.schedule.phase_schedule import build_schedule
from glance_core.schedule.sigmas import image_tokens, shifted_sigmas, teacher_sigmas
from glance_core.schedule.split import split_steps


def straight_flow(x, sigma):
    """Velocity of the flow from N(0, 1) noise to data at 3: with point data, v = (x - 3) / sigma; x(0) = 3."""
    return (x - 3) / sigma


def curved_flow(x, sigma):
    return x * math.cos(5 * sigma)


def curved_solution(x1):
    return x1 * math.exp(-math.sin(5) / 5)


@pytest.mark.parametrize("sampler", [euler, multistep])
def test_a_straight_flow_is_sampled_exactly(sampler):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = build_schedule(teacher_sigmas("flux", tokens=4096), split_steps(5, 5)).sigmas
    assert torch.allclose(sampler(straight_flow, x, sigmas), torch.full_like(x, 3.0), atol=1e-12)


@pytest.mark.parametrize("sampler, order", [(euler, 1), (multistep, 2)])
def test_the_error_falls_with_the_samplers_order(sampler, order):
    x = torch.ones(1, dtype=torch.float64)
    errors = [
        abs(float(sampler(curved_flow, x, teacher_sigmas("shift", steps, shift=2.0))) - curved_solution(1.0))
        for steps in (200, 400)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_the_callback_runs_before_each_model_call():
    seen = []
    sigmas = (1.0, 0.5, 0.0)
    for sampler in (euler, multistep):
        seen.clear()
        sampler(lambda x, s: x, torch.ones(1), sigmas, callback=lambda i, x, s: seen.append((i, float(x), s)))
        assert [(i, s) for i, _, s in seen] == [(0, 1.0), (1, 0.5)]


@pytest.mark.parametrize("width, height", [(1024, 1024), (1328, 1328), (768, 1152)])
def test_the_reference_sampler_moves_as_diffusers_scheduler_does(width, height):
    """The published code shows the model Glance's sigmas while diffusers' scheduler moves along its own."""
    tokens = image_tokens(width, height)
    mu = 0.5 + (0.9 - 0.5) * (tokens - 256) / (8192 - 256)
    shown = build_schedule(teacher_sigmas("qwen-image", tokens=tokens), split_steps(5, 5)).sigmas[:-1]

    def velocity(x, sigma):
        return torch.sin(x) * sigma

    config = {
        "shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
        "max_image_seq_len": 8192, "shift_terminal": 0.02,
    }  # fmt: skip
    x = noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    for phase, steps in ((shown[:5], 50), (shown[5:], 5)):
        scheduler = FlowMatchEulerDiscreteScheduler(**config)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
        for sigma, timestep in zip(phase, scheduler.timesteps, strict=False):
            x = scheduler.step(velocity(x, sigma), timestep, x, return_dict=False)[0]
    teacher, fast = teacher_sigmas("qwen-image", tokens=tokens), teacher_sigmas("qwen-image", 5, tokens=tokens)
    found = reference_euler(velocity, noise, shown, reference_move_sigmas(teacher, fast, 5))
    assert torch.allclose(found, x, atol=1e-5)


def test_the_moves_of_the_reference_add_up_to_more_than_one():
    """1.0537 for Qwen-Image at 1024x1024, measured with diffusers 0.35."""
    teacher, fast = teacher_sigmas("qwen-image", tokens=4096), teacher_sigmas("qwen-image", 5, tokens=4096)
    slow, rest = reference_move_sigmas(teacher, fast, 5)
    assert slow == pytest.approx([1, 0.9897, 0.9792, 0.9685, 0.9575, 0.9463], abs=1e-4)
    assert rest == pytest.approx([1, 0.8367, 0.6326, 0.3701, 0.02, 0], abs=1e-4)
    assert (slow[0] - slow[-1]) + (rest[0] - rest[-1]) == pytest.approx(1.0537, abs=1e-4)


def test_shown_sigmas_that_do_not_match_the_moves_are_rejected():
    with pytest.raises(ScheduleError, match="3 sigmas"):
        reference_euler(straight_flow, torch.ones(1), (1.0, 0.5, 0.2), [(1.0, 0.5, 0.0)])
    with pytest.raises(ScheduleError, match="slow_steps is 9"):
        reference_move_sigmas((1.0, 0.5, 0.0), (1.0, 0.0), 9)


def test_the_multistep_coefficient_leads_from_euler_to_second_order():
    sigmas = shifted_sigmas(6, 2.0)
    start = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def velocity(x, sigma):
        return x * sigma + sigma**2

    ends = [multistep(velocity, start, sigmas, coefficient=c) for c in (0.0, 0.5, 1.0)]
    assert torch.equal(ends[0], euler(velocity, start, sigmas))
    assert torch.equal(ends[2], multistep(velocity, start, sigmas))
    assert ((ends[0] - ends[1]).abs() > 0).all() and ((ends[1] - ends[2]).abs() > 0).all()
