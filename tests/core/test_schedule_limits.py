"""Schedules where they begin and end: one step, one token, the last teacher step; and every refusal word for word, since its numbers are what helps."""

import numpy as np
import pytest

from glance_core.errors import ScheduleError
from glance_core.schedule import (
    DynamicShift,
    PhaseSchedule,
    Split,
    build_schedule,
    check_falling,
    default_boundary,
    image_tokens,
    parse_split,
    parse_steps,
    shifted_ladder,
    split_steps,
    teacher_ladder,
    threshold_at,
    threshold_between,
)

LADDER = shifted_ladder(50, 3.0)
STEEP = DynamicShift(tokens=(0, 10), mu=(0.0, 10.0), terminal=None)  # mu is the number of tokens
SLOW_FAST = "as 1,3,5,7,9|11,21,31,41,50"

REFUSED = [
    (lambda: STEEP.at(31), "31 tokens are too many for a ladder; make the picture smaller"),
    (lambda: image_tokens(15, 64), "an image of 15x64 pixels has no 16x16 patch; give at least 16x16"),
    (lambda: image_tokens(-16, -16), "an image of -16x-16 pixels has no 16x16 patch; give at least 16x16"),
    (lambda: shifted_ladder(0, 3.0), "a teacher ladder needs at least 1 step and at most 10000, got 0"),
    (lambda: shifted_ladder(2, 0.0), "shift must be a positive number, got 0.0"),
    (lambda: teacher_ladder("flux", tokens=0), "the flux ladder depends on the picture's size: tokens must be at least 1, got 0"),
    (lambda: teacher_ladder("shift"), "the shift ladder needs a shift, for example 3.0"),
    (lambda: teacher_ladder("model"), "the model ladder needs the model's own sigmas; it exists only where a model is loaded"),
    (lambda: teacher_ladder("model", 3, sigmas=(1, 0.5, 0)), "the model gave 2 teacher steps where 3 were asked for; choose another step count"),
    (lambda: teacher_ladder("sdxl"), "unknown ladder 'sdxl'; choose one of qwen-image, flux, shift, model"),
    (lambda: check_falling((0,)), "a ladder needs at least one sigma and a final 0, got [0.0]"),
    (lambda: check_falling((2, float("nan"), 0)), "sigma 2 of the ladder is nan; every sigma must be a finite number"),
    (lambda: check_falling((1, 0.25, 0.5, 0)), "the ladder must fall: sigma 3 is 0.5 after 0.25"),
    (lambda: check_falling((1, 0.5)), "the ladder must end with 0, it ends with 0.5"),
    (lambda: Split((), (3,)), "the slow phase is empty (|4); give each phase at least one teacher step"),
    (lambda: Split((3,), ()), "the fast phase is empty (4|); give each phase at least one teacher step"),
    (lambda: Split((0,), (9,), 9), "teacher step 10 is out of range 1..9 (1|10)"),
    (lambda: Split((0, 5), (3,), 9), "teacher steps must rise, but 4 follows 6 (1,6|4); use fewer steps per phase"),
    (lambda: split_steps(0, 5), "a split of 0+5 leaves a phase empty; give slow_steps and fast_steps at least 1 each"),
    (lambda: split_steps(1, 1, 9, 0), "the boundary step 0 must lie between 1 and 8, inside the teacher's 9 steps"),
    (lambda: split_steps(1, 1, 9, 9), "the boundary step 9 must lie between 1 and 8, inside the teacher's 9 steps"),
    (lambda: split_steps(4, 1, 9, 3), "slow_steps = 4 does not fit before teacher step 4; use at most 3"),
    (lambda: split_steps(1, 2, 2), "fast_steps = 2 does not fit between teacher steps 2 and 2; use at most 1"),
    (lambda: parse_steps("1,2"), "teacher steps '1,2' need exactly one '|' between Slow and Fast, as in 1,3,5,7,9|11,21,31,41,50"),
    (lambda: parse_steps("1|1234567"), f"teacher steps '1|1234567' hold '1234567', which is no step number; write them {SLOW_FAST}"),
    (lambda: parse_split("1234567+5"), "split '1234567+5' is not of the form SLOW+FAST, for example 5+5 or 3+5 or 5+10"),
    (lambda: parse_split("5+" + "x" * 50), f"split '5+{'x' * 38}' is not of the form SLOW+FAST, for example 5+5 or 3+5 or 5+10"),
    (lambda: PhaseSchedule((1, 0.5, 0), 0), "slow_steps = 0 of 2 leaves a phase empty; it must lie between 1 and 1"),
    (lambda: PhaseSchedule((1, 0.5, 0), 2, True), "slow_steps = 2 of 2 leaves a phase empty; it must lie between 0 and 1"),
    (lambda: build_schedule(LADDER, Split((0,), (1,), 9)), "the split 1|2 counts 9 teacher steps, the ladder has 50"),
    (lambda: build_schedule(LADDER, split_steps(5, 5), 0), "denoise must be above 0 and at most 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize("refused, said", REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_a_refusal_says_what_where_and_the_way_out(refused, said):
    with pytest.raises(ScheduleError) as error:
        refused()
    assert str(error.value) == said


def test_the_steepest_shift_that_numbers_can_tell_is_taken():
    assert STEEP.at(30) == np.exp(30)


def test_tokens_are_whole_patches():
    assert (image_tokens(16, 16), image_tokens(40, 24), image_tokens(1024, 512)) == (1, 2, 64 * 32)
    assert teacher_ladder("flux", 4, tokens=1)[0] == 1


def test_the_shortest_ladders():
    assert shifted_ladder(1, 3.0) == shifted_ladder(1, 3.0, 0.02) == (1.0, 0.0)
    assert shifted_ladder(2, 1.0) == (1.0, 0.5, 0.0)
    assert shifted_ladder(2, 0.5) == pytest.approx((1, 1 / 3, 0))
    assert shifted_ladder(2, 1.0, 0.02) == pytest.approx((1, 0.02, 0))


@pytest.mark.parametrize("slow, fast, steps", [(5, 2, 50), (1, 2, 10), (2, 3, 20), (1, 1, 2)])
def test_splits_of_few_steps_follow_the_papers_formula_on_every_ladder(slow, fast, steps):
    boundary = default_boundary(steps)
    split = split_steps(slow, fast, steps)
    assert split.slow == tuple(np.rint(np.linspace(0, boundary, slow + 1)).astype(int)[:-1])
    assert split.fast == tuple(np.minimum(np.rint(np.linspace(boundary, steps, fast)).astype(int), steps - 1))
    assert split.teacher_steps == steps


def test_the_boundary_is_a_fifth_of_the_way_and_never_the_first_step():
    assert [default_boundary(steps) for steps in (2, 5, 10, 28, 50, 100)] == [1, 1, 2, 6, 10, 20]
    assert split_steps(1, 2, 10, 1) == Split((0,), (1, 9), 10)


@pytest.mark.parametrize("fast, steps", [(40, 50), (41, 50), (19, 20), (12, 10), (60, 50)])
def test_the_most_fast_steps_that_are_offered_are_the_most_that_fit(fast, steps):
    boundary = default_boundary(steps)
    fits = [n for n in range(1, steps + 1) if len(set(np.minimum(np.rint(np.linspace(boundary, steps, n)), steps - 1))) == n]
    with pytest.raises(ScheduleError) as refused:
        split_steps(1, fast, steps)
    assert (
        str(refused.value)
        == f"fast_steps = {fast} does not fit between teacher steps {boundary + 1} and {steps}; use at most {max(n for n in fits if n <= fast)}"
    )


def test_written_splits_are_read():
    assert [parse_split(text) for text in ("3+5", " 5 + 10 ", "123456+1")] == [(3, 5), (5, 10), (123456, 1)]
    assert parse_steps("1|123456", 200_000) == Split((0,), (123_455,), 200_000)


def test_a_schedule_of_any_sequence_is_the_same_value():
    walked = PhaseSchedule([1, 0.5, 0], 1)
    assert walked == PhaseSchedule((1.0, 0.5, 0.0), 1) and walked.sigmas == (1.0, 0.5, 0.0)
    assert len({walked, PhaseSchedule((1.0, 0.5, 0.0), 1)}) == 1


def test_the_threshold_leaves_twice_the_rounding_of_bfloat16_or_half_the_gap():
    assert threshold_between(1.0, 0.5) == 0.5 + 2 * 0.5 * 2**-9
    assert threshold_between(0.5 + 2**-10, 0.5) == 0.5 + 2**-11
    assert threshold_at((1.0, 0.8, 0.5, 0.0), 2) == threshold_between(0.8, 0.5)
    walked = PhaseSchedule((1.0, 0.5, 0.0), 1)
    assert walked.phase(walked.threshold) == "fast"


def test_a_split_below_the_ladders_top_is_walked_from_where_it_begins():
    walked = build_schedule(LADDER, parse_steps("3,5|11,21"))
    assert walked.sigmas == (LADDER[2], LADDER[4], LADDER[10], LADDER[20], 0.0) and walked.slow_steps == 2
    lower = build_schedule(LADDER, parse_steps("3,5|11,21"), 0.5)
    assert lower.sigmas == (LADDER[25], 0.0) and lower.slow_steps == 0


def test_only_an_image_to_image_walk_is_partial():
    assert [build_schedule(LADDER, split_steps(5, 5), denoise).partial for denoise in (1.0, 0.99, 0.5)] == [False, True, True]
