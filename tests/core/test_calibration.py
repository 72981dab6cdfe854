"""Calibration on a small field with guidance, compared with an exhaustive search."""

import itertools

import pytest
import torch

from glance_core.calibration import calibrate as module
from glance_core.calibration.calibrate import Budget, Calibrator, calibrate
from glance_core.calibration.search import neighbours, starting_plans, step_counts
from glance_core.errors import ScheduleError
from glance_core.evaluation.metrics import latent_psnr
from glance_core.plots.calibration_plot import plot_calibration
from glance_core.plots.canvas import HEIGHT, WIDTH
from glance_core.sampling.rollout import Teacher
from glance_core.sampling.samplers import euler
from glance_core.sampling.solver import plan_solver
from glance_core.sampling.velocity import NO_PROMPT
from glance_core.schedule.plan import StepPlan, even_plan
from glance_core.schedule.sigmas import shifted_sigmas

SIGMAS = shifted_sigmas(12, 2.0)
GUIDANCE = 3.0


def bent(x, sigma, rows):
    """Two fields without guidance that bend with the noise level: the prompt's and the empty prompt's."""
    level = sigma.reshape(-1, 1)
    prompted = (rows != NO_PROMPT).reshape(-1, 1)
    return torch.where(prompted, torch.tanh(2 * x) * (1 + level) + 0.4 * rows.reshape(-1, 1) % 3, 0.8 * x * level)


def straight(x, sigma, rows):
    """Nearly linear fields. A few steps miss by a factor that fitted coefficients can correct."""
    level = sigma.reshape(-1, 1)
    prompted = (rows != NO_PROMPT).reshape(-1, 1)
    with_prompt = (1.5 * x + 0.2 * torch.tanh(2 * x)) * (1 + level) + 0.1 * (rows.reshape(-1, 1) % 3)
    return torch.where(prompted, with_prompt, 0.8 * x * level)


def guided(field, scale=GUIDANCE):
    def velocity(x, sigma, rows):
        uncond = field(x, sigma, torch.full_like(rows, NO_PROMPT))
        return uncond + scale * (field(x, sigma, rows) - uncond)

    return velocity


def teacher_of(field, scale=GUIDANCE, tick=None):
    return Teacher(guided(field, scale), SIGMAS, tick=tick)


def noise(rows=16):
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(1))


def calibrator(field):
    return Calibrator(teacher_of(field), field, noise(), latent_psnr)


def calibrated(nfe=6, seconds=30.0, field=straight, tick=None, boundary=None):
    budget = Budget(nfe, GUIDANCE, seconds, boundary)
    return calibrate(teacher_of(field, tick=tick), field, noise(), latent_psnr, budget)


def test_the_search_comes_close_to_the_best_of_all_settings():
    work = calibrator(bent)
    choosing = torch.arange(16)[0::2]
    best = max(
        float(work.psnr(*plan_solver(StepPlan((0, *steps), guidance, coefficient), SIGMAS), choosing).mean())
        for steps in itertools.combinations(range(1, 12), 2)
        for guidance in (2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5)
        for coefficient in (0.0, 0.15, 0.3, 0.45, 0.6)
    )
    result = calibrated(field=bent)
    assert dict(result.tried)[result.plan] > best - 0.1
    assert len(result.tried) < 400


def test_the_comparison_holds_what_sampling_gives_on_the_judging_runs():
    result = calibrated()
    judging = torch.arange(16)[1::2]

    def sampled(sigmas):
        def velocity(x, sigma):
            return guided(straight)(x, torch.full((8,), sigma), judging)

        return euler(velocity, noise()[judging], sigmas)

    even = sampled((*(SIGMAS[step] for step in (0, 4, 8)), 0.0))
    assert torch.allclose(result.comparison.base, latent_psnr(even, sampled(SIGMAS)), atol=1e-3)
    assert result.comparison.gain > 1
    # The fitted coefficients help on runs that they were not fitted on.
    assert float((result.comparison.pair - result.plain_psnr).mean()) > 0.5
    assert result.comparison.examples == "8 runs that chose nothing"


