"""What the nodes decide and reject: schedules, reports, errors, images to start from, masks."""

import re

import adapters
import comfy.samplers
import comfyui
import diffusers_pipelines
import pack
import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from glance_core.lora.metadata import PairMetadata, written_metadata
from glance_core.schedule.phase_schedule import build_schedule
from glance_core.schedule.sigmas import teacher_sigmas
from glance_core.schedule.split import split_steps


def latent(*shape):
    return {"samples": torch.zeros(shape)}


def metadata(**values):
    return {phase: written_metadata(PairMetadata(phase=phase, **values), phase) for phase in ("slow", "fast")}


@pytest.fixture
def flux():
    return tiny_models.build("flux")


@pytest.mark.parametrize("name, shape", [
    ("flux", (1, 16, 128, 128)), ("flux", (2, 16, 166, 166)), ("flux", (1, 16, 8, 8)), ("flux", (1, 16, 9, 15)),
    ("qwen-image", (1, 16, 1, 128, 128)), ("qwen-image", (1, 16, 116, 208)),
])  # fmt: skip
def test_auto_takes_the_models_sigmas_at_the_size_of_the_latent(name, shape):
    sigmas = pack.scheduler(tiny_models.build(name), name, latent=latent(*shape))
    height, width = (-(-side // 2) for side in shape[-2:])
    expected = build_schedule(teacher_sigmas(name, tokens=height * width), split_steps(5, 5)).sigmas
    assert sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    assert sigmas.dtype == torch.float32


@pytest.mark.parametrize("name", ["sd3", "wan", "hunyuan-video", "chroma", "lumina2", "sd1"])
def test_auto_takes_comfyuis_sigmas_for_other_models(name):
    model = tiny_models.build(name)
    own = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 50)
    assert torch.equal(pack.scheduler(model, name), own[[0, 2, 4, 6, 8, 10, 20, 30, 40, 49, 50]])


def test_an_empty_latent_counts_at_the_models_own_scale(flux):
    """ComfyUI rescales an empty latent that states its downscale. The sigmas are for the rescaled size."""
    stated = latent(1, 4, 64, 64) | {"downscale_ratio_spacial": 16}
    rescaled = pack.scheduler(flux, "flux", latent=latent(1, 16, 128, 128))
    assert torch.equal(pack.scheduler(flux, "flux", latent=stated), rescaled)


def test_the_pairs_metadata_decides_sigmas_and_steps(flux, loras):
    stated = metadata(sigma_rule="shift", shift=3.0, teacher_steps=20, steps="1,3|5,10,20")
    with_pair, report = pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=stated))
    teacher = teacher_sigmas("shift", 20, shift=3.0)
    for counts, steps in (((2, 3), (0, 2, 4, 9, 19, 20)), ((4, 2), (0, 1, 2, 3, 4, 19, 20))):
        assert pack.scheduler(with_pair, "flux", *counts).tolist() == pytest.approx([teacher[i] for i in steps])
    assert "shift, teacher steps 1,3|5,10,20 of 20" in report
    with pytest.raises(ValueError, match="schedule is flux, but the pair was trained on shift"):
        pack.scheduler(with_pair, "flux", 2, 3, schedule="flux")


def test_a_pair_for_another_base_model_is_rejected_and_both_are_named(flux, loras):
    slow, fast = adapters.save_pair(tiny_models.build("wan"), loras)
    with pytest.raises(ValueError, match=r"wan.*Flux \(flux\)"):
        pack.load_pair(flux, slow, fast)


def test_a_flux_pair_is_rejected_on_qwen_image_although_some_modules_fit(loras):
    slow, fast = diffusers_pipelines.save_flux_pair(loras)
    with pytest.raises(ValueError, match=r"flux.*QwenImage"):
        pack.load_pair(tiny_models.build("qwen-image"), slow, fast)


def test_the_base_that_a_file_states_decides(flux, loras):
    with pytest.raises(ValueError, match=r"qwen-image adapter.*Flux"):
        pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=metadata(base="qwen-image")))
    _, report = pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=metadata(base="flux", guidance=1.0)))
    assert "trained for guidance 1" in report


