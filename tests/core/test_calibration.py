"""Calibration on a small field with guidance, beside exhaustive search."""

import itertools

import pytest
import torch

from glance_core import calibration as module
from glance_core.calibration import Calibrator, calibrate
from glance_core.calibration_plot import plot_calibration
from glance_core.errors import ScheduleError
from glance_core.loss_plot import HEIGHT, WIDTH
from glance_core.objectives import NO_PROMPT
from glance_core.sampling import euler
from glance_core.schedule import shifted_ladder
from glance_core.verdict import latent_psnr
from glance_core.walks import Walk, even_walk, kinds, neighbours, starts

LADDER = shifted_ladder(12, 2.0)
GUIDANCE = 3.0


def bent(x, sigma, rows):
    """Without guidance: two fields that bend with the noise level, the prompt's and the empty one's."""
    level = sigma.reshape(-1, 1)
    asked = (rows != NO_PROMPT).reshape(-1, 1)
    return torch.where(asked, torch.tanh(2 * x) * (1 + level) + 0.4 * rows.reshape(-1, 1) % 3, 0.8 * x * level)


def straight(x, sigma, rows):
    """Nearly linear fields, whose few steps are wrong by a factor that fitted coefficients can take back."""
    level = sigma.reshape(-1, 1)
    asked = (rows != NO_PROMPT).reshape(-1, 1)
    return torch.where(asked, (1.5 * x + 0.2 * torch.tanh(2 * x)) * (1 + level) + 0.1 * (rows.reshape(-1, 1) % 3), 0.8 * x * level)


def guided(field):
    def by(scale):
        def velocity(x, sigma, rows):
            free = field(x, sigma, torch.full_like(rows, NO_PROMPT))
            return free + scale * (field(x, sigma, rows) - free)

        return velocity

    return by


def noise(rows=16):
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(1))


def found(forwards=6, seconds=30.0, field=straight, **more):
    return calibrate(field, guided(field), noise(), LADDER, forwards, GUIDANCE, latent_psnr, seconds, **more)


def test_the_search_comes_near_the_best_of_every_setting():
    work = Calibrator(bent, noise(), LADDER, latent_psnr, 64)
    work.teach(guided(bent)(GUIDANCE))
    choosing = torch.arange(16)[0::2]
    every = max(
        float(work.near(*Walk((0, *steps), guidance, coefficient).on(LADDER), choosing).mean())
        for steps in itertools.combinations(range(1, 12), 2)
        for guidance in (2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5)
        for coefficient in (0.0, 0.15, 0.3, 0.45, 0.6)
    )
    result = found(field=bent)
    assert dict(result.tried)[result.walk] > every - 0.1
    assert len(result.tried) < 400


def test_what_it_says_of_the_judging_rows_is_what_sampling_gives():
    result = found()
    judging = torch.arange(16)[1::2]
    teacher = euler(lambda x, sigma: guided(straight)(GUIDANCE)(x, torch.full((8,), sigma), judging), noise()[judging], LADDER)
    uniform = (*(LADDER[step] for step in (0, 4, 8)), 0.0)
    plainly = euler(lambda x, sigma: guided(straight)(GUIDANCE)(x, torch.full((8,), sigma), judging), noise()[judging], uniform)
    assert torch.allclose(result.verdict.base, latent_psnr(plainly, teacher), atol=1e-3)
    assert result.verdict.gain > 1
    assert float((result.verdict.pair - result.plain).mean()) > 0.5  # the fitted coefficients help on rows they have not seen
    assert result.verdict.examples == "8 runs that chose nothing"


def test_a_fit_that_does_not_carry_over_is_left_out():
    walk, rows = Walk((0, 3, 5, 7, 9), 2.75), torch.arange(0, 16, 2)
    start = walk.on(LADDER)[1]
    work = Calibrator(straight, noise(), LADDER, latent_psnr, 64)
    work.teach(guided(straight)(GUIDANCE))
    assert module._fitted_if_better(work, walk, rows, start) != start
    work = Calibrator(bent, noise(), LADDER, latent_psnr, 64)
    work.teach(guided(bent)(GUIDANCE))
    work.states[1:] *= torch.where(torch.arange(16) % 4 == 0, -1.0, 1.0)[:, None]  # the fitted half's teacher goes the other way
    assert module._fitted_if_better(work, walk, rows, start) == start


def test_the_seconds_end_the_search(monkeypatch):
    now = itertools.count(0, 10)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    short = found(seconds=100.0)
    now = itertools.count(0, 10)
    long = found(seconds=100_000.0)
    assert len(short.tried) < len(long.tried)


def test_split_and_forwards():
    result = found(8, boundary=5)
    assert result.walk.forwards == result.solver.forwards == 8 and result.split.teacher_steps == 12
    assert all(step < 5 for step in result.split.slow) or len(result.split.slow) == 1
    assert result.split.steps == result.walk.steps


def test_a_teacher_without_guidance_takes_one_forward_a_step():
    result = calibrate(bent, guided(bent), noise(), LADDER, 5, 1.0, latent_psnr, 5.0)
    assert result.solver.forwards == 5 and result.solver.free == () and result.walk.guidance == 1


def test_ticks_can_end_it():
    class Stop(Exception):
        pass

    def stop(count):
        raise Stop

    with pytest.raises(Stop):
        found(tick=stop)


@pytest.mark.parametrize("forwards", [1, 13])
def test_forwards_that_make_no_walk(forwards):
    with pytest.raises(ScheduleError, match=f"{forwards} forwards are no walk for this teacher; give 2 to 12"):
        found(forwards)


@pytest.mark.parametrize("forwards", range(2, 13))
def test_every_walk_that_is_tried_takes_the_forwards_asked_for(forwards):
    tried = found(forwards, seconds=0.3).tried
    assert {walk.forwards for walk, _ in tried} == {forwards}
    assert all(walk.on(LADDER)[1].forwards == forwards for walk, _ in tried)


def test_walks_begin_with_all_steps_guided_or_the_later_ones():
    assert list(kinds(10, 4.0, 50)) == [(5, 5), (6, 4), (7, 3)]
    assert list(kinds(3, 4.0, 50)) == [(2, 1), (3, 0)] and list(kinds(4, 1.0, 50)) == [(4, 0)]
    assert {walk.scales for walk in starts(6, 4, 3.0, 50)} == {(1, 1, *[scale] * 4) for scale in (2.6, 2.0)}
    assert even_walk(5, 3.0, 12).scales == (1, 3, 3) and even_walk(4, 3.0, 12).scales == (3, 3)


def test_guidance_moves_to_the_step_beside():
    found = {walk.weights for walk in neighbours(Walk((0, 4, 8), 3.0, 0.1, (0.0, 1.0, 0.0)), 12)}
    assert {(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.85, 0.0)} <= found


def test_too_few_runs():
    with pytest.raises(ScheduleError, match="3 teacher runs cannot both choose and judge; give at least 4"):
        calibrate(bent, guided(bent), noise(3), LADDER, 6, GUIDANCE, latent_psnr, 5.0)


def test_the_plot_is_drawn(tmp_path):
    drawn = plot_calibration(found(), LADDER, "a field, 6 forwards")
    assert drawn.size == (WIDTH, HEIGHT)
    assert len(set(drawn.getdata())) > 10