def test_a_fit_that_does_not_help_other_runs_is_left_out():
    plan, rows = StepPlan((0, 3, 5, 7, 9), 2.75), torch.arange(0, 16, 2)
    start = plan_solver(plan, SIGMAS)[1]
    assert module._fit_if_better(calibrator(straight), plan, rows, start) != start
    work = calibrator(bent)
    # The teacher of the runs that are fitted goes the opposite way.
    work.states[1:] *= torch.where(torch.arange(16) % 4 == 0, -1.0, 1.0)[:, None]
    assert module._fit_if_better(work, plan, rows, start) == start


def test_the_search_ends_after_its_seconds(monkeypatch):
    now = itertools.count(0, 10)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    short = calibrated(seconds=100.0)
    now = itertools.count(0, 10)
    long = calibrated(seconds=100_000.0)
    assert len(short.tried) < len(long.tried)


def test_the_split_holds_the_plans_steps_and_the_solver_takes_the_nfe():
    result = calibrated(8, boundary=5)
    assert result.plan.nfe == result.solver.nfe == 8 and result.split.teacher_steps == 12
    assert all(step < 5 for step in result.split.slow) or len(result.split.slow) == 1
    assert result.split.steps == result.plan.steps


def test_a_teacher_without_guidance_takes_one_model_call_per_step():
    budget = Budget(nfe=5, guidance=1.0, seconds=5.0)
    result = calibrate(teacher_of(bent, scale=1.0), bent, noise(), latent_psnr, budget)
    assert result.solver.nfe == 5 and result.solver.uncond_coef == () and result.plan.guidance == 1


def test_an_exception_from_tick_ends_the_calibration():
    class Stop(Exception):
        pass

    def stop(count):
        raise Stop

    with pytest.raises(Stop):
        calibrated(tick=stop)


@pytest.mark.parametrize("nfe", [1, 13])
def test_an_nfe_that_no_plan_takes_is_rejected(nfe):
    with pytest.raises(ScheduleError, match=f"^Cannot use {nfe} model calls here; choose 2 to 12$"):
        calibrated(nfe)


@pytest.mark.parametrize("nfe", range(2, 13))
def test_every_plan_that_is_tried_takes_the_requested_nfe(nfe):
    tried = calibrated(nfe, seconds=0.3).tried
    assert {plan.nfe for plan, _ in tried} == {nfe}
    assert all(plan_solver(plan, SIGMAS)[1].nfe == nfe for plan, _ in tried)


def test_the_search_starts_with_all_steps_guided_or_only_the_later_ones():
    assert list(step_counts(10, 4.0, 50)) == [(5, 5), (6, 4), (7, 3)]
    assert list(step_counts(3, 4.0, 50)) == [(2, 1), (3, 0)] and list(step_counts(4, 1.0, 50)) == [(4, 0)]
    assert {plan.scales for plan in starting_plans(6, 4, 3.0, 50)} == {(1, 1, *[scale] * 4) for scale in (2.6, 2.0)}
    assert even_plan(5, 3.0, 12).scales == (1, 3, 3) and even_plan(4, 3.0, 12).scales == (3, 3)


def test_guidance_can_move_to_the_step_before_or_after():
    weights = {plan.weights for plan in neighbours(StepPlan((0, 4, 8), 3.0, 0.1, (0.0, 1.0, 0.0)), 12)}
    assert {(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.85, 0.0)} <= weights


def test_fewer_than_four_teacher_runs_are_rejected():
    with pytest.raises(ScheduleError, match="3 teacher runs cannot both choose and judge; use at least 4"):
        calibrate(teacher_of(bent), bent, noise(3), latent_psnr, Budget(6, GUIDANCE, 5.0))


def test_the_plot_shows_more_than_a_blank_sheet():
    drawn = plot_calibration(calibrated(), SIGMAS, "a field, 6 model calls")
    assert drawn.size == (WIDTH, HEIGHT)
    assert len(drawn.getcolors(2**24)) > 10
