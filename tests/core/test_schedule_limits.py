"""Schedules at their limits: one step, one token, the last teacher step. Every error is checked word for word."""

import numpy as np
import pytest

from glance_core.errors import ScheduleError
from glance_core.schedule.phase_schedule import PhaseSchedule, build_schedule, threshold_at, threshold_between
from glance_core.schedule.sigmas import check_falling, image_tokens, rule_sigmas, shifted_sigmas, teacher_sigmas
from glance_core.schedule.split import Split, default_boundary, parse_split, parse_steps, split_steps
from glance_core.sigma_rules import DynamicShift

SIGMAS = shifted_sigmas(50, 3.0)
STEEP = DynamicShift("steep", tokens=(0, 10), mu=(0.0, 10.0))  # mu is the number of tokens
RULES = "qwen-image, flux, flux2, ltxv, ideogram4, mochi, shift, model, list"
EXAMPLE = "1,3,5,7,9|11,21,31,41,50"

REJECTED = [
    (lambda: rule_sigmas(STEEP, 2, 31), "31 tokens are too many for the steep sigmas; make the image smaller"),
    (lambda: image_tokens(15, 64), "an image of 15x64 pixels is smaller than one token; use at least 16x16"),
    (lambda: image_tokens(-16, -16), "an image of -16x-16 pixels is smaller than one token; use at least 16x16"),
    (lambda: shifted_sigmas(0, 3.0), "the teacher has 0 steps; choose 1 to 10000"),
    (lambda: shifted_sigmas(2, 0.0), "shift is 0.0; it must be a positive number"),
    (
        lambda: teacher_sigmas("flux", tokens=0),
        "the flux sigmas depend on the image size: tokens must be at least 1, got 0",
    ),
    (lambda: teacher_sigmas("shift"), "the shift rule needs a shift, for example 3.0"),
    (lambda: teacher_sigmas("model"), "the model rule needs the model's own sigmas, and no model is loaded here"),
    (
        lambda: teacher_sigmas("model", 3, sigmas=(1, 0.5, 0)),
        "the model gave 2 teacher steps instead of 3; choose another number",
    ),
    (lambda: teacher_sigmas("list"), "the list rule needs the list itself"),
    (
        lambda: teacher_sigmas("list", 3, sigmas=(1, 0.5, 0)),
        "the list gave 2 teacher steps instead of 3; choose another number",
    ),
    (lambda: teacher_sigmas("mochi", 0, tokens=1), "the teacher has 0 steps; choose 1 to 10000"),
    (lambda: teacher_sigmas("ideogram4", 10_001, tokens=1), "the teacher has 10001 steps; choose 1 to 10000"),
    (lambda: teacher_sigmas("sdxl"), f"'sdxl' is not a sigma rule; choose one of {RULES}"),
    (lambda: check_falling((0,)), "a list of sigmas needs at least one sigma and a final 0, got [0.0]"),
    (lambda: check_falling((2, float("nan"), 0)), "sigma 2 is nan; every sigma must be a finite number"),
    (lambda: check_falling((1, 0.25, 0.5, 0)), "sigmas must fall, but sigma 3 is 0.5 after 0.25"),
    (lambda: check_falling((1, 0.5)), "sigmas must end with 0, but the last is 0.5"),
    (lambda: Split((), (3,)), "the slow phase is empty (|4); give each phase at least one teacher step"),
    (lambda: Split((3,), ()), "the fast phase is empty (4|); give each phase at least one teacher step"),
    (lambda: Split((0,), (9,), 9), "teacher step 10 is not in 1..9 (1|10)"),
    (lambda: Split((0, 5), (3,), 9), "teacher steps must rise, but 4 follows 6 (1,6|4); use fewer steps per phase"),
    (lambda: split_steps(0, 5), "a split of 0+5 leaves a phase empty; give slow_steps and fast_steps at least 1"),
    (lambda: split_steps(1, 1, 9, 0), "the boundary step 0 must lie between 1 and 8, inside the teacher's 9 steps"),
    (lambda: split_steps(1, 1, 9, 9), "the boundary step 9 must lie between 1 and 8, inside the teacher's 9 steps"),
    (lambda: split_steps(4, 1, 9, 3), "slow_steps is 4, but only 3 teacher steps come before Fast; use at most 3"),
    (lambda: split_steps(1, 2, 2), "fast_steps is 2, which does not fit between teacher steps 2 and 2; use at most 1"),
    (
        lambda: parse_steps("1,2"),
        f"teacher steps '1,2' need exactly one '|', between Slow and Fast. Write {EXAMPLE}",
    ),
    (lambda: parse_steps("1|1234567"), f"'1234567' is not a step number. Write steps like {EXAMPLE}"),
    (lambda: parse_split("1234567+5"), "'1234567+5' is not a split. Write SLOW+FAST, for example 5+5 or 3+5 or 5+10"),
    (
        lambda: parse_split("5+" + "x" * 50),
        f"'5+{'x' * 38}' is not a split. Write SLOW+FAST, for example 5+5 or 3+5 or 5+10",
    ),
    (
        lambda: PhaseSchedule((1, 0.5, 0), 0),
        "slow_steps is 0 of 2, which leaves a phase empty; it must lie between 1 and 1",
    ),
    (
        lambda: PhaseSchedule((1, 0.5, 0), 2, True),
        "slow_steps is 2 of 2, which leaves a phase empty; it must lie between 0 and 1",
    ),
    (
        lambda: build_schedule(SIGMAS, Split((0,), (1,), 9)),
        "the split 1|2 counts 9 teacher steps, but the sigmas have 50",
    ),
    (lambda: build_schedule(SIGMAS, split_steps(5, 5), 0), "denoise is 0; it must be above 0 and at most 1"),
]


