"""Two models in one run: LoRAs by noise level on each, every sampler, the authors' boundary, and first frames."""

import comfy.samplers
import pack
import pytest
import swapped
import tiny_models
import torch
import two_models
from test_phase_lora import load, saved

CFGS = (2.0, 2.0)


def by_hand(models, sigmas, threshold, sampler):
    """Both models loaded by hand, swapped in one run."""
    for patcher in models:
        patcher.patch_model()
        patcher.pre_run()
    early, late = models
    guider = swapped.SwappingGuider(early, lambda sigma: (early if sigma > threshold else late, CFGS[0]))
    return swapped.guided(guider, "wan", sigmas, sampler=sampler)


def test_each_model_carries_its_own_loras_by_noise_level(loras):
    """Steps are those of the whole run, on either model."""
    early, late = two_models.both()
    files = saved(early, loras, (1, 2, 3))
    sigmas = two_models.sigmas_of(early)
    first = pack.merged(load(early, "1.safetensors", 0.7, strengths="1, 0.5, 1")[0], files[2], 0.3)
    second, _ = load(late, "2.safetensors", when="custom", start=4.0, end=6.0)
    ours = two_models.run(two_models.guider((first, second), "wan", 3), "wan", sigmas, "res_multistep")
    models = [
        swapped.merged_model("wan", [(files[0], strength), (files[2], 0.3)], seed=0) for strength in (0.7, 0.35, 0.7)
    ] + [swapped.merged_model("wan", [(files[1], strength)], seed=1) for strength in (0, 1, 1)]
    assert pack.relative(ours, swapped.swapped("wan", sigmas, models, sampler="res_multistep")) < 1e-5


def test_every_sampler_of_comfyui_runs_over_the_boundary():
    models, failed, compared = two_models.both(), [], []
    sigmas = two_models.sigmas_of(models[0])
    for sampler in comfy.samplers.SAMPLER_NAMES:
        try:
            expected = by_hand(models, sigmas, 0.8, sampler)
        except Exception:
            continue  # needs what is not installed, or SIGMAS of another kind
        ours = two_models.run(two_models.guider(models, "wan", 0.8, "sigma", CFGS), "wan", sigmas, sampler)
        compared.append(sampler)
        if pack.relative(ours, expected) > 1e-5:
            failed.append(sampler)
    assert failed == [] and len(compared) > 30


@pytest.mark.parametrize("unit, boundary", [("sigma", 0.875), ("steps", 2)])
def test_the_boundary_is_where_the_authors_code_has_it(unit, boundary):
    """`t >= boundary * 1000` takes the high-noise model."""
    models = two_models.both()
    sigmas = torch.tensor([1.0, 0.875, 0.874, 0.5, 0.0])
    with two_models.CountedCalls(models) as counted:
        two_models.run(two_models.guider(models, "wan", boundary, unit), "wan", sigmas)
    assert counted.counts == [2, 2]


def test_masks_first_frames_and_batches_reach_both(node_classes):
    name, generator = "wan21-i2v", torch.Generator().manual_seed(5)
    models, shape = two_models.both(name), tiny_models.tiny(name).latent
    mask = torch.ones(1, 1, *shape[1:])
    mask[:, :, 0] = 0
    latent = {"samples": torch.randn((2, *shape), generator=generator), "noise_mask": mask}
    first = {"concat_latent_image": torch.randn((1, 16, *shape[1:]), generator=generator), "concat_mask": 1 - mask}
    given = [[[tokens, values | first] for tokens, values in prompt] for prompt in two_models.prompts(name)]
    sigmas = two_models.sigmas_of(models[0])
    ours = two_models.run(two_models.guider(models, name, 2, given=given), name, sigmas, "dpmpp_2m", latent)
    reference = two_models.Swapped(models, name, two_models.threshold_of(sigmas, 2), given=given)
    assert pack.relative(ours, two_models.run(reference, name, sigmas, "dpmpp_2m", latent)) < 1e-5
    bare = two_models.run(two_models.guider(models, name, 2), name, sigmas, "dpmpp_2m", latent)
    assert pack.relative(ours, bare) > 1e-3
