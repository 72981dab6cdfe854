"""What the nodes decide and refuse: schedules, reports, errors, images to start from, masks, the reference walk."""

import adapters
import comfy.patcher_extension
import comfy.samplers
import numpy as np
import pack
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

import glance_core.schedule as core
from glance_core.adapter_metadata import Trained, written_metadata


def latent(*shape):
    return {"samples": torch.zeros(shape)}


def metadata(**values):
    return {phase: written_metadata(Trained(phase=phase, **values), phase) for phase in ("slow", "fast")}


@pytest.fixture
def flux():
    return tiny.build("flux")


@pytest.mark.parametrize("name, shape", [
    ("flux", (1, 16, 128, 128)), ("flux", (2, 16, 166, 166)), ("flux", (1, 16, 8, 8)), ("flux", (1, 16, 9, 15)),
    ("qwen-image", (1, 16, 1, 128, 128)), ("qwen-image", (1, 16, 116, 208)),
])  # fmt: skip
def test_auto_takes_the_models_ladder_at_the_latents_size(name, shape):
    sigmas = pack.scheduler(tiny.build(name), name, latent=latent(*shape))
    height, width = (-(-side // 2) for side in shape[-2:])
    expected = core.build_schedule(core.teacher_ladder(name, tokens=height * width), core.split_steps(5, 5)).sigmas
    assert sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    assert sigmas.dtype == torch.float32


@pytest.mark.parametrize("name", ["sd3", "wan", "hunyuan-video", "chroma", "lumina2", "sd1"])
def test_auto_takes_other_models_own_sigmas(name):
    model = tiny.build(name)
    own = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 50)
    assert torch.equal(pack.scheduler(model, name), own[[0, 2, 4, 6, 8, 10, 20, 30, 40, 49, 50]])


def test_an_empty_latent_is_measured_at_the_models_own_scale(flux):
    """ComfyUI rescales an empty latent that states its downscale; the ladder belongs to the rescaled size."""
    stated = latent(1, 4, 64, 64) | {"downscale_ratio_spacial": 16}
    assert torch.equal(pack.scheduler(flux, "flux", latent=stated), pack.scheduler(flux, "flux", latent=latent(1, 16, 128, 128)))


def test_the_pairs_metadata_decides_ladder_and_steps(flux, loras):
    trained = metadata(ladder="shift", shift=3.0, teacher_steps=20, steps="1,3|5,10,20")
    with_pair, report = pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=trained))
    ladder = core.teacher_ladder("shift", 20, shift=3.0)
    assert pack.scheduler(with_pair, "flux", 2, 3).tolist() == pytest.approx([ladder[i] for i in (0, 2, 4, 9, 19, 20)])
    assert pack.scheduler(with_pair, "flux", 4, 2).tolist() == pytest.approx([ladder[i] for i in (0, 1, 2, 3, 4, 19, 20)])
    assert "shift, teacher steps 1,3|5,10,20 of 20" in report
    with pytest.raises(ValueError, match="trained on the shift ladder"):
        pack.scheduler(with_pair, "flux", 2, 3, schedule="flux")


def test_a_pair_for_another_architecture_is_refused_naming_both(flux, loras):
    slow, fast = adapters.save_pair(tiny.build("wan"), loras)
    with pytest.raises(ValueError, match=r"wan.*Flux \(flux\)"):
        pack.load_pair(flux, slow, fast)


def test_a_flux_pair_is_refused_on_qwen_image_though_some_modules_fit(loras):
    from test_formats import save_pair

    slow, fast = save_pair("flux", loras)
    with pytest.raises(ValueError, match=r"flux.*QwenImage"):
        pack.load_pair(tiny.build("qwen-image"), slow, fast)


def test_a_stated_base_is_believed(flux, loras):
    with pytest.raises(ValueError, match=r"qwen-image adapter.*Flux"):
        pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=metadata(base="qwen-image")))
    _, report = pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=metadata(base="flux", guidance=1.0)))
    assert "trained at guidance 1" in report


def test_no_module_of_the_file_in_the_model_is_an_error_that_names_both(flux, loras):
    for phase in ("slow", "fast"):
        save_file({"my.layer.lora_A.weight": torch.ones(2, 3), "my.layer.lora_B.weight": torch.ones(3, 2)}, loras / f"{phase}.safetensors")
    with pytest.raises(ValueError, match=r"slow\.safetensors.*none of its 1 modules.*my\.layer.*Flux"):
        pack.load_pair(flux, "slow.safetensors", "fast.safetensors")


