"""GlanceReferenceSampler: the model sees one list of sigmas, and the sample moves along diffusers' other ones."""

import adapters
import comfy.patcher_extension
import numpy as np
import pack
import pytest
import tiny_models
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from glance_core.schedule.sigmas import teacher_sigmas


class Record:
    """Each model call: its state, the sigma that the model saw, and its answer."""

    def __init__(self):
        self.seen = []

    def __call__(self, executor, x, timestep, *args, **kwargs):
        denoised = executor(x, timestep, *args, **kwargs)
        self.seen.append((x.clone(), float(timestep[0]), denoised.clone()))
        return denoised


def recorded(model):
    """(a clone of the model, the record of its calls)"""
    record, watched = Record(), model.clone()
    watched.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, record)
    return watched, record


def reference_sampler():
    return pack.node("GlanceReferenceSampler").execute().args[0]


@pytest.mark.parametrize("name", ["qwen-image", "flux"])
def test_the_model_sees_its_own_sigmas_and_the_sample_moves_along_diffusers_sigmas(name, loras):
    model = tiny_models.build(name)
    with_pair, _ = pack.load_pair(model, *adapters.save_pair(model, loras))
    watched, record = recorded(with_pair)
    sigmas = pack.scheduler(with_pair, name)
    final = pack.host_sample(watched, name, sigmas, sampler=reference_sampler())
    assert [sigma for _, sigma, _ in record.seen] == pytest.approx(sigmas.tolist()[:-1])

    config = {"qwen-image": {"shift_terminal": 0.02}, "flux": {}}[name]
    slope = {"qwen-image": (0.9 - 0.5) / (8192 - 256), "flux": (1.15 - 0.5) / (4096 - 256)}[name]
    moves = []
    for steps in (50, 5):
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **config)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=0.5 + slope * (16 - 256))
        moves += scheduler.sigmas.diff().tolist()[:5]
    states = [x for x, _, _ in record.seen]
    for (x, sigma, denoised), move, after in zip(record.seen, moves, states[1:], strict=False):
        assert torch.allclose(x + move * (x - denoised) / sigma, after, atol=1e-4)
    assert pack.relative(final, pack.host_sample(with_pair, name, sigmas)) > 1e-3


def test_models_and_sigmas_that_it_is_not_for_are_rejected():
    sampler = reference_sampler()
    for name in ("sd1", "wan"):
        model = tiny_models.build(name)
        with pytest.raises(ValueError, match="sigmas, not for model; use Phase Split Sampler"):
            pack.host_sample(model, name, pack.scheduler(model, name), sampler=sampler)
    flux = tiny_models.build("flux")
    with pytest.raises(ValueError, match="needs flux sigmas of this size"):
        pack.host_sample(flux, "flux", torch.linspace(1, 0, 6), sampler=sampler)
    with pytest.raises(ValueError, match="both phases"):
        pack.host_sample(flux, "flux", pack.scheduler(flux, "flux", denoise=0.3), sampler=sampler)


def test_it_follows_an_explicit_boundary(loras):
    model = tiny_models.build("flux")
    with_pair, _ = pack.load_pair(model, *adapters.save_pair(model, loras))
    watched, record = recorded(with_pair)
    sigmas = pack.scheduler(with_pair, "flux", teacher_steps="1,3,5,7,9,11,21|31,41,50")
    pack.host_sample(watched, "flux", sigmas, sampler=reference_sampler())
    (x, sigma, denoised), after = record.seen[7], record.seen[8][0]
    fast = teacher_sigmas("flux", 3, tokens=16)
    assert torch.allclose(x + (fast[1] - fast[0]) * (x - denoised) / sigma, after, atol=1e-4)