def test_a_file_without_any_module_of_the_model_is_rejected_and_both_are_named(flux, loras):
    tensors = {"my.layer.lora_A.weight": torch.ones(2, 3), "my.layer.lora_B.weight": torch.ones(3, 2)}
    for phase in ("slow", "fast"):
        save_file(tensors, loras / f"{phase}.safetensors")
    with pytest.raises(ValueError, match=r"slow\.safetensors.*none of its 1 modules.*my\.layer.*Flux"):
        pack.load_pair(flux, "slow.safetensors", "fast.safetensors")


def test_unmatched_modules_are_reported_by_name(flux, loras):
    slow, fast = adapters.save_pair(flux, loras)
    extra = {
        "diffusion_model.double_blocks.99.img_attn.qkv.lora_A.weight": torch.ones(4, 128),
        "diffusion_model.double_blocks.99.img_attn.qkv.lora_B.weight": torch.ones(384, 4),
    }
    for seed, file in ((1, slow), (2, fast)):
        save_file(adapters.state_dict(flux, seed) | extra, loras / file)
    _, report = pack.load_pair(flux, slow, fast)
    assert report.count("1 unmatched") == 2
    assert "unmatched: double_blocks.99.img_attn.qkv" in report


def test_a_pair_for_another_model_size_is_rejected_and_the_sizes_are_named(flux, loras):
    slow, fast = adapters.save_pair(tiny_models.build("flux", hidden_size=256, num_heads=2), loras)
    with pytest.raises(ValueError, match=r"takes 128 .*\(4, 256\)"):
        pack.load_pair(flux, slow, fast)


def test_a_swapped_pair_is_rejected(flux, loras):
    slow, fast = adapters.save_pair(flux, loras, metadata=metadata(base="flux"))
    with pytest.raises(ValueError, match="swap the two files"):
        pack.load_pair(flux, fast, slow)


def test_the_report_names_what_was_assumed(flux, loras):
    _, report = pack.load_pair(flux, *adapters.save_pair(flux, loras, alpha=None))
    assert "scale 1 assumed" in report
    assert "flux assumed, switching at teacher step 11" in report


@pytest.mark.parametrize("steps, message", [
    ("1,3", "teacher steps '1,3' need exactly one '|'"),
    ("1|51", "teacher step 51 is not in 1..50 (1|51)"),
    ("3,1|5", "teacher steps must rise, but 1 follows 3 (3,1|5)"),
    ("x|y", "'x' is not a step number"),
])  # fmt: skip
def test_wrong_teacher_steps_are_rejected_before_anything_runs(steps, message):
    for name in ("PhaseSplitSampler", "GlanceScheduler"):
        answer = pack.node(name).validate_inputs(teacher_steps=steps)
        if steps == "1|51":  # right for a teacher of more steps, so only the model can tell
            assert answer is True
        else:
            assert message in answer
    with pytest.raises(ValueError, match=re.escape(message)):
        pack.scheduler(tiny_models.build("flux"), "flux", teacher_steps=steps)


def test_steps_that_do_not_fit_are_rejected_before_the_first_model_call(flux):
    with pytest.raises(ValueError, match="slow_steps is 20"):
        pack.phase_split(flux, "flux", slow=20)


@pytest.mark.parametrize("denoise", [0.95, 0.8, 0.3])
def test_image_to_image_equals_comfyuis_sampler_started_at_that_sigma(flux, loras, denoise):
    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras))
    picture = {"samples": torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(5))}
    sigmas = pack.scheduler(with_pair, "flux", denoise=denoise)
    first = {0.95: 2, 0.8: 10, 0.3: 35}[denoise]
    assert float(sigmas[0]) == pytest.approx(teacher_sigmas("flux", tokens=16)[first], abs=1e-6)
    ours = pack.phase_split(with_pair, "flux", denoise=denoise, latent=picture)
    assert torch.equal(ours, pack.host_sample(with_pair, "flux", sigmas, latent=picture))
    assert torch.equal(ours, pack.host_sample(with_pair, "flux", torch.tensor(sigmas.tolist()), latent=picture))


