"""A run of two models equals two of ComfyUI's samplers in a row, and whole weights swapped in mid-run."""

import adapters
import comfy.model_sampling
import comfy.samplers
import comfyui
import pack
import pytest
import test_control_inputs
import tiny_models
import torch
import two_models

HISTORY = ["res_multistep", "uni_pc", "dpmpp_2m", "res_multistep_cfg_pp", "dpmpp_3m_sde", "er_sde", "sa_solver", "deis"]
OTHERS = ["euler_ancestral", "lcm", "euler_cfg_pp", "heun", "dpm_2", "dpmpp_2s_ancestral", "ddim"]
CFGS = (3.0, 1.0)


@pytest.fixture(scope="module", params=["wan", "sd1"])
def given(request, node_classes):
    """(name, both models)"""
    with torch.inference_mode():
        return request.param, two_models.both(request.param)


def advanced(models, name, boundary, cfgs):
    """Two KSamplerAdvanced in a row, as the templates of such bases have them."""
    sample = comfyui.all_nodes()["KSamplerAdvanced"]().sample
    positive, negative = two_models.prompts(name)
    common = {"steps": two_models.STEPS, "sampler_name": "euler", "scheduler": "simple", "noise_seed": 3}
    common |= {"positive": positive, "negative": negative}
    first = {"start_at_step": 0, "end_at_step": boundary, "return_with_leftover_noise": "enable"}
    rest = {"start_at_step": boundary, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
    latent = tiny_models.empty_latent(name)
    (high,) = sample(models[0], "enable", cfg=cfgs[0], latent_image=latent, **first, **common)
    (low,) = sample(models[1], "disable", cfg=cfgs[1], latent_image=high, **rest, **common)
    return low["samples"]


@pytest.mark.parametrize("cfgs", [(1.0, 1.0), (3.0, 3.0), (3.0, 1.0), (1.0, 3.0)])
def test_euler_equals_two_advanced_samplers_in_a_row(cfgs, given):
    name, models = given
    sigmas, alone = two_models.sigmas_of(models[0]), None
    for boundary in (1, 3, 5):
        guider = two_models.guider(models, name, boundary, cfgs=cfgs)
        with two_models.CountedCalls(models) as counted:
            ours = two_models.run(guider, name, sigmas)
        rows = [1 if cfg == 1 else 2 for cfg in cfgs]
        assert counted.counts == [boundary * rows[0], (two_models.STEPS - boundary) * rows[1]]
        assert pack.relative(ours, advanced(models, name, boundary, cfgs)) < 1e-6, boundary
        assert alone is None or pack.relative(ours, alone) > 1e-2, "the boundary has no effect"
        alone = ours


def distances(models, name, sampler, sigmas, boundary=3):
    """(from ours to the truth, from two samplers in a row to the truth)"""
    ours = two_models.run(two_models.guider(models, name, boundary, cfgs=CFGS), name, sigmas, sampler)
    reference = two_models.Swapped(models, name, two_models.threshold_of(sigmas, boundary), CFGS)
    theirs = two_models.run(reference, name, sigmas, sampler)
    assert all(reference.calls)
    in_a_row = two_models.chained(models, name, sigmas, boundary, CFGS, sampler)
    return pack.relative(ours, theirs), pack.relative(in_a_row, theirs)


@pytest.mark.parametrize("sampler", HISTORY)
def test_sampler_with_history_equals_weights_swapped_in_mid_run_and_no_two_in_a_row(sampler, given):
    name, models = given
    ours, in_a_row = distances(models, name, sampler, two_models.sigmas_of(models[0]))
    assert ours < 1e-5 and in_a_row > 1e-3


@pytest.mark.parametrize("sampler", OTHERS)
def test_other_samplers_equal_weights_swapped_in_mid_run(sampler, given):
    name, models = given
    assert distances(models, name, sampler, two_models.sigmas_of(models[0]))[0] < 1e-5


def test_sampler_that_goes_back_over_the_boundary_gets_the_early_model_again(given, monkeypatch):
    """Each level is sampled twice, and the second time from more noise, as samplers with restarts do."""
    name, models = given

    def back_and_forth(model, x, sigmas, extra_args=None, callback=None, disable=None):
        ones = x.new_ones(len(x))
        for level in (sigmas[1], sigmas[4], sigmas[2], sigmas[5]):
            x = x + 0.2 * (model(x, level * ones, **extra_args) - x)
        return x

    sampler, sigmas = comfy.samplers.KSAMPLER(back_and_forth), two_models.sigmas_of(models[0])
    value = round(1.001 * float(sigmas[3]), 4)
    with two_models.Loads(monkeypatch, models) as loads:
        ours = two_models.run(two_models.guider(models, name, value, "sigma", CFGS), name, sigmas, sampler)
    reference = two_models.Swapped(models, name, value, CFGS)
    assert pack.relative(ours, two_models.run(reference, name, sigmas, sampler)) < 1e-5
    assert reference.calls == [2, 2] and loads.order == [0, 1, 0, 1]


def masked(name):
    """A latent to inpaint, of two items."""
    shape = tiny_models.tiny(name).latent
    mask = torch.ones(1, 1, *shape[-2:])
    mask[..., : shape[-1] // 2] = 0
    return {"samples": test_control_inputs.random(2, *shape), "noise_mask": mask}


def test_masks_batches_and_image_to_image_equal_swapped_weights(given):
    name, models = given
    sigmas = two_models.sigmas_of(models[0])[1:]
    for sampler in ("euler", "res_multistep", "uni_pc", "ddim"):
        ours = two_models.run(two_models.guider(models, name, 2, cfgs=CFGS), name, sigmas, sampler, masked(name))
        reference = two_models.Swapped(models, name, two_models.threshold_of(sigmas, 2), CFGS)
        theirs = two_models.run(reference, name, sigmas, sampler, masked(name))
        assert pack.relative(ours, theirs) < 1e-5, sampler
        assert all(reference.calls) and len(ours) == 2


@pytest.mark.parametrize("kind", ["control net", "first frames, Wan", "reference, FLUX Kontext"])
def test_conditioning_reaches_both_models(kind, node_classes):
    name, wire = test_control_inputs.INPUTS[kind]
    models, prompts = two_models.both(name), wire(name)
    sigmas = two_models.sigmas_of(models[0])

    def ours(given):
        return two_models.run(two_models.guider(models, name, 3, cfgs=CFGS, given=given), name, sigmas, "res_multistep")

    reference = two_models.Swapped(models, name, two_models.threshold_of(sigmas, 3), CFGS, prompts)
    found = ours(prompts)
    assert pack.relative(found, two_models.run(reference, name, sigmas, "res_multistep")) < 1e-5
    assert pack.relative(found, ours(None)) > 1e-3, "it has no effect, so the test could not fail"


@pytest.mark.parametrize("boundary", [(3, "steps"), ("above step 3", "sigma")])
def test_cut_sigmas_use_one_model_and_load_only_that_one(boundary, given, monkeypatch):
    name, models = given
    sigmas = two_models.sigmas_of(models[0])
    value = boundary[0] if boundary[1] == "steps" else round(1.001 * float(sigmas[3]), 4)
    high = two_models.run(two_models.guider(models, name, value, boundary[1]), name, sigmas[:4])
    rest = two_models.guider(models, name, 0 if boundary[1] == "steps" else value, boundary[1])
    with two_models.CountedCalls(models) as counted, two_models.Loads(monkeypatch, models) as loads:
        low = two_models.run(rest, name, sigmas[3:], start=high)
    assert counted.counts == [0, 3] and loads.order == [1]
    whole = two_models.run(two_models.guider(models, name, value, boundary[1]), name, sigmas)
    assert pack.relative(low, whole) < 1e-6
    with two_models.CountedCalls(models) as counted, two_models.Loads(monkeypatch, models) as loads:
        two_models.run(two_models.guider(models, name, value, boundary[1]), name, sigmas[:4])
    assert counted.counts == [3, 0] and loads.order == [0]


def phase_split(models, name, **options):
    return pack.phase_split(models[0], name, 3, 3, 3.0, late_model=models[1], late_cfg=1.0, **options)


@pytest.mark.parametrize("denoise", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
def test_phase_split_sampler_equals_swapped_weights(sampler, denoise, given):
    name, models = given
    sigmas = pack.scheduler(models[0], name, 3, 3, denoise=denoise)
    latent = {"samples": test_control_inputs.random(1, *tiny_models.tiny(name).latent)}
    ours = phase_split(models, name, sampler=sampler, denoise=denoise, latent=latent)
    boundary = len(sigmas) - 1 - 3 if denoise > 0.5 else 0
    reference = two_models.Swapped(models, name, two_models.threshold_of(sigmas, boundary), CFGS)
    assert pack.relative(ours, two_models.run(reference, name, sigmas, sampler, latent)) < 1e-5


@pytest.mark.parametrize("sampler", ["euler", "res_multistep"])
def test_slow_answers_on_the_early_model_and_fast_on_the_late_one(sampler, loras, caplog):
    models = two_models.both()
    files = adapters.save_pair(models[0], loras)
    pairs = [pack.load_pair(each, *files)[0] for each in models]
    changed = two_models.both()
    for seed, each in zip((1, 2), changed, strict=True):
        tensors = adapters.state_dict(each, seed)
        for key in [key for key in tensors if key.endswith("lora_A.weight")]:
            target = key.removesuffix(".lora_A.weight")
            update = tensors[f"{target}.lora_B.weight"] @ tensors[key]
            each.model.get_submodule(target).weight += tensors[f"{target}.alpha"] / len(tensors[key]) * update
    before = [tiny_models.state(each) for each in models]
    ours = phase_split(pairs, "wan", sampler=sampler)
    messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert not any("one phase" in each or "only" in each for each in messages)
    assert pack.relative(ours, phase_split(changed, "wan", sampler=sampler)) < 1e-5
    assert pack.relative(ours, phase_split(models, "wan", sampler=sampler)) > 1e-2
    for each, state in zip(models, before, strict=True):
        tiny_models.assert_bit_exact(each, state)
    for late_only in (False, True):
        caplog.clear()
        phase_split((models[0], pairs[1]) if late_only else (pairs[0], models[1]), "wan")
        carrier = "late_model" if late_only else "model"
        assert any(f"only {carrier} carries a pair" in record.message for record in caplog.records)


def test_other_cfg_in_the_second_part_needs_no_second_model(given):
    name, (model, _) = given
    sigmas = pack.scheduler(model, name, 3, 3)
    with two_models.CountedCalls([model]) as counted:
        ours = pack.phase_split(model, name, 3, 3, 3.0, late_cfg=1.0)
    assert counted.counts == [3 * 2 + 3]
    assert pack.relative(ours, two_models.chained((model, model), name, sigmas, 3, CFGS)) < 1e-6


def test_callback_sees_every_step_once(given):
    name, models = given
    sigmas, seen = two_models.sigmas_of(models[0]), []
    noise = test_control_inputs.random(1, *tiny_models.tiny(name).latent)
    two_models.guider(models, name, 3).sample(
        noise,
        torch.zeros_like(noise),
        comfy.samplers.sampler_object("res_multistep"),
        sigmas,
        callback=lambda step, x0, x, total: seen.append((step, total)),
        disable_pbar=True,
        seed=3,
    )
    assert seen == [(step, len(sigmas) - 1) for step in range(len(sigmas) - 1)]


class OtherTimes(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    def timestep(self, sigma):
        return sigma * 500


def shifted(model, shift):
    return comfyui.all_nodes()["ModelSamplingSD3"]().patch(model, shift)[0]


def test_models_that_cannot_share_a_run_are_rejected(node_classes):
    models = two_models.both()
    other = models[1].clone()
    other.add_object_patch("model_sampling", OtherTimes(models[1].model.model_config))
    with pytest.raises(ValueError, match="mean different times by the same noise level; give both the same"):
        two_models.guider((models[0], other), "wan", 3)
    two_models.guider((models[0], shifted(models[1], 3.0)), "wan", 3)
    with pytest.raises(ValueError, match="model is WAN21 and late_model is Flux; wire two models of one kind"):
        two_models.guider((models[0], tiny_models.build("flux")), "wan", 3)
    discrete = comfyui.all_nodes()["ModelSamplingDiscrete"]().patch
    unet = two_models.both("sd1")
    with pytest.raises(ValueError, match="predict different things"):
        two_models.guider((unet[0], discrete(unet[1], "v_prediction", False)[0]), "sd1", 3)


def test_boundaries_that_cannot_be_used_are_rejected(node_classes):
    models = two_models.both()
    sigmas = two_models.sigmas_of(models[0])
    with pytest.raises(ValueError, match=r"0\.875 steps does not exist; write a whole number, or choose the unit"):
        two_models.guider(models, "wan", 0.875)
    with pytest.raises(ValueError, match="boundary is after step 7, and the run has 6; choose at most 6"):
        two_models.run(two_models.guider(models, "wan", 7), "wan", sigmas)
    rising = torch.cat([sigmas[:3], sigmas[1:]])
    with pytest.raises(ValueError, match=r"the sigmas rise from .* choose the unit sigma"):
        two_models.run(two_models.guider(models, "wan", 3), "wan", rising)


def test_samplers_for_one_model_are_rejected(node_classes):
    models = two_models.both()
    sigmas = two_models.sigmas_of(models[0])
    ar_video = comfy.samplers.ksampler("ar_video")
    with pytest.raises(ValueError, match="ar_video keeps one model's memory"):
        two_models.run(two_models.guider(models, "wan", 3), "wan", sigmas, ar_video)

    def changes_guider(model, x, sigmas, **_):
        model.inner_model.conds = {}

    with pytest.raises(ValueError, match="changes the guider's conds while it runs"):
        two_models.run(two_models.guider(models, "wan", 3), "wan", sigmas, comfy.samplers.KSAMPLER(changes_guider))