def test_some_unmatched_modules_are_reported_by_name(flux, loras):
    slow, fast = adapters.save_pair(flux, loras)
    for seed, file in ((1, slow), (2, fast)):
        extra = {"diffusion_model.double_blocks.99.img_attn.qkv.lora_A.weight": torch.ones(4, 128),
                 "diffusion_model.double_blocks.99.img_attn.qkv.lora_B.weight": torch.ones(384, 4)}  # fmt: skip
        save_file(adapters.state_dict(flux, seed) | extra, loras / file)
    _, report = pack.load_pair(flux, slow, fast)
    assert report.count("1 unmatched") == 2
    assert "unmatched: double_blocks.99.img_attn.qkv" in report


def test_a_pair_for_another_size_of_the_model_is_refused_with_the_sizes(flux, loras):
    slow, fast = adapters.save_pair(tiny.build("flux", hidden_size=256, num_heads=2), loras)
    with pytest.raises(ValueError, match=r"takes 128 .*\(4, 256\)"):
        pack.load_pair(flux, slow, fast)


def test_a_swapped_pair_is_refused(flux, loras):
    slow, fast = adapters.save_pair(flux, loras, metadata=metadata(base="flux"))
    with pytest.raises(ValueError, match="swap the two files"):
        pack.load_pair(flux, fast, slow)


def test_the_report_says_what_was_assumed(flux, loras):
    _, report = pack.load_pair(flux, *adapters.save_pair(flux, loras, alpha=None))
    assert "scale 1 assumed" in report
    assert "flux assumed, switching at teacher step 11" in report


@pytest.mark.parametrize("steps", ["1,3", "1|51", "3,1|5", "x|y"])
def test_wrong_teacher_steps_are_told_before_anything_runs(steps):
    for name in ("PhaseSplitSampler", "GlanceScheduler"):
        told = pack.node(name).validate_inputs(teacher_steps=steps)
        if steps == "1|51":  # right for a teacher of more steps; the model decides
            assert told is True
        else:
            assert steps in told
    with pytest.raises(ValueError, match=steps.split("|")[-1]):
        pack.scheduler(tiny.build("flux"), "flux", teacher_steps=steps)


def test_steps_that_do_not_fit_are_refused_before_the_first_forward(flux):
    with pytest.raises(ValueError, match="slow_steps = 20"):
        pack.phase_split(flux, "flux", slow=20)


@pytest.mark.parametrize("denoise", [0.95, 0.8, 0.3])
def test_image_to_image_equals_the_host_started_at_that_sigma(flux, loras, denoise):
    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras))
    picture = {"samples": torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(5))}
    sigmas = pack.scheduler(with_pair, "flux", denoise=denoise)
    assert float(sigmas[0]) == pytest.approx(core.teacher_ladder("flux", tokens=16)[{0.95: 2, 0.8: 10, 0.3: 35}[denoise]], abs=1e-6)
    ours = pack.phase_split(with_pair, "flux", denoise=denoise, latent=picture)
    assert torch.equal(ours, pack.host_sample(with_pair, "flux", sigmas, latent=picture))
    assert torch.equal(ours, pack.host_sample(with_pair, "flux", torch.tensor(sigmas.tolist()), latent=picture))


def test_a_mask_keeps_what_it_covers_and_a_batch_keeps_its_pictures_apart(flux, loras):
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


def test_area_conditioning_goes_through(flux, loras):
    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras))
    (cross, extra), = tiny.conditioning("flux", 1)  # fmt: skip
    (other, _), = tiny.conditioning("flux", 7)  # fmt: skip
    areas = [[cross, extra], [other, extra | {"area": (4, 8, 0, 0), "strength": 1.0}]]
    execute = pack.node("PhaseSplitSampler").execute
    arguments = (tiny.empty_latent("flux"), 3, 1.0, "euler", "auto", 5, 5, 1.0)
    split = execute(with_pair, areas, tiny.conditioning("flux", 2), *arguments).args[0]["samples"]
    whole = execute(with_pair, [[cross, extra]], tiny.conditioning("flux", 2), *arguments).args[0]["samples"]
    assert torch.isfinite(split).all()
    assert not torch.allclose(split, whole, atol=1e-2)


class Record:
    """What the model was told and answered, evaluation by evaluation."""

    def __init__(self):
        self.seen = []

    def __call__(self, executor, x, timestep, *args, **kwargs):
        denoised = executor(x, timestep, *args, **kwargs)
        self.seen.append((x.clone(), float(timestep[0]), denoised.clone()))
        return denoised


