"""The cheaper teacher is used only if it was measured to be close enough, and its text says what was measured."""

import pytest
import torch

from glance_core.evaluation.metrics import latent_psnr
from glance_core.sampling.cheap_teacher import PROBES, find_cheap_teacher
from glance_core.sampling.rollout import Teacher, rollout
from glance_core.schedule.sigmas import shifted_sigmas

SIGMAS = shifted_sigmas(30, 2.0)


def smooth(x, sigma, rows):
    return x * (0.2 + 0.1 * sigma.reshape(-1, 1)) + 0.1 * rows.reshape(-1, 1)


def rough(x, sigma, rows):
    return x + 3 * torch.sin(200 * sigma).reshape(-1, 1)


def noise(rows):
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(2))


def test_a_smooth_teacher_needs_only_a_third_of_its_steps():
    count = []
    teacher = Teacher(smooth, SIGMAS, batch=4, tick=count.append)
    found = find_cheap_teacher(teacher, noise(16), latent_psnr, steps=(0, 8))
    assert found.visited_steps == (0, 3, 6, 8, 9, 12, 15, 18, 21, 24, 27)
    assert sum(count) == PROBES * (30 + 11)  # the model calls of the measurement
    cheap, full = (
        rollout(Teacher(smooth, SIGMAS), noise(16)[:PROBES], (0,), visited).states[-1]
        for visited in (found.visited_steps, None)
    )
    assert found.psnr == pytest.approx(float(latent_psnr(cheap, full).mean()), abs=1e-3)
    assert found.psnr > 40
    assert f"reaches {found.psnr:.1f} dB on {PROBES} runs, so only these steps" in str(found)
    assert found.with_steps((0, 10)) == tuple(sorted({*found.visited_steps, 10}))


def test_a_rough_teacher_takes_all_its_steps():
    found = find_cheap_teacher(Teacher(rough, SIGMAS, batch=16), noise(16), latent_psnr)
    assert found.visited_steps is None and found.psnr < 40 and found.with_steps((0, 5)) is None
    assert str(found).endswith(f"reaches {found.psnr:.1f} dB on {PROBES} runs, so all steps")


def test_nothing_is_measured_for_few_runs_or_few_steps():
    few = find_cheap_teacher(Teacher(smooth, SIGMAS, batch=16), noise(8), latent_psnr)
    assert (few.visited_steps, few.psnr, str(few)) == (None, None, "all steps")
    short = Teacher(smooth, shifted_sigmas(8, 2.0), batch=16)
    assert find_cheap_teacher(short, noise(16), latent_psnr).visited_steps is None
