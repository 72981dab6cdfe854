"""Solvers compared with the samplers that they contain, and the closed-form fit compared with numpy's."""

import json

import numpy as np
import pytest
import torch

from glance_core.errors import ScheduleError
from glance_core.sampling.samplers import euler, multistep
from glance_core.sampling.solver import Solver, guided_solver, solve
from glance_core.sampling.solver_fit import fit_solver

SIGMAS = (1.0, 0.9, 0.62, 0.4, 0.15, 0.0)
IN_FORMAT_1 = {"sigma_scale": "told", "state_coef": "keep", "cond_coef": "cond", "uncond_coef": "free"}
IN_FORMAT_2 = {name: name for name in IN_FORMAT_1}


def velocities(x, sigma, guided=True):
    """Return two fields that differ; neither is linear."""
    return torch.sin(2 * x) + sigma, torch.cos(x) * (1 - sigma) if guided else None


def noise(rows=6):
    return torch.randn(rows, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("guidance", [1, 2.5])
@pytest.mark.parametrize("coefficient", [0, 0.15, 1])
def test_euler_and_multistep_under_guidance_are_solvers(guidance, coefficient):
    def mixed(x, sigma):
        cond, uncond = velocities(x, sigma)
        return uncond + guidance * (cond - uncond)

    solver = guided_solver(SIGMAS, guidance, coefficient)
    assert solver.nfe == (5 if guidance == 1 else 10)
    seen = []
    found = solve(solver, SIGMAS, velocities, noise(), lambda step, x, sigma: seen.append(sigma))
    if coefficient:
        expected = multistep(mixed, noise(), SIGMAS, coefficient=coefficient)
    else:
        expected = euler(mixed, noise(), SIGMAS)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert tuple(seen) == SIGMAS[:-1]


def test_each_step_may_have_its_own_guidance():
    scales = [1.0, 4.0, 3.0, 2.0, 1.0]
    x = noise()
    for sigma, after, scale in zip(SIGMAS, SIGMAS[1:], scales, strict=False):
        cond, uncond = velocities(x, sigma)
        x = x + (after - sigma) * (uncond + scale * (cond - uncond))
    solver = guided_solver(SIGMAS, scales)
    assert torch.allclose(solve(solver, SIGMAS, velocities, noise()), x, atol=1e-12)
    # A step at guidance 1 costs one model call.
    assert solver.guided_steps == (False, True, True, True, False) and solver.nfe == 8
    again, _ = fit_solver(solver, SIGMAS, velocities, noise(), [noise().flip(1)] * 5)
    assert again.guided_steps == solver.guided_steps and again != solver
    assert Solver.loads(again.dumps()).guided_steps == solver.guided_steps


def test_the_fit_of_one_step_equals_numpys_least_squares():
    sigmas, x = (0.9, 0.0), noise()
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    solver, found = fit_solver(guided_solver(sigmas, 3.0), sigmas, velocities, x, [target], ridge=0.0)
    columns = np.stack([x.numpy().ravel(), *(-0.9 * v.numpy().ravel() for v in velocities(x, 0.9))], 1)
    weights = np.linalg.lstsq(columns, target.numpy().ravel(), rcond=None)[0]
    assert np.allclose([solver.state_coef[0], solver.cond_coef[0][0], solver.uncond_coef[0][0]], weights, atol=1e-9)
    assert np.allclose(found.numpy().ravel(), columns @ weights, atol=1e-9)


def test_the_fit_recovers_a_trajectory_that_a_solver_can_follow():
    """The targets are the states of another solver on the same field, so an exact fit exists from any start."""
    generator = torch.Generator().manual_seed(5)
    rows = tuple(tuple(torch.randn(i + 1, generator=generator).mul(0.3).tolist()) for i in range(5))
    truth = Solver((1.0,) * 5, (0.9, 1.0, 1.1, 0.95, 1.0), rows, rows[::1])
    states = []
    end = solve(truth, SIGMAS, velocities, noise(20), lambda step, x, sigma: states.append(x))
    solver, found = fit_solver(guided_solver(SIGMAS, 2.0), SIGMAS, velocities, noise(20), [*states[1:], end], ridge=0.0)
    assert torch.allclose(found, end, atol=1e-8)
    assert torch.allclose(solve(solver, SIGMAS, velocities, noise(20)), end, atol=1e-8)


def test_more_ridge_keeps_the_fit_closer_to_the_start():
    target = noise().flip(0)
    start = guided_solver(SIGMAS[-2:], 3.0)
    distances = []
    for ridge in (0.0, 0.1, 10.0, 1e6):
        solver, _ = fit_solver(start, SIGMAS[-2:], velocities, noise(), [target], ridge)
        state, cond, uncond = solver.state_coef[0], solver.cond_coef[0][0], solver.uncond_coef[0][0]
        distances.append(abs(state - 1) + abs(cond - 3) + abs(uncond + 2))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-4 < distances[0]


def test_the_fit_without_guidance_uses_the_prompts_velocity_only():
    def unguided(x, sigma, guided):
        return velocities(x, sigma)[0], None

    solver, _ = fit_solver(guided_solver(SIGMAS, 1), SIGMAS, unguided, noise(), [noise()] * 5)
    assert solver.uncond_coef == () and solver.nfe == 5


def test_the_model_sees_sigma_scale_times_sigma():
    solver, seen = Solver((1.0, 0.9), (1.0, 1.0), ((1.0,), (0.0, 1.0))), []
    solve(solver, (0.8, 0.4, 0.0), lambda x, sigma, guided: (seen.append(sigma) or x, None), noise())
    assert seen == pytest.approx([0.8, 0.36])


def test_a_solver_survives_its_text_bit_for_bit():
    solver, _ = fit_solver(guided_solver(SIGMAS, 2.0), SIGMAS, velocities, noise(), [noise().flip(1)] * 5)
    assert Solver.loads(solver.dumps()) == solver
    stored = json.loads(solver.dumps())
    assert stored.keys() == IN_FORMAT_1.keys()
    assert Solver.loads(json.dumps({IN_FORMAT_1[name]: value for name, value in stored.items()})) == solver


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"told": 1, "keep": [], "cond": [], "free": []}',
        '{"sigma_scale": 1, "state_coef": [], "cond_coef": [], "uncond_coef": []}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:12],
)
def test_text_that_is_not_a_solver_is_rejected(text):
    with pytest.raises(ScheduleError, match="cannot be read"):
        Solver.loads(text)


