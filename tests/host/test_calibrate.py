"""CalibrateGlance in the real host, on models that nobody searched settings for."""

import comfyui
import folder_paths
import pytest
import tiny
import torch
from pack import host_sample, node

import nodes
from glance_core import tiny as core_tiny

psnr = comfyui.pack_module("glance_core.verdict").latent_psnr
host, metadata = comfyui.pack_module("nodes.host"), comfyui.pack_module("glance_core.adapter_metadata")


def calibrated(model, name, cfg, forwards, **more):
    given = {"forwards": forwards, "cfg": cfg, "seconds": 4.0, "schedule": "auto", "seed": 3, "teacher_runs": 4, "batch_size": 4, **more}
    inputs = {key: [value] for key, value in given.items()}
    prompts = [[*tiny.conditioning(name, 1), *tiny.conditioning(name, 5)]]
    return (
        node("CalibrateGlance")
        .execute([model], prompts, latent_image=[tiny.empty_latent(name)], negative=[tiny.conditioning(name, 2)], **inputs)
        .args
    )


@pytest.mark.parametrize("name, cfg, forwards", [("qwen-image", 2.5, 8), ("flux", 1.0, 5), ("wan", 2.5, 8), ("sd3", 3.0, 8)])
def test_settings_are_found_and_sampled_with(name, cfg, forwards, node_classes):
    model = tiny.build(name)
    before = tiny.state(model)
    with torch.inference_mode():
        settings, plot, report = calibrated(model, name, cfg, forwards)
        assert plot.ndim == 4 and plot.shape[-1] == 3 and plot.std() > 0
        assert f"{forwards} forwards" in report and "4 runs on 2 prompts" in report and "walks tried" in report
        assert settings.solver.forwards == forwards and settings.guidance == cfg
        samples = tiny.empty_latent(name)["samples"]
        ladder = host.teacher_ladder(model, tuple(samples.shape), "auto", metadata.Trained())[1]
        teacher = host_sample(model, name, torch.tensor(ladder), cfg, seed=11)
        execute, start = node("PhaseSplitSampler").execute, tiny.empty_latent(name)
        positive, negative = tiny.conditioning(name, 1), tiny.conditioning(name, 2)
        result = execute(model, positive, negative, start, 11, cfg, "auto", "auto", 2, 2, 1.0, "", settings).args[0]["samples"]
        steps = settings.solver.steps
        uniform = torch.tensor([*(ladder[round(50 * i / steps)] for i in range(steps)), 0.0])
        even = host_sample(model, name, uniform, cfg, seed=11)
    tiny.assert_bit_exact(model, before)
    near, evenly = (float(psnr(latents, teacher)) for latents in (result, even))
    assert near > evenly - 0.5  # on a noise that it has not seen


def test_a_negative_prompt_is_asked_for(node_classes):
    model = tiny.build("flux")
    with pytest.raises(ValueError, match=r"cfg is 4 but no negative prompt is wired"):
        node("CalibrateGlance").execute(
            [model], [tiny.conditioning("flux", 1)], latent_image=[tiny.empty_latent("flux")], cfg=[4.0], forwards=[8], seconds=[1.0],
            schedule=["auto"], seed=[0],
        )  # fmt: skip


def test_a_model_with_a_pair_is_no_teacher(node_classes):
    bare = nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0]
    folder_paths.add_model_folder_path("loras", str(core_tiny.LORA_FOLDER))
    model = node("LoadGlanceLoRA").execute(bare, "glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors", 1.0, 1.0).args[0]
    text = node("GlanceTinyText").execute
    with pytest.raises(ValueError, match="carries a Glance pair, so its own steps are no teacher"):
        node("CalibrateGlance").execute(
            [model], [text("a red star").args[0]], latent_image=[{"samples": torch.zeros(1, 16, 16, 16)}], negative=[text("").args[0]],
            cfg=[4.0], forwards=[8], seconds=[1.0], schedule=["auto"], seed=[0],
        )  # fmt: skip
