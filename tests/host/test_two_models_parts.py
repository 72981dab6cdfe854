"""Each of two models brings what it carries: wrappers, LoRAs of ComfyUI, caches; and latents of several parts."""

import adapters
import comfy.model_management
import comfy.samplers
import comfy.sd
import comfyui
import pack
import pytest
import tiny_models
import torch
import two_models
from comfy.patcher_extension import WrappersMP

CFGS = (3.0, 1.0)
ONCE = (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.SAMPLER_SAMPLE)


def observed(model, seen):
    """A clone whose wrappers write down their kind and the sigmas that they are given, if they are given any."""
    clone = model.clone()
    for kind in (*ONCE, WrappersMP.PREDICT_NOISE):

        def wrapper(executor, *args, kind=kind, **kwargs):
            sigmas = [each for each in args if isinstance(each, torch.Tensor) and each.ndim == 1]
            seen.append((kind, sigmas[0].tolist() if sigmas else None))
            return executor(*args, **kwargs)

        clone.add_wrapper_with_key(kind, "test", wrapper)
    return clone


def test_wrappers_of_both_models_see_the_whole_run_and_only_their_own_calls(node_classes):
    models, seen = two_models.both(), ([], [])
    wrapped = [observed(each, found) for each, found in zip(models, seen, strict=True)]
    sigmas = two_models.sigmas_of(models[0])
    two_models.run(two_models.guider(wrapped, "wan", 2), "wan", sigmas, "res_multistep")
    for found, own in zip(seen, (sigmas[:2], sigmas[2:-1]), strict=True):
        kinds = [kind for kind, _ in found]
        assert [kinds.count(kind) for kind in ONCE] == [1, 1, 1]
        assert [level for kind, level in found if kind == WrappersMP.PREDICT_NOISE] == [[each] for each in own.tolist()]
        whole = [level for kind, level in found if kind in (ONCE[0], ONCE[2])]
        assert whole == [sigmas.tolist()] * 2


def with_lora(model, seed, bypass):
    """The model with a LoRA of ComfyUI's own, merged or beside the weights."""
    tensors = adapters.state_dict(model, seed)
    if not bypass:
        return pack.merged(model, tensors)
    return comfy.sd.load_bypass_lora_for_models(model, None, tensors, 1.0, 0)[0]


@pytest.mark.parametrize("bypass", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_each_model_keeps_its_own_lora_of_comfyui(shared, bypass, node_classes):
    """shared: both are clones of one base, so that ComfyUI has to take one LoRA off it for the other one."""
    models = two_models.both()
    bases = (models[0], models[0]) if shared else models
    states = [tiny_models.state(each) for each in bases]
    carrying = [with_lora(each, seed, bypass) for seed, each in enumerate(bases, 1)]
    sigmas = two_models.sigmas_of(models[0])
    ours = two_models.run(two_models.guider(carrying, "wan", 3, cfgs=CFGS), "wan", sigmas)
    assert pack.relative(ours, two_models.chained(carrying, "wan", sigmas, 3, CFGS)) < 1e-6
    plain = two_models.run(two_models.guider(bases, "wan", 3, cfgs=CFGS), "wan", sigmas)
    assert pack.relative(ours, plain) > 1e-2
    comfy.model_management.unload_all_models()
    for each, state in zip(bases, states, strict=True):
        tiny_models.assert_bit_exact(each, state)


def test_cache_of_comfyui_on_the_late_model_works_in_its_part(node_classes):
    models = two_models.both()
    cached = comfyui.all_nodes()["EasyCache"].execute(models[1], 10.0, 0.0, 1.0, False).args[0]
    sigmas, mixed = two_models.sigmas_of(models[0], 8), (models[0], cached)
    ours = two_models.run(two_models.guider(mixed, "wan", 2), "wan", sigmas)
    assert pack.relative(ours, two_models.chained(mixed, "wan", sigmas, 2)) < 1e-6
    assert pack.relative(ours, two_models.chained(models, "wan", sigmas, 2)) > 1e-3, "the cache skipped nothing"


def test_latents_of_several_parts_equal_two_samplers_in_a_row(node_classes):
    name = "ltxav"
    models = two_models.both(name)
    sigmas, seen = two_models.sigmas_of(models[0]), []
    guider = two_models.guider(models, name, 3, cfgs=CFGS)
    sample = guider.sample

    def watched(*args, callback=None, **kwargs):
        return sample(*args, callback=lambda *step: seen.append(step[1].is_nested), **kwargs)

    guider.sample = watched
    ours = two_models.run(guider, name, sigmas)
    assert ours.is_nested and seen == [True] * (len(sigmas) - 1)
    assert pack.relative(ours, two_models.chained(models, name, sigmas, 3, CFGS)) < 1e-6


def test_fitted_solver_combines_the_predictions_of_both(node_classes):
    """It sets the guider's cfg to 1 for the steps that it does not guide."""
    models, name = two_models.both(), "wan"
    module = comfyui.pack_module("glance_core.sampling.solver")
    sigmas = pack.scheduler(models[0], name, 3, 3)
    solver = module.guided_solver(sigmas.tolist(), (2.5, 1.0, 2.5, 2.5, 1.0, 2.5))
    sampler = comfyui.pack_module("nodes.host.solver_sampler").solver_sampler(solver)
    with two_models.CountedCalls(models) as counted:
        ours = two_models.run(two_models.guider(models, name, 3), name, sigmas, sampler)
    assert counted.counts == [5, 5]
    reference = two_models.Swapped(models, name, two_models.threshold_of(sigmas, 3))
    theirs = two_models.run(reference, name, sigmas, sampler)
    assert pack.relative(ours, theirs) < 1e-5
    assert pack.relative(ours, two_models.run(two_models.guider(models, name, 3), name, sigmas)) > 1e-3
