"""Strengths by noise level, and the phases that several of them make."""

import math

import pytest

from glance_core.errors import ScheduleError
from glance_core.schedule.strengths import (
    RunPhases,
    above,
    below,
    between_sigmas,
    by_step,
    in_steps,
    parse_strengths,
    run_phases,
    whole_run,
)

SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)
BFLOAT16 = 2**-9  # its rounding, as a share of the value


def at(curve, *sigmas):
    return [curve.at(sigma) for sigma in sigmas]


def test_each_step_answers_from_its_own_sigma_down_to_the_next():
    curve = by_step(SIGMAS, (1, 0.5, 0.2, 0.1))
    assert at(curve, *SIGMAS[:-1]) == [1, 0.5, 0.2, 0.1]
    assert at(curve, 0.9, 0.76, 0.6, 0.3, 0.01) == [1, 1, 0.5, 0.2, 0.1], "a sampler may call the model in between"
    rounded = [sigma * (1 + sign * BFLOAT16) for sigma in SIGMAS[1:-1] for sign in (-1, 1)]
    assert at(curve, *rounded) == [0.5, 0.5, 0.2, 0.2, 0.1, 0.1]


def test_later_steps_have_the_last_strength_and_more_strengths_than_steps_are_left():
    assert at(by_step(SIGMAS, (1, 0)), *SIGMAS[:-1]) == [1, 0, 0, 0]
    assert at(by_step(SIGMAS, (1, 2, 3, 4, 5, 6)), *SIGMAS[:-1]) == [1, 2, 3, 4]
    assert at(by_step(SIGMAS[-2:], (7, 1)), 0.25) == [7]


def test_steps_from_start_to_end_answer_counted_from_zero():
    assert at(by_step(SIGMAS, in_steps(0, 2, 0.8)), *SIGMAS[:-1]) == [0.8, 0.8, 0, 0]
    assert at(by_step(SIGMAS, in_steps(1, 3, 0.8)), *SIGMAS[:-1]) == [0, 0.8, 0.8, 0]
    assert at(by_step(SIGMAS, in_steps(2, 99, 0.8)), *SIGMAS[:-1]) == [0, 0, 0.8, 0.8]


@pytest.mark.parametrize("sigmas", [(1.0, 0.5, 0.5, 0.0), (0.2, 0.6, 1.0)])
def test_steps_of_sigmas_that_do_not_fall_are_rejected(sigmas):
    with pytest.raises(ScheduleError) as error:
        by_step(sigmas, (1, 0))
    assert str(error.value) == ("steps cannot be counted if the run's sigmas do not fall; set unit to share or sigma")


def test_a_range_of_sigmas_has_its_start_and_not_its_end():
    curve = between_sigmas(0.75, 0.25, 2.0)
    assert at(curve, 1.0, 0.76, 0.75, 0.5, 0.26, 0.25, 0.0) == [0, 0, 2, 2, 2, 0, 0]
    assert at(curve, 0.75 * (1 + BFLOAT16), 0.25 * (1 + BFLOAT16)) == [2, 0]
    assert at(between_sigmas(999999999.9, 0.0, 2.0), 14.6, 1e-9, 0.0) == [2, 2, 0], "as ComfyUI's percent 0 and 1"


def test_a_pair_answers_above_and_below_its_threshold():
    assert at(above(0.5, 0.7), 0.6, 0.5, 0.1) == [0.7, 0, 0]
    assert at(below(0.5, 0.7), 0.6, 0.5, 0.1) == [0, 0.7, 0.7]
    assert at(whole_run(0.3), math.inf, 0.0) == [0.3, 0.3]


def test_phases_of_several_adapters_are_all_their_ranges():
    found = run_phases([above(0.5, 1.0), below(0.5, 0.9), whole_run(0.4), between_sigmas(0.8, 0.5, 2.0)])
    first, second, third = found.thresholds
    assert first == pytest.approx(0.8, rel=0.005) and third == 0.5
    assert second == pytest.approx(0.5, rel=0.005) and second > 0.5
    assert found.strengths == ((1.0, 0, 0.4, 0), (1.0, 0, 0.4, 2.0), (1.0, 0, 0.4, 0), (0, 0.9, 0.4, 0))


def test_neighbours_with_the_same_strengths_are_one_phase():
    assert run_phases([by_step(SIGMAS, (1, 1, 1, 1))]) == RunPhases((), ((1,),))
    assert run_phases([above(0.5, 0.3), below(0.5, 0.3)]).strengths == ((0.3, 0), (0, 0.3))
    assert run_phases([above(0.5, 0.0), below(0.5, 0.0)]) == RunPhases((), ((0, 0),))
    assert not run_phases([whole_run(0.0)]).has_effect
    assert run_phases([whole_run(0.0), below(0.5, -1)]).has_effect


def test_strengths_are_read_from_text():
    assert parse_strengths("1, 1, 0.5,0") == (1, 1, 0.5, 0)
    assert parse_strengths(" -2 ") == (-2,)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1, x", "'x' is not a strength. Write numbers like 1, 1, 0.5, 0"),
        ("1,,2", "'' is not a strength. Write numbers like 1, 1, 0.5, 0"),
        ("nan", "'nan' is not a strength from -100 to 100"),
        ("1, 1e9", "'1e9' is not a strength from -100 to 100"),
        ("9" * 60, f"'{'9' * 40}' is not a strength from -100 to 100"),
    ],
)
def test_text_that_is_not_strengths_is_rejected(text, message):
    with pytest.raises(ScheduleError) as error:
        parse_strengths(text)
    assert str(error.value) == message
