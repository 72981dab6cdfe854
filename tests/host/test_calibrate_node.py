"""CalibrateGlance inside ComfyUI, on models that nobody searched settings for."""

from contextlib import ExitStack
from unittest import mock

import comfyui
import folder_paths
import pytest
import tiny_flux
import tiny_models
import torch
import train_node
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


def keeps_values(model):
    """The model with a patch that answers every call as the one before it, as if its steps were skipped."""
    patched, kept = model.clone(), []

    def wrapper(apply, given):
        kept.append(apply(given["input"], given["timestep"], **given["c"]))
        return kept[max(0, len(kept) - 2)]

    patched.set_model_unet_function_wrapper(wrapper)
    return patched


def not_finite(model):
    model.model.diffusion_model.img_in.weight.fill_(float("nan"))
    return model


@pytest.mark.parametrize("spoilt, sentence", [
    (keeps_values, r"changed by \d+ % after a call at another noise level, so it keeps values between calls"),
    (not_finite, r"answer at noise level 1 is not finite"),
])  # fmt: skip
def test_a_model_that_cannot_be_a_teacher_is_refused_before_the_full_runs(spoilt, sentence, loras, output):
    """In the plot and in training too."""
    model = spoilt(tiny_models.build("flux"))
    runs = [comfyui.pack_module(f"glance_core.{module}") for module in ("calibration.calibrate", "training.distill")]
    common = {"positive": [tiny_models.conditioning("flux", 1)], "seed": [0], "schedule": ["auto"], "cfg": [1.0]}
    common |= {"model": [model], "latent_image": [tiny_models.empty_latent("flux")]}
    with ExitStack() as stack:
        for module in runs:
            stack.enter_context(mock.patch.object(module, "rollout", side_effect=AssertionError("the teacher ran")))
        for run in (
            lambda: node("CalibrateGlance").execute(**common, model_calls=[8], seconds=[1.0]),
            lambda: node("GlancePhasePlot").execute(**common, steps=[4]),
            lambda: train_node.train(model, "flux"),
        ):
            with pytest.raises(ValueError, match=sentence):
                run()


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