@pytest.mark.parametrize("name", ["qwen-image", "flux"])
def test_the_reference_sampler_tells_one_ladder_and_walks_diffusers_others(name, loras):
    model = tiny.build(name)
    with_pair, _ = pack.load_pair(model, *adapters.save_pair(model, loras))
    record, watched = Record(), with_pair.clone()
    watched.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, record)
    sampler = pack.node("GlanceReferenceSampler").execute().args[0]
    sigmas = pack.scheduler(with_pair, name)
    final = pack.host_sample(watched, name, sigmas, sampler=sampler)
    assert [told for _, told, _ in record.seen] == pytest.approx(sigmas.tolist()[:-1])

    config = {"qwen-image": {"shift_terminal": 0.02}, "flux": {}}[name]
    slope = {"qwen-image": (0.9 - 0.5) / (8192 - 256), "flux": (1.15 - 0.5) / (4096 - 256)}[name]
    moves = []
    for steps in (50, 5):
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **config)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=0.5 + slope * (16 - 256))
        moves += scheduler.sigmas.diff().tolist()[:5]
    states = [x for x, _, _ in record.seen]
    for (x, told, denoised), move, after in zip(record.seen, moves, states[1:], strict=False):
        assert torch.allclose(x + move * (x - denoised) / told, after, atol=1e-4)
    assert pack.relative(final, pack.host_sample(with_pair, name, sigmas)) > 1e-3


def test_the_reference_sampler_refuses_what_it_is_not_for():
    sampler = pack.node("GlanceReferenceSampler").execute().args[0]
    for name, why in (("sd1", "not for the model ladder"), ("wan", "not for the model ladder")):
        model = tiny.build(name)
        with pytest.raises(ValueError, match=why):
            pack.host_sample(model, name, pack.scheduler(model, name), sampler=sampler)
    flux = tiny.build("flux")
    with pytest.raises(ValueError, match="sigmas of the flux ladder"):
        pack.host_sample(flux, "flux", torch.linspace(1, 0, 6), sampler=sampler)
    with pytest.raises(ValueError, match="both phases"):
        pack.host_sample(flux, "flux", pack.scheduler(flux, "flux", denoise=0.3), sampler=sampler)


def test_every_node_says_what_its_inputs_are(node_classes):
    for name in ("LoadGlanceLoRA", "GlanceScheduler", "PhaseSplitSampler", "GlanceReferenceSampler"):
        schema = node_classes[name].GET_SCHEMA()
        assert schema.description
        assert all(given.tooltip for given in schema.inputs), name


def test_a_flow_ladder_on_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match="flux ladder is for flow models"):
        pack.scheduler(tiny.build("sd1"), "sd1", schedule="flux")


def test_the_reference_walk_follows_an_explicit_boundary(flux, loras):
    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras))
    record, watched = Record(), with_pair.clone()
    watched.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, record)
    sampler = pack.node("GlanceReferenceSampler").execute().args[0]
    pack.host_sample(watched, "flux", pack.scheduler(with_pair, "flux", teacher_steps="1,3,5,7,9,11,21|31,41,50"), sampler=sampler)
    (x, told, denoised), after = record.seen[7], record.seen[8][0]
    fast = core.teacher_ladder("flux", 3, tokens=16)
    assert torch.allclose(x + (fast[1] - fast[0]) * (x - denoised) / told, after, atol=1e-4)


def test_one_file_may_say_what_the_other_leaves_out(flux, loras):
    said = {
        "slow": written_metadata(Trained(ladder="flux"), "slow"),
        "fast": written_metadata(Trained(teacher_steps=50, steps="1,5|12,50"), "fast"),
    }
    with_pair, report = pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=said))
    assert "schedule: flux, teacher steps 1,5|12,50 of 50" in report
    ladder = core.teacher_ladder("flux", tokens=16)
    assert pack.scheduler(with_pair, "flux", 2, 2).tolist() == pytest.approx([ladder[i] for i in (0, 4, 11, 49, 50)])


def test_a_guider_that_samples_a_second_model_on_the_same_weights_is_refused(flux, loras):
    from comfy_extras.nodes_custom_sampler import DualModelGuider

    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras))
    positive, negative = tiny.conditioning("flux", 1), tiny.conditioning("flux", 2)
    guider = DualModelGuider.execute(model=with_pair, positive=positive, negative=negative, cfg=2.0, model_negative=flux).args[0]
    latent = tiny.empty_latent("flux")["samples"]
    with pytest.raises(ValueError, match="second model"):
        guider.sample(
            torch.ones_like(latent), latent, comfy.samplers.sampler_object("euler"), pack.scheduler(flux, "flux"), seed=1, disable_pbar=True
        )