SOUND = {
    "sigma_scale": [1.0, 1.0],
    "state_coef": [1.0, 1.0],
    "cond_coef": [[1.0], [0.0, 1.0]],
    "uncond_coef": [],
}
WRONG = [
    ({"state_coef": [1.0]}, "a solver needs 1 to 100 steps and coefficients for each; this one has 2 steps"),
    ({"cond_coef": [[1.0], [1.0]]}, "step 2 of the solver has 1 coefficients; it needs 2"),
    ({"uncond_coef": [[1.0], [1.0, 2.0, 3.0]]}, "step 2 of the solver has 3 coefficients"),
    ({"cond_coef": [[float("nan")], [1.0, 1.0]]}, "not a finite number"),
    ({"sigma_scale": [1.0, 3.0]}, "shows the model sigmas far from its own"),
]


@pytest.mark.parametrize("names", [IN_FORMAT_2, IN_FORMAT_1], ids=["format 2", "format 1"])
@pytest.mark.parametrize("change, message", WRONG)
def test_a_solver_with_wrong_coefficients_is_rejected(change, message, names):
    stated = {names[name]: value for name, value in {**SOUND, **change}.items()}
    with pytest.raises(ScheduleError, match=message):
        Solver.loads(json.dumps(stated))


def test_another_number_of_steps_than_the_solvers_is_rejected():
    with pytest.raises(ScheduleError, match="fitted for 5 steps, but this run has 2"):
        solve(guided_solver(SIGMAS, 1), (1.0, 0.5, 0.0), velocities, noise())
    with pytest.raises(ScheduleError, match="1 teacher states were given for a solver of 5 steps"):
        fit_solver(guided_solver(SIGMAS, 1), SIGMAS, velocities, noise(), [noise()])
    with pytest.raises(ScheduleError, match="2 guidance scales were given for 5 steps"):
        guided_solver(SIGMAS, [1.0, 2.0])