def test_masks_and_batches_work_with_a_pair(flux, loras):
    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras))
    picture = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(5))
    mask = torch.zeros((1, 1, 64, 64))
    mask[..., 32:] = 1
    result = pack.phase_split(with_pair, "flux", latent={"samples": picture, "noise_mask": mask})
    assert torch.allclose(result[..., :4], picture[..., :4], atol=1e-4)
    assert not torch.allclose(result[..., 4:], picture[..., 4:], atol=1e-1)
    batch = pack.phase_split(with_pair, "flux", latent={"samples": torch.zeros(2, 16, 8, 8), "batch_index": [0, 1]})
    alone = pack.phase_split(with_pair, "flux", latent={"samples": torch.zeros(1, 16, 8, 8), "batch_index": [1]})
    assert pack.relative(batch[1:], alone) < 1e-5
    assert not torch.allclose(batch[0], batch[1], atol=1e-1)


def test_area_conditioning_reaches_the_model(flux, loras):
    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras))
    [(cross, extra)], [(other, _)] = (tiny_models.conditioning("flux", seed) for seed in (1, 7))
    areas = [[cross, extra], [other, extra | {"area": (4, 8, 0, 0), "strength": 1.0}]]
    split, whole = (pack.phase_split(with_pair, "flux", positive=positive) for positive in (areas, [[cross, extra]]))
    assert torch.isfinite(split).all()
    assert not torch.allclose(split, whole, atol=1e-2)


def test_every_node_has_a_description_and_tooltips(node_classes):
    for name in ("LoadGlanceLoRA", "GlanceScheduler", "PhaseSplitSampler", "GlanceReferenceSampler"):
        schema = node_classes[name].GET_SCHEMA()
        assert schema.description
        assert all(given.tooltip for given in schema.inputs), name


def test_flow_sigmas_are_rejected_on_other_kinds_of_models():
    with pytest.raises(ValueError, match="flux sigmas are for flow models"):
        pack.scheduler(tiny_models.build("sd1"), "sd1", schedule="flux")


def test_one_file_may_state_what_the_other_leaves_out(flux, loras):
    stated = {
        "slow": written_metadata(PairMetadata(sigma_rule="flux"), "slow"),
        "fast": written_metadata(PairMetadata(teacher_steps=50, steps="1,5|12,50"), "fast"),
    }
    with_pair, report = pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=stated))
    assert "schedule: flux, teacher steps 1,5|12,50 of 50" in report
    teacher = teacher_sigmas("flux", tokens=16)
    assert pack.scheduler(with_pair, "flux", 2, 2).tolist() == pytest.approx([teacher[i] for i in (0, 4, 11, 49, 50)])


def test_a_guider_that_samples_a_second_model_on_the_same_weights_is_rejected(flux, loras):
    from comfy_extras.nodes_custom_sampler import DualModelGuider

    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras))
    positive, negative = tiny_models.conditioning("flux", 1), tiny_models.conditioning("flux", 2)
    guider = DualModelGuider.execute(
        model=with_pair, positive=positive, negative=negative, cfg=2.0, model_negative=flux
    ).args[0]
    latent = tiny_models.empty_latent("flux")["samples"]
    sampler, sigmas = comfy.samplers.sampler_object("euler"), pack.scheduler(flux, "flux")
    with pytest.raises(ValueError, match="second model"):
        guider.sample(torch.ones_like(latent), latent, sampler, sigmas, seed=1, disable_pbar=True)


def test_a_model_keeps_the_pairs_that_an_earlier_version_called_otherwise(loras):
    model = tiny_models.build("z-image")
    assert comfyui.pack_module("nodes.host.base_model").base_of(model).name == "z-image"
    pack.load_pair(model, *adapters.save_pair(model, loras, metadata=metadata(base="lumina2")))
    other = tiny_models.build("lumina2")
    files = adapters.save_pair(other, loras, metadata=metadata(base="z-image"))
    with pytest.raises(ValueError, match=r"z-image adapter but the model is a Lumina2 \(lumina2\)"):
        pack.load_pair(other, *files)


@pytest.mark.parametrize("name, size", [
    ("flux", "64x64"), ("wan", "64x64"), ("ltxv", "128x128"), ("ace-step", None), ("ace-step15", None),
    ("hunyuan3d21", None), ("triposplat", None),
])  # fmt: skip
def test_only_pictures_and_videos_have_a_size_in_pixels(name, size):
    model = tiny_models.build(name)
    base_model = comfyui.pack_module("nodes.host.base_model")
    assert base_model.picture_size(model, base_model.latent_shape(model, tiny_models.empty_latent(name))) == size
