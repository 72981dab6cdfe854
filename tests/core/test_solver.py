"""Solvers with coefficients of their own, beside the samplers they hold as special cases, and the closed fit beside numpy's."""

import json

import numpy as np
import pytest
import torch

from glance_core.errors import ScheduleError
from glance_core.sampling import euler, multistep
from glance_core.solver import Solver, fitted, guided, solve

SIGMAS = (1.0, 0.9, 0.62, 0.4, 0.15, 0.0)


def velocities(x, sigma, guided=True):
    """Two fields that differ, neither linear."""
    return torch.sin(2 * x) + sigma, torch.cos(x) * (1 - sigma) if guided else None


def noise(rows=6):
    return torch.randn(rows, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("guidance", [1, 2.5])
@pytest.mark.parametrize("coefficient", [0, 0.15, 1])
def test_euler_and_multistep_under_guidance_are_solvers(guidance, coefficient):
    def mixed(x, sigma):
        cond, free = velocities(x, sigma)
        return free + guidance * (cond - free)

    solver = guided(SIGMAS, guidance, coefficient)
    assert solver.forwards == (5 if guidance == 1 else 10)
    seen = []
    found = solve(solver, SIGMAS, velocities, noise(), lambda step, x, sigma: seen.append(sigma))
    expected = multistep(mixed, noise(), SIGMAS, coefficient=coefficient) if coefficient else euler(mixed, noise(), SIGMAS)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert tuple(seen) == SIGMAS[:-1]


def test_a_guidance_for_each_step():
    scales = [1.0, 4.0, 3.0, 2.0, 1.0]
    x = noise()
    for sigma, after, scale in zip(SIGMAS, SIGMAS[1:], scales, strict=False):
        cond, free = velocities(x, sigma)
        x = x + (after - sigma) * (free + scale * (cond - free))
    solver = guided(SIGMAS, scales)
    assert torch.allclose(solve(solver, SIGMAS, velocities, noise()), x, atol=1e-12)
    assert solver.guides == (False, True, True, True, False) and solver.forwards == 8  # a step at guidance 1 costs one forward
    again, _ = fitted(solver, SIGMAS, velocities, noise(), [noise().flip(1)] * 5)
    assert again.guides == solver.guides and again != solver
    assert Solver.loads(again.dumps()).guides == solver.guides


def test_one_step_fits_as_numpys_least_squares_do():
    sigmas, x = (0.9, 0.0), noise()
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    solver, found = fitted(guided(sigmas, 3.0), sigmas, velocities, x, [target], ridge=0.0)
    columns = np.stack([x.numpy().ravel(), *(-0.9 * v.numpy().ravel() for v in velocities(x, 0.9))], 1)
    weights = np.linalg.lstsq(columns, target.numpy().ravel(), rcond=None)[0]
    assert np.allclose([solver.keep[0], solver.cond[0][0], solver.free[0][0]], weights, atol=1e-9)
    assert np.allclose(found.numpy().ravel(), columns @ weights, atol=1e-9)


def test_a_walk_that_a_solver_can_follow_is_followed_to_the_end():
    """The targets are the states of another solver on the same field: the fit finds its way, whatever it starts from."""
    generator = torch.Generator().manual_seed(5)
    rows = tuple(tuple(torch.randn(i + 1, generator=generator).mul(0.3).tolist()) for i in range(5))
    truth = Solver((1.0,) * 5, (0.9, 1.0, 1.1, 0.95, 1.0), rows, rows[::1])
    states = []
    end = solve(truth, SIGMAS, velocities, noise(20), lambda step, x, sigma: states.append(x))
    solver, found = fitted(guided(SIGMAS, 2.0), SIGMAS, velocities, noise(20), [*states[1:], end], ridge=0.0)
    assert torch.allclose(found, end, atol=1e-8)
    assert torch.allclose(solve(solver, SIGMAS, velocities, noise(20)), end, atol=1e-8)


def test_the_more_ridge_the_nearer_to_the_start():
    target = noise().flip(0)
    start = guided(SIGMAS[-2:], 3.0)
    far = []
    for ridge in (0.0, 0.1, 10.0, 1e6):
        solver, _ = fitted(start, SIGMAS[-2:], velocities, noise(), [target], ridge)
        far.append(abs(solver.keep[0] - 1) + abs(solver.cond[0][0] - 3) + abs(solver.free[0][0] + 2))
    assert far == sorted(far, reverse=True) and far[-1] < 1e-4 < far[0]


def test_without_guidance_there_is_nothing_to_fit_beside_the_prompts_velocity():
    solver, _ = fitted(guided(SIGMAS, 1), SIGMAS, lambda x, sigma, guided: (velocities(x, sigma)[0], None), noise(), [noise()] * 5)
    assert solver.free == () and solver.forwards == 5


def test_what_is_told_to_the_model_is_a_share_of_the_ladders_sigma():
    solver, seen = Solver((1.0, 0.9), (1.0, 1.0), ((1.0,), (0.0, 1.0))), []
    solve(solver, (0.8, 0.4, 0.0), lambda x, sigma, guided: (seen.append(sigma) or x, None), noise())
    assert seen == pytest.approx([0.8, 0.36])


def test_it_is_stored_as_text_bit_for_bit():
    solver, _ = fitted(guided(SIGMAS, 2.0), SIGMAS, velocities, noise(), [noise().flip(1)] * 5)
    assert Solver.loads(solver.dumps()) == solver
    for text in ("", "[]", "{}", '{"told": 1, "keep": [], "cond": [], "free": []}', "[" * 100_000):
        with pytest.raises(ScheduleError, match="cannot be read"):
            Solver.loads(text)


@pytest.mark.parametrize("change, message", [
    ({"keep": [1.0]}, "a solver of 2 steps must have as many"),
    ({"cond": [[1.0], [1.0]]}, "step 2 of the solver has 1 coefficients; it must have 2"),
    ({"free": [[1.0], [1.0, 2.0, 3.0]]}, "step 2 of the solver has 3 coefficients"),
    ({"cond": [[float("nan")], [1.0, 1.0]]}, "no finite number"),
    ({"told": [1.0, 3.0]}, "far from the ladder's"),
])  # fmt: skip
def test_solvers_that_cannot_be_meant_are_refused(change, message):
    stated = {"told": [1.0, 1.0], "keep": [1.0, 1.0], "cond": [[1.0], [0.0, 1.0]], "free": []}
    with pytest.raises(ScheduleError, match=message):
        Solver.loads(json.dumps({**stated, **change}))


def test_a_ladder_of_other_steps_is_refused():
    with pytest.raises(ScheduleError, match="fitted for 5 steps, this ladder has 2"):
        solve(guided(SIGMAS, 1), (1.0, 0.5, 0.0), velocities, noise())
    with pytest.raises(ScheduleError, match="1 states of the teacher were given for a solver of 5 steps"):
        fitted(guided(SIGMAS, 1), SIGMAS, velocities, noise(), [noise()])
    with pytest.raises(ScheduleError, match="2 guidance scales were given for 5 steps"):
        guided(SIGMAS, [1.0, 2.0])
