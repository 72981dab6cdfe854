"""Sigmas compared with the reference's published numbers and diffusers' scheduler; the split; rejected input."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

from glance_core.errors import ScheduleError
from glance_core.schedule.phase_schedule import PhaseSchedule, build_schedule
from glance_core.schedule.sigmas import image_tokens, teacher_sigmas
from glance_core.schedule.split import PRESETS, Split, parse_split, parse_steps, split_steps

# CSU-JPG/Glance at 88bac37: the timesteps that its pipelines hard-code for 1024x1024, divided by 1000.
REFERENCE_1024 = {
    "qwen-image": [
        1.0, 0.9791915, 0.9575157, 0.9349171, 0.9113354, 0.8867053, 0.7450728, 0.5629505, 0.3200802, 0.0200000,
    ],
    "flux": [1.0, 0.9869786, 0.9732042, 0.9586094, 0.9431188, 0.9266473, 0.8257017, 0.6779868, 0.4411997, 0.0605503],
}  # fmt: skip
# The same steps at other sizes, computed with diffusers 0.35.
REFERENCE_OTHER = {
    ("qwen-image", 1328, 1328): [1, 0.9818, 0.9627, 0.9426, 0.9216, 0.8995, 0.7697, 0.5953, 0.3489, 0.02],
    ("qwen-image", 1664, 928): [1, 0.9810, 0.9612, 0.9404, 0.9186, 0.8957, 0.7623, 0.5855, 0.3399, 0.02],
    ("flux", 1328, 1328): [1, 0.9918, 0.9831, 0.9738, 0.9638, 0.9530, 0.8837, 0.7716, 0.5588, 0.0937],
}
# The published scheduler_config.json of FLUX.1-dev and Qwen-Image.
DIFFUSERS = {
    "flux": {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096},
    "qwen-image": {
        "shift": 1.0, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192,
        "shift_terminal": 0.02, "time_shift_type": "exponential",
    },
}  # fmt: skip


def glance_schedule(rule, width, height, **kwargs):
    return build_schedule(teacher_sigmas(rule, tokens=image_tokens(width, height)), split_steps(5, 5), **kwargs)


def diffusers_sigmas(rule, tokens, steps):
    config = DIFFUSERS[rule]
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, use_dynamic_shifting=True, **config)
    slope = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
    mu = config["base_shift"] + slope * (tokens - config["base_image_seq_len"])
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    return scheduler.sigmas.tolist()


@pytest.mark.parametrize("rule", REFERENCE_1024)
def test_sigmas_at_1024_equal_the_references(rule):
    schedule = glance_schedule(rule, 1024, 1024)
    assert schedule.sigmas[:-1] == pytest.approx(REFERENCE_1024[rule], abs=5e-5)
    assert schedule.sigmas[-1] == 0
    assert schedule.slow_steps == 5
    assert schedule.boundary == schedule.sigmas[5]


@pytest.mark.parametrize("rule, width, height", REFERENCE_OTHER)
def test_sigmas_at_other_sizes_equal_the_references(rule, width, height):
    found = glance_schedule(rule, width, height).sigmas[:-1]
    assert found == pytest.approx(REFERENCE_OTHER[rule, width, height], abs=5e-4)


@pytest.mark.parametrize("rule", DIFFUSERS)
def test_sigmas_equal_diffusers_for_random_sizes_and_step_counts(rule):
    choose = random.Random(7)
    for _ in range(10):
        width, height, steps = choose.randrange(256, 2048, 16), choose.randrange(256, 2048, 16), choose.randrange(2, 80)
        tokens = image_tokens(width, height)
        expected = diffusers_sigmas(rule, tokens, steps)
        assert teacher_sigmas(rule, steps, tokens=tokens) == pytest.approx(expected, abs=1e-6)


def test_fixed_shift_equals_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 20, 20).tolist())
    assert teacher_sigmas("shift", 20, shift=3.0) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_split_5_5_is_the_papers():
    assert str(split_steps(5, 5)) == "1,3,5,7,9|11,21,31,41,50"


@pytest.mark.parametrize("slow, fast", [*PRESETS.values(), (1, 1), (10, 40 // 2), (7, 3)])
def test_split_follows_the_papers_formula(slow, fast):
    split = split_steps(slow, fast)
    assert split.slow == tuple(np.rint(np.linspace(0, 10, slow + 1)).astype(int)[:-1])
    assert split.fast == tuple(np.minimum(np.rint(np.linspace(10, 50, fast)).astype(int), 49))


def test_explicit_steps_are_counted_from_one():
    split = parse_steps(" 1, 3,5,7,9 | 11,21 31,41,50 ")
    assert split == split_steps(5, 5)
    assert parse_steps("1|2", 2) == Split((0,), (1,), 2)


BAD_STEPS = [
    "", "1,3", "1|3|5", "|1", "1|", "0|5", "1|51", "3,1|5", "1,1|5", "5|5", "1|-5", "1|x", "1|1e3", "1|²", "a" * 50,
    "1|9999999999",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_STEPS)
def test_bad_explicit_steps_are_rejected(text):
    with pytest.raises(ScheduleError):
        parse_steps(text)


@pytest.mark.parametrize("slow, fast", [(0, 5), (5, 0), (-1, 5), (11, 5), (5, 41), (5, 40)])
def test_a_split_that_does_not_fit_is_rejected_with_its_numbers(slow, fast):
    with pytest.raises(ScheduleError, match=str(slow if not 1 <= slow <= 10 else fast)):
        split_steps(slow, fast)


def test_a_large_split_that_still_rises_is_accepted():
    steps = split_steps(10, 27).steps
    assert len(steps) == 37
    assert list(steps) == sorted(set(steps))


def test_spaces_around_the_numbers_of_a_split_are_ignored():
    """Including all that str.strip takes for a space and int does not."""
    assert parse_split(" 5 + 5\n") == parse_split("5\x1c+\u30005\x1e") == (5, 5)


@pytest.mark.parametrize("text", ["5", "5+", "a+b", "5+5+5", "-1+5", "+"])
def test_a_bad_split_text_is_rejected_with_the_text(text):
    with pytest.raises(ScheduleError) as rejected:
        parse_split(text)
    assert repr(text) in str(rejected.value)


@pytest.mark.parametrize(
    "sigmas, shown",
    [
        ((1.0, 0.5, 0.5, 0.0), "0.5"),
        ((1.0, 1.1, 0.0), "1.1"),
        ((1.0, math.nan, 0.0), "nan"),
        ((math.inf, 0.5, 0.0), "inf"),
        ((1.0, 0.5, 0.1), "0.1"),
        ((1.0, 0.5, -0.1), "-0.1"),
        ((0.0,), "0.0"),
        ((), r"\[\]"),
    ],
)
def test_sigmas_that_do_not_fall_to_zero_are_rejected_with_the_value(sigmas, shown):
    with pytest.raises(ScheduleError, match=shown):
        PhaseSchedule(sigmas, 1)
    with pytest.raises(ScheduleError, match=shown):
        teacher_sigmas("model", len(sigmas) - 1, sigmas=sigmas)


@pytest.mark.parametrize("slow_steps", [-1, 0, 2, 3])
def test_a_schedule_with_an_empty_phase_is_rejected(slow_steps):
    with pytest.raises(ScheduleError, match=str(slow_steps)):
        PhaseSchedule((1.0, 0.5, 0.0), slow_steps)


@pytest.mark.parametrize(
    "rule, kwargs, shown",
    [
        ("flux", {}, "None"),
        ("flux", {"tokens": 0}, "0"),
        ("shift", {}, "shift"),
        ("shift", {"shift": -1.0}, "-1"),
        ("shift", {"shift": math.nan}, "nan"),
        ("model", {}, "model"),
        ("model", {"sigmas": (1.0, 0.0)}, "1 teacher steps"),
        ("sdxl", {}, "sdxl"),
        ("flux", {"tokens": 16, "steps": 0}, "0"),
    ],
)
def test_sigmas_that_cannot_be_computed_are_rejected(rule, kwargs, shown):
    with pytest.raises(ScheduleError, match=shown):
        teacher_sigmas(rule, **kwargs)


def test_an_image_smaller_than_one_token_is_rejected():
    with pytest.raises(ScheduleError, match="8x1024"):
        image_tokens(8, 1024)


@pytest.mark.parametrize("denoise", [0.99, 0.97, 0.95, 0.9, 0.81, 0.7, 0.5, 0.3, 0.1, 0.02, 0.001])
@pytest.mark.parametrize("rule", DIFFUSERS)
def test_denoise_starts_where_the_teacher_would_and_keeps_the_phases(rule, denoise):
    teacher = teacher_sigmas(rule, tokens=4096)
    full, partial = glance_schedule(rule, 1024, 1024), glance_schedule(rule, 1024, 1024, denoise=denoise)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(50)
    _, left = FluxImg2ImgPipeline.get_timesteps(SimpleNamespace(scheduler=scheduler), 50, denoise, "cpu")
    assert partial.sigmas[0] == teacher[50 - left]
    assert partial.steps <= full.steps
    for sigma in partial.sigmas[1:-1]:
        assert sigma in full.sigmas
        assert partial.phase(sigma) == full.phase(sigma)
    assert partial.phase(partial.sigmas[0]) == full.phase(partial.sigmas[0])


@pytest.mark.parametrize("denoise", [0, -0.5, 1.01, math.nan, math.inf])
def test_a_denoise_out_of_range_is_rejected_with_its_value(denoise):
    with pytest.raises(ScheduleError, match=str(denoise)):
        glance_schedule("flux", 1024, 1024, denoise=denoise)


def test_a_split_of_another_step_count_than_the_sigmas_is_rejected():
    with pytest.raises(ScheduleError, match="20"):
        build_schedule(teacher_sigmas("flux", 20, tokens=4096), split_steps(5, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", DIFFUSERS)
@pytest.mark.parametrize("size", [(256, 256), (1024, 1024), (2048, 2048)])
def test_phase_is_right_at_the_boundary_after_rounding(rule, size, dtype):
    schedule = glance_schedule(rule, *size)
    rounded = torch.tensor(schedule.sigmas[:-1], dtype=torch.float64).to(dtype).tolist()
    assert [schedule.phase(sigma) for sigma in rounded] == ["slow"] * 5 + ["fast"] * 5


def test_phase_between_the_last_slow_sigma_and_the_boundary_is_slow():
    schedule = glance_schedule("flux", 1024, 1024)
    between = (schedule.sigmas[4] + schedule.boundary) / 2
    assert schedule.phase(between) == "slow"
    assert schedule.phase(schedule.boundary) == "fast"


def test_phases_are_right_for_sigmas_closer_than_bfloat16_can_tell():
    schedule = PhaseSchedule((1.0, 0.9001, 0.9, 0.5, 0.0), 2)
    assert schedule.phases() == ("slow", "slow", "fast", "fast")


def test_phases_are_right_for_sigmas_above_one():
    schedule = PhaseSchedule((14.6, 5.0, 1.0, 0.1, 0.0), 2)
    assert schedule.phases() == ("slow", "slow", "fast", "fast")
