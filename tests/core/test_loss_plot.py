"""The picture of a training's losses: what fell is drawn falling, in its phase's colour, and what cannot be drawn does no harm."""

import math

import pytest
from PIL import ImageChops

from glance_core.draws import History
from glance_core.loss_plot import COLOURS, HEIGHT, PAPER, WIDTH, bounds_of, plot_losses
from glance_core.schedule import FAST, SLOW

SIGMAS = (1.0, 0.8, 0.5, 0.2)


def history(loss, steps=60):
    """Steps of two examples, at a Slow and a Fast point in turn."""
    points = [point for step in range(steps) for point in ((0, 2) if step % 2 == 0 else (1, 3))]
    return History(points, [loss(at / len(points)) for at in range(len(points))])


def rows(picture, colour, columns):
    """Heights at which a colour stands in a share of the left panel's columns."""
    low, high = (int(84 + share * (WIDTH / 2 - 160)) for share in columns)
    return [y for y in range(90, HEIGHT - 70) for x in range(low, high) if picture.getpixel((x, y)) == colour]


@pytest.mark.parametrize("phase", [SLOW, FAST])
def test_losses_that_fell_are_drawn_falling(phase):
    picture = plot_losses(history(lambda done: math.exp(-4 * done)), SIGMAS, 2, 2, "a title")
    first, last = rows(picture, COLOURS[phase], (0, 0.15)), rows(picture, COLOURS[phase], (0.8, 0.95))
    assert picture.size == (WIDTH, HEIGHT) and first and last
    assert sum(last) / len(last) - sum(first) / len(first) > 100  # downwards


def test_the_title_and_every_step_are_on_it():
    plain, titled = (plot_losses(history(lambda done: 1.0), SIGMAS, 2, 2, title) for title in ("", "a title"))
    left, top, right, bottom = ImageChops.difference(plain, titled).getbbox()
    assert left >= 24 and bottom < 40 and right > left and top >= 14


@pytest.mark.parametrize("found", [History([], []), History([0], [0.5]), history(lambda done: 0.0)])
def test_nothing_to_draw_is_still_a_picture(found):
    picture = plot_losses(found, SIGMAS, 2, 2, "empty")
    assert picture.size == (WIDTH, HEIGHT) and picture.getpixel((2, 2)) == PAPER


def test_an_axis_holds_what_it_shows_and_nothing_that_is_no_number():
    low, high = bounds_of([0.5, 20.0, math.nan, math.inf, 0.0, -1.0])
    assert low < 0.5 and 20.0 < high < 30
    assert bounds_of([]) == bounds_of([math.nan])
