"""The teacher's path: errors and turns of a path that is known, and the best steps against all there are."""

import itertools

import pytest
import torch

from glance_core.errors import ScheduleError
from glance_core.objectives import rollout
from glance_core.path import measured
from glance_core.path_plot import plot_path
from glance_core.schedule import shifted_ladder

LADDER = shifted_ladder(12, 2.0)


def states(ladder=LADDER, runs=3):
    """Of a field that turns with the noise level, walked by Euler."""
    noise = torch.randn((runs, 2, 4, 4), generator=torch.Generator().manual_seed(0))

    def velocity(x, sigma, rows):
        level = sigma.reshape(-1, 1, 1, 1)
        return torch.roll(x, 1, 3) * torch.cos(3 * level) + x * torch.sin(5 * level**2)

    return rollout(velocity, noise, ladder, range(len(ladder) - 1)).states


@pytest.fixture(scope="module")
def path():
    return measured(states(), LADDER)


def test_the_errors_are_those_of_euler_steps(path):
    walked = states()
    for i, j in ((0, 2), (3, 9), (7, 12)):
        slope = (walked[i + 1] - walked[i]) / (LADDER[i + 1] - LADDER[i])
        beside = walked[j] - (walked[i] + slope * (LADDER[j] - LADDER[i]))
        expected = beside.flatten(1).square().mean(1).sqrt().mean()
        assert float(path.errors[i, j]) == pytest.approx(float(expected), rel=1e-4)
    assert all(path.errors[i, i + 1] == 0 for i in range(12))
    assert path.error(range(12)) == 0


def test_a_straight_path_has_no_turns_and_no_errors():
    noise, data = torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    straight = torch.stack([data + sigma * (noise - data) for sigma in LADDER])
    path = measured(straight, LADDER)
    assert max(path.change) < 1e-4 and float(path.errors.max()) < 1e-5
    assert path.snr[0] == 0 and path.snr[-1] > 1


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12])
def test_the_best_steps_are_the_best_of_all_there_are(path, count):
    every = [(0, *rest) for rest in itertools.combinations(range(1, 12), count - 1)]
    best = path.best(count)
    assert len(best) == count and best[0] == 0
    assert path.error(best) == pytest.approx(min(map(path.error, every)), abs=1e-12)


def test_the_phases_share_the_error(path):
    steps = path.best(6)
    split = path.split(steps)
    errors = path.errors_of(steps)
    assert split.steps == steps and split.teacher_steps == 12

    def apart(slow):
        return abs(sum(errors[:slow]) - sum(errors[slow:]))

    assert apart(len(split.slow)) == min(apart(slow) for slow in range(1, 6))


def test_a_turn_late_on_the_path_draws_steps_there():
    sigmas = torch.tensor(LADDER)
    bent = torch.where(sigmas < 0.4, (0.4 - sigmas) ** 2, 0.0)[:, None, None] * torch.ones(1, 1, 5)
    path = measured(sigmas[:, None, None] * torch.ones(1, 1, 5) + bent, LADDER)
    assert sum(LADDER[step] < 0.45 for step in path.best(4)) == 3
    assert path.change[-1] > 100 * path.change[0]


@pytest.mark.parametrize("count", [1, 13])
def test_a_count_there_is_not_is_refused(path, count):
    with pytest.raises(ScheduleError, match=f"{count} steps cannot be chosen from a teacher's 12; give 2 to 12"):
        path.best(count)


def test_states_that_were_not_all_kept_are_refused():
    with pytest.raises(ScheduleError, match="3 states of the teacher do not fit a ladder of 13 sigmas"):
        measured(states()[:3], LADDER)


def test_the_plot_is_drawn(path):
    even = (0, 2, 4, 6, 8, 10)
    drawn = plot_path(path, {"even": even, "suggested": path.best(6)}, path.split(path.best(6)), "a path")
    assert drawn.width > 800 and len({drawn.getpixel((x, y)) for x in range(0, drawn.width, 3) for y in range(0, drawn.height, 3)}) > 8
