"""The cheaper teacher is taken only where it was measured to be near enough, and says what it is."""

import pytest
import torch

from glance_core.objectives import rollout
from glance_core.schedule import shifted_ladder
from glance_core.teacher import PROBES, surrogate
from glance_core.verdict import latent_psnr

LADDER = shifted_ladder(30, 2.0)


def smooth(x, sigma, rows):
    return x * (0.2 + 0.1 * sigma.reshape(-1, 1)) + 0.1 * rows.reshape(-1, 1)


def rough(x, sigma, rows):
    return x + 3 * torch.sin(200 * sigma).reshape(-1, 1)


def noise(rows):
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(2))


def test_a_smooth_teacher_is_walked_by_a_third_of_its_steps():
    count = []
    found = surrogate(smooth, noise(16), LADDER, latent_psnr, 4, count.append, points=(0, 8))
    assert found.visited == (0, 3, 6, 8, 9, 12, 15, 18, 21, 24, 27)
    assert sum(count) == PROBES * (30 + 11)  # what the measuring took
    states = [rollout(smooth, noise(16)[:PROBES], LADDER, (0,), visited=visited).states[-1] for visited in (found.visited, None)]
    assert found.near == pytest.approx(float(latent_psnr(*states).mean()), abs=1e-3)
    assert found.near > 40
    assert f"{found.near:.1f} dB of all steps on {PROBES} runs, near enough" in str(found)
    assert found.and_steps((0, 10)) == tuple(sorted({*found.visited, 10}))


def test_a_rough_one_is_walked_by_all_and_so_are_few_runs():
    found = surrogate(rough, noise(16), LADDER, latent_psnr, 16)
    assert found.visited is None and found.near < 40 and found.and_steps((0, 5)) is None
    assert str(found).endswith("which is not enough; all of its steps")
    few = surrogate(smooth, noise(8), LADDER, latent_psnr, 16)
    assert (few.visited, few.near, str(few)) == (None, None, "all of its steps")
    assert surrogate(smooth, noise(16), shifted_ladder(8, 2.0), latent_psnr, 16).visited is None