@pytest.mark.parametrize("attempt, message", REJECTED, ids=[message[:40] for _, message in REJECTED])
def test_an_error_states_the_value_and_the_way_out(attempt, message):
    with pytest.raises(ScheduleError) as error:
        attempt()
    assert str(error.value) == message


def test_the_largest_shift_that_can_be_computed_is_accepted():
    assert rule_sigmas(STEEP, 2, 30)[1] == np.exp(30) / (np.exp(30) + 1) != np.exp(29) / (np.exp(29) + 1)


def test_an_image_has_one_token_per_full_16x16_square():
    assert (image_tokens(16, 16), image_tokens(40, 24), image_tokens(1024, 512)) == (1, 2, 64 * 32)
    assert teacher_sigmas("flux", 4, tokens=1)[0] == 1


def test_sigmas_of_one_and_two_steps_are_right():
    assert shifted_sigmas(1, 3.0) == shifted_sigmas(1, 3.0, 0.02) == (1.0, 0.0)
    assert shifted_sigmas(2, 1.0) == (1.0, 0.5, 0.0)
    assert shifted_sigmas(2, 0.5) == pytest.approx((1, 1 / 3, 0))
    assert shifted_sigmas(2, 1.0, 0.02) == pytest.approx((1, 0.02, 0))


@pytest.mark.parametrize("slow, fast, steps", [(5, 2, 50), (1, 2, 10), (2, 3, 20), (1, 1, 2)])
def test_small_splits_follow_the_papers_formula_for_every_number_of_teacher_steps(slow, fast, steps):
    boundary = default_boundary(steps)
    split = split_steps(slow, fast, steps)
    assert split.slow == tuple(np.rint(np.linspace(0, boundary, slow + 1)).astype(int)[:-1])
    assert split.fast == tuple(np.minimum(np.rint(np.linspace(boundary, steps, fast)).astype(int), steps - 1))
    assert split.teacher_steps == steps


def test_the_boundary_is_a_fifth_of_the_way_and_never_the_first_step():
    assert [default_boundary(steps) for steps in (2, 5, 10, 28, 50, 100)] == [1, 1, 2, 6, 10, 20]
    assert split_steps(1, 2, 10, 1) == Split((0,), (1, 9), 10)


@pytest.mark.parametrize("fast, steps", [(40, 50), (41, 50), (19, 20), (12, 10), (60, 50)])
def test_the_error_offers_the_largest_number_of_fast_steps_that_fits(fast, steps):
    boundary = default_boundary(steps)

    def fits(count):
        return len(set(np.minimum(np.rint(np.linspace(boundary, steps, count)), steps - 1))) == count

    most = max(count for count in range(1, steps + 1) if fits(count) and count <= fast)
    with pytest.raises(ScheduleError) as error:
        split_steps(1, fast, steps)
    assert str(error.value) == (
        f"fast_steps is {fast}, which does not fit between teacher steps {boundary + 1} and {steps}; use at most {most}"
    )


def test_splits_are_read_from_text():
    assert [parse_split(text) for text in ("3+5", " 5 + 10 ", "123456+1")] == [(3, 5), (5, 10), (123456, 1)]
    assert parse_steps("1|123456", 200_000) == Split((0,), (123_455,), 200_000)


def test_a_schedule_made_from_a_list_equals_one_made_from_a_tuple():
    schedule = PhaseSchedule([1, 0.5, 0], 1)
    assert schedule == PhaseSchedule((1.0, 0.5, 0.0), 1) and schedule.sigmas == (1.0, 0.5, 0.0)
    assert len({schedule, PhaseSchedule((1.0, 0.5, 0.0), 1)}) == 1


def test_the_threshold_leaves_twice_the_rounding_of_bfloat16_or_half_the_gap():
    assert threshold_between(1.0, 0.5) == 0.5 + 2 * 0.5 * 2**-9
    assert threshold_between(0.5 + 2**-10, 0.5) == 0.5 + 2**-11
    assert threshold_at((1.0, 0.8, 0.5, 0.0), 2) == threshold_between(0.8, 0.5)
    schedule = PhaseSchedule((1.0, 0.5, 0.0), 1)
    assert schedule.phase(schedule.threshold) == "fast"


def test_a_split_that_begins_below_the_top_starts_there():
    schedule = build_schedule(SIGMAS, parse_steps("3,5|11,21"))
    assert schedule.sigmas == (SIGMAS[2], SIGMAS[4], SIGMAS[10], SIGMAS[20], 0.0) and schedule.slow_steps == 2
    lower = build_schedule(SIGMAS, parse_steps("3,5|11,21"), 0.5)
    assert lower.sigmas == (SIGMAS[25], 0.0) and lower.slow_steps == 0


def test_only_an_image_to_image_schedule_is_partial():
    found = [build_schedule(SIGMAS, split_steps(5, 5), denoise).partial for denoise in (1.0, 0.99, 0.5)]
    assert found == [False, True, True]
