"""The plot of a run's losses: falling losses fall on it, in their phase's colour, and any history can be plotted."""

import math

import pytest
from PIL import ImageChops

from glance_core.plots.canvas import COLOURS, HEIGHT, PAPER, WIDTH, log_bounds
from glance_core.plots.loss_plot import LossPlot, plot_losses
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.history import History

SIGMAS = (1.0, 0.8, 0.5, 0.2)


def history(loss, steps=60):
    """Return training steps of two examples, one at a Slow step and one at a Fast step of the student."""
    student_steps = [each for step in range(steps) for each in ((0, 2) if step % 2 == 0 else (1, 3))]
    return History(student_steps, [loss(at / len(student_steps)) for at in range(len(student_steps))])


def plot(found, title):
    return plot_losses(LossPlot(found, SIGMAS, slow_steps=2, per_step=2, title=title))


def heights(picture, colour, columns):
    """Return the heights at which a colour stands in a share of the left panel's columns."""
    low, high = (int(84 + share * (WIDTH / 2 - 160)) for share in columns)
    return [y for y in range(90, HEIGHT - 70) for x in range(low, high) if picture.getpixel((x, y)) == colour]


@pytest.mark.parametrize("phase", [SLOW, FAST])
def test_falling_losses_fall_on_the_plot(phase):
    picture = plot(history(lambda done: math.exp(-4 * done)), "a title")
    first, last = heights(picture, COLOURS[phase], (0, 0.15)), heights(picture, COLOURS[phase], (0.8, 0.95))
    assert picture.size == (WIDTH, HEIGHT) and first and last
    assert sum(last) / len(last) - sum(first) / len(first) > 100  # downwards


def test_the_title_stands_at_the_top_left():
    plain, titled = (plot(history(lambda done: 1.0), title) for title in ("", "a title"))
    left, top, right, bottom = ImageChops.difference(plain, titled).getbbox()
    assert left >= 24 and bottom < 40 and right > left and top >= 14


@pytest.mark.parametrize(
    "found", [History([], []), History([0], [0.5]), history(lambda done: 0.0)], ids=["empty", "one", "zeros"]
)
def test_a_history_with_nothing_to_draw_still_gives_a_picture(found):
    picture = plot(found, "empty")
    assert picture.size == (WIDTH, HEIGHT) and picture.getpixel((2, 2)) == PAPER


def test_an_axis_holds_its_values_and_ignores_what_is_not_a_positive_number():
    low, high = log_bounds([0.5, 20.0, math.nan, math.inf, 0.0, -1.0])
    assert low < 0.5 and 20.0 < high < 30
    assert log_bounds([]) == log_bounds([math.nan])
