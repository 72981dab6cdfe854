"""Every flow architecture of ComfyUI: a pair acts as merged models in a row, and leaves the bare model as it was.

`make sweep` runs all of it with and without guidance; `make test` without.
"""

import os

import adapters
import comfy.model_sampling
import pack
import pytest
import tiny_models
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file

GUIDANCE = [1.0, 3.0] if os.environ.get("GLANCE_SWEEP") else [1.0]
STEPS = 2  # of each phase


def clear_caches(model):
    """Empty the one cache that a model of 0.33 keeps for itself."""
    if hasattr(model.model.diffusion_model, "clear_kv_cache"):
        model.model.diffusion_model.clear_kv_cache()


def merged_in_a_row(model, files, name, sigmas, cfg):
    """ComfyUI's own way, with fresh caches for each of the two runs."""
    slow, fast = (pack.merged(model, load_file(file)) for file in files)
    clear_caches(slow)
    middle = pack.host_sample(slow, name, sigmas[: STEPS + 1], cfg=cfg)
    if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.IMG_TO_IMG_FLOW):
        middle = model.model.process_latent_out(1 - model.model.process_latent_in(middle))  # turned over at its end
    clear_caches(fast)
    end = pack.host_sample(fast, name, sigmas[STEPS:], cfg=cfg, start=middle)
    clear_caches(fast)
    return end


@pytest.mark.parametrize("cfg", GUIDANCE)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pair_acts_as_merged_models_and_leaves_the_bare_model_as_it_was(name, cfg, loras):
    model = tiny_models.build(name)
    slow, fast = adapters.save_pair(model, loras)
    before, sigmas = tiny_models.state(model), pack.scheduler(model, name, STEPS, STEPS)
    bare = pack.flat(pack.host_sample(model, name, sigmas, cfg=cfg))
    expected = merged_in_a_row(model, (loras / slow, loras / fast), name, sigmas, cfg)
    with_pair, report = pack.load_pair(model, slow, fast)
    assert report.count(" 0 unmatched") == 2
    ours = pack.phase_split(with_pair, name, STEPS, STEPS, cfg)
    assert pack.relative(ours, expected) < 1e-5
    assert torch.equal(pack.flat(pack.host_sample(model, name, sigmas, cfg=cfg)), bare)
    assert pack.relative(pack.flat(ours), bare) > 1e-3, "the pair has no effect, so the test could not fail"
    tiny_models.assert_bit_exact(model, before)
