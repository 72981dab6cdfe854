"""The profile of a known trajectory: its errors and turns, and its best steps compared with an exhaustive search."""

import itertools

import pytest
import torch

from glance_core.calibration.step_selection import profile_trajectory
from glance_core.errors import ScheduleError
from glance_core.plots.trajectory_plot import plot_trajectory
from glance_core.sampling.rollout import Teacher, rollout
from glance_core.schedule.sigmas import shifted_sigmas

SIGMAS = shifted_sigmas(12, 2.0)


def teacher_states(sigmas=SIGMAS, runs=3):
    """Return the states that Euler passes through in a field that turns with the noise level."""
    noise = torch.randn((runs, 2, 4, 4), generator=torch.Generator().manual_seed(0))

    def velocity(x, sigma, rows):
        level = sigma.reshape(-1, 1, 1, 1)
        return torch.roll(x, 1, 3) * torch.cos(3 * level) + x * torch.sin(5 * level**2)

    return rollout(Teacher(velocity, sigmas), noise, range(len(sigmas) - 1)).states


@pytest.fixture(scope="module")
def profile():
    return profile_trajectory(teacher_states(), SIGMAS)


def test_the_errors_are_those_of_euler_steps(profile):
    states = teacher_states()
    for i, j in ((0, 2), (3, 9), (7, 12)):
        slope = (states[i + 1] - states[i]) / (SIGMAS[i + 1] - SIGMAS[i])
        miss = states[j] - (states[i] + slope * (SIGMAS[j] - SIGMAS[i]))
        expected = miss.flatten(1).square().mean(1).sqrt().mean()
        assert float(profile.errors[i, j]) == pytest.approx(float(expected), rel=1e-4)
    assert all(profile.errors[i, i + 1] == 0 for i in range(12))
    assert profile.error(range(12)) == 0


def test_a_straight_trajectory_has_no_turns_and_no_errors():
    noise, data = torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    straight = torch.stack([data + sigma * (noise - data) for sigma in SIGMAS])
    profile = profile_trajectory(straight, SIGMAS)
    assert max(profile.change) < 1e-4 and float(profile.errors.max()) < 1e-5
    assert profile.snr[0] == 0 and profile.snr[-1] > 1


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12])
def test_the_best_steps_equal_those_of_an_exhaustive_search(profile, count):
    every = [(0, *rest) for rest in itertools.combinations(range(1, 12), count - 1)]
    best = profile.best_steps(count)
    assert len(best) == count and best[0] == 0
    assert profile.error(best) == pytest.approx(min(map(profile.error, every)), abs=1e-12)


def test_the_two_phases_get_errors_as_equal_as_possible(profile):
    steps = profile.best_steps(6)
    split = profile.split(steps)
    errors = profile.errors_of(steps)
    assert split.steps == steps and split.teacher_steps == 12

    def difference(slow):
        return abs(sum(errors[:slow]) - sum(errors[slow:]))

    assert difference(len(split.slow)) == min(difference(slow) for slow in range(1, 6))


def test_a_late_turn_of_the_trajectory_draws_steps_there():
    sigmas = torch.tensor(SIGMAS)
    bent = torch.where(sigmas < 0.4, (0.4 - sigmas) ** 2, 0.0)[:, None, None] * torch.ones(1, 1, 5)
    profile = profile_trajectory(sigmas[:, None, None] * torch.ones(1, 1, 5) + bent, SIGMAS)
    assert sum(SIGMAS[step] < 0.45 for step in profile.best_steps(4)) == 3
    assert profile.change[-1] > 100 * profile.change[0]


@pytest.mark.parametrize("count", [1, 13])
def test_a_count_of_steps_that_the_teacher_does_not_have_is_rejected(profile, count):
    with pytest.raises(ScheduleError, match=f"{count} steps cannot be chosen from a teacher's 12; choose 2 to 12"):
        profile.best_steps(count)


def test_states_of_only_some_steps_are_rejected():
    with pytest.raises(ScheduleError, match="3 teacher states do not fit 13 sigmas"):
        profile_trajectory(teacher_states()[:3], SIGMAS)


def test_the_plot_shows_more_than_a_blank_sheet(profile):
    even, best = (0, 2, 4, 6, 8, 10), profile.best_steps(6)
    drawn = plot_trajectory(profile, {"even": even, "suggested": best}, profile.split(best), "a trajectory")
    assert drawn.width > 800
    assert len({drawn.getpixel((x, y)) for x in range(0, drawn.width, 3) for y in range(0, drawn.height, 3)}) > 8
