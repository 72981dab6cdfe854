"""CalibrateGlance inside ComfyUI, on models that nobody searched settings for."""

import comfyui
import folder_paths
import pytest
import tiny_flux
import tiny_models
import torch
from pack import host_sample, node, phase_split

from glance_core import tiny

psnr = comfyui.pack_module("glance_core.evaluation.metrics").latent_psnr
REJECTED = {"cfg": [4.0], "model_calls": [8], "seconds": [1.0], "schedule": ["auto"], "seed": [0]}


def calibrated(model, name, cfg, model_calls):
    """(settings, plot, report)"""
    inputs = {
        "model_calls": model_calls,
        "cfg": cfg,
        "seconds": 4.0,
        "schedule": "auto",
        "seed": 3,
        "teacher_runs": 4,
        "batch_size": 4,
        "positive": [*tiny_models.conditioning(name, 1), *tiny_models.conditioning(name, 5)],
        "negative": tiny_models.conditioning(name, 2),
        "latent_image": tiny_models.empty_latent(name),
    }
    return node("CalibrateGlance").execute(model=[model], **{key: [value] for key, value in inputs.items()}).args


def teacher_sigmas(model, name):
    sigmas, metadata = (
        comfyui.pack_module(module) for module in ("nodes.host.model_sigmas", "glance_core.lora.metadata")
    )
    shape = tuple(tiny_models.empty_latent(name)["samples"].shape)
    return sigmas.model_sigmas(model, shape, "auto", metadata.PairMetadata()).values


@pytest.mark.parametrize(
    "name, cfg, model_calls", [("qwen-image", 2.5, 8), ("flux", 1.0, 5), ("wan", 2.5, 8), ("sd3", 3.0, 8)]
)
def test_settings_are_found_and_sampled_with(name, cfg, model_calls, node_classes):
    model = tiny_models.build(name)
    before = tiny_models.state(model)
    settings, plot, report = calibrated(model, name, cfg, model_calls)
    assert plot.ndim == 4 and plot.shape[-1] == 3 and plot.std() > 0
    assert f"{model_calls} model calls" in report and "4 runs on 2 prompts" in report and "plans tried" in report
    assert settings.solver.nfe == model_calls and settings.guidance == cfg
    sigmas = teacher_sigmas(model, name)
    teacher = host_sample(model, name, torch.tensor(sigmas), cfg, seed=11)
    by_settings = phase_split(model, name, 2, 2, cfg, "auto", settings=settings, seed=11)
    steps = settings.solver.steps
    even_sigmas = torch.tensor([*(sigmas[round(50 * i / steps)] for i in range(steps)), 0.0])
    even = host_sample(model, name, even_sigmas, cfg, seed=11)
    tiny_models.assert_bit_exact(model, before)
    # On a noise that the calibration has not seen.
    assert float(psnr(by_settings, teacher)) > float(psnr(even, teacher)) - 0.5


def test_guidance_without_a_negative_prompt_is_rejected(node_classes):
    inputs = {
        "model": [tiny_models.build("flux")],
        "positive": [tiny_models.conditioning("flux", 1)],
        "latent_image": [tiny_models.empty_latent("flux")],
    }
    with pytest.raises(ValueError, match=r"cfg is 4 but no negative prompt is wired"):
        node("CalibrateGlance").execute(**inputs, **REJECTED)


def test_a_model_with_a_pair_is_rejected(node_classes):
    base = tiny_flux.load()
    folder_paths.add_model_folder_path("loras", str(tiny.LORA_FOLDER))
    inputs = {
        "model": [tiny_flux.with_pair(base)],
        "positive": [tiny_flux.text("a red star")],
        "negative": [tiny_flux.text("")],
        "latent_image": [tiny_flux.empty_latent()],
    }
    with pytest.raises(ValueError, match="carries a Glance pair, but its own steps are needed"):
        node("CalibrateGlance").execute(**inputs, **REJECTED)
