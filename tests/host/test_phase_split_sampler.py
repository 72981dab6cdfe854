"""One run that switches in the middle equals merging each LoRA and chaining two of ComfyUI's samplers."""

import adapters
import comfy.patcher_extension
import pack
import pytest
import tiny_models
import torch
from safetensors.torch import load_file

STEPS = 5


def pair_of(model, loras, **kwargs):
    """(MODEL with the pair, Slow tensors, Fast tensors)"""
    slow, fast = adapters.save_pair(model, loras, **kwargs)
    return pack.load_pair(model, slow, fast)[0], load_file(loras / slow), load_file(loras / fast)


@pytest.mark.parametrize("cfg", [1.0, 4.5])
@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_euler_equals_two_chained_samplers_with_merged_loras_at_every_switch_step(name, cfg, loras):
    model = tiny_models.build(name)
    with_pair, slow, fast = pair_of(model, loras)
    slow_model, fast_model = pack.merged(model, slow), pack.merged(model, fast)
    base = pack.phase_split(model, name, 1, STEPS - 1, cfg)
    for switch in range(1, STEPS):
        ours = pack.phase_split(with_pair, name, switch, STEPS - switch, cfg)
        sigmas = pack.scheduler(model, name, switch, STEPS - switch)
        theirs = pack.chained(slow_model, fast_model, name, sigmas, switch, cfg=cfg)
        assert pack.relative(ours, theirs) < 1e-5, switch
        assert pack.relative(ours, base) > 1e-2, "the pair has no effect, so the test could not fail"


@pytest.mark.parametrize("name", ["flux", "qwen-image"])
def test_untagged_sigmas_in_any_sampler_of_comfyui_switch_at_the_same_sigma(name, loras):
    model = tiny_models.build(name)
    with_pair, *_ = pair_of(model, loras)
    sigmas = pack.scheduler(with_pair, name)
    plain = torch.tensor(sigmas.tolist())
    assert torch.equal(pack.host_sample(with_pair, name, sigmas), pack.phase_split(with_pair, name))
    assert torch.equal(pack.host_sample(with_pair, name, plain), pack.phase_split(with_pair, name))


def test_sigmas_carry_an_explicit_split_to_any_sampler(loras):
    model = tiny_models.build("flux")
    with_pair, *_ = pair_of(model, loras)
    steps = "1,3,5,7,9,11,21|31,41,50"
    sigmas = pack.scheduler(with_pair, "flux", teacher_steps=steps)
    explicit = pack.phase_split(with_pair, "flux", teacher_steps=steps)
    assert torch.equal(pack.host_sample(with_pair, "flux", sigmas), explicit)
    assert pack.relative(pack.host_sample(with_pair, "flux", torch.tensor(sigmas.tolist())), explicit) > 1e-3


class SwappedModels:
    """The truth for samplers with a history: ComfyUI's own run, in which another model answers from `boundary` down."""

    def __init__(self, other, boundary):
        self.other, self.boundary = other, boundary

    def __call__(self, executor, x, timestep, *args, **kwargs):
        guider = executor.class_obj
        first = guider.inner_model
        if float(timestep[0]) <= self.boundary:
            self.other.current_patcher = first.current_patcher
            guider.inner_model = self.other
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.inner_model = first


def with_weights_added(name, tensors):
    """A new model whose weights are base + alpha / rank * B A, added here by hand."""
    model = tiny_models.build(name)
    for key in [k for k in tensors if k.endswith("lora_A.weight")]:
        target = key.removesuffix(".lora_A.weight")
        down, up, alpha = tensors[key], tensors[f"{target}.lora_B.weight"], tensors[f"{target}.alpha"]
        model.model.get_submodule(target).weight += (alpha / len(down)) * up @ down
    return model


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "res_multistep"])
@pytest.mark.parametrize("name", ["flux", "qwen-image", "sd1"])
def test_multistep_history_survives_the_switch_but_not_chained_samplers(name, sampler, loras):
    model = tiny_models.build(name)
    with_pair, slow, fast = pair_of(model, loras)
    ours = pack.phase_split(with_pair, name, sampler=sampler)
    sigmas = pack.scheduler(model, name)
    truth_model, fast_model = with_weights_added(name, slow), with_weights_added(name, fast)
    truth_model.add_wrapper(
        comfy.patcher_extension.WrappersMP.PREDICT_NOISE, SwappedModels(fast_model.model, float(sigmas[5]) + 1e-6)
    )
    truth = pack.host_sample(truth_model, name, sigmas, sampler=sampler)
    assert pack.relative(ours, truth) < 1e-5
    chained = pack.chained(pack.merged(model, slow), pack.merged(model, fast), name, sigmas, 5, sampler=sampler)
    assert pack.relative(chained, truth) > 1e-3


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "euler_ancestral", "dpmpp_sde", "uni_pc", "lcm", "ddim"])
def test_other_samplers_of_comfyui_run_with_a_pair(sampler, loras):
    model = tiny_models.build("flux")
    with_pair, *_ = pair_of(model, loras)
    result = pack.phase_split(with_pair, "flux", sampler=sampler)
    assert torch.isfinite(result).all()
    assert pack.relative(result, pack.phase_split(model, "flux", sampler=sampler)) > 1e-2


def errors_of(low, name, loras) -> tuple[float, float]:
    """The errors of the pair and of merging. The truth is the same weights, with the LoRAs merged, in fp32.

    Eight pictures, since rounding moves the error of one by up to 15 %, differently on every kind of CPU.
    """
    latent = tiny_models.empty_latent(name, 8)
    exact = tiny_models.build(name)
    exact.model.load_state_dict({key: value.float() for key, value in low.model.state_dict().items()})
    with_pair, slow, fast = pair_of(low, loras)
    sigmas = pack.scheduler(low, name)
    truth = pack.chained(pack.merged(exact, slow), pack.merged(exact, fast), name, sigmas, 5, latent=latent)
    merging = pack.chained(pack.merged(low, slow), pack.merged(low, fast), name, sigmas, 5, latent=latent)
    return pack.relative(pack.phase_split(with_pair, name, latent=latent), truth), pack.relative(merging, truth)


LOW = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


@pytest.mark.parametrize("stored", LOW)
@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_on_low_precision_weights_the_pair_is_more_exact_than_merging(name, stored, loras):
    """Weights stored in low precision, computed in fp32: merging rounds them once more, a branch does not."""
    ours, merging = errors_of(tiny_models.build(name, dtype=LOW[stored], manual_cast=torch.float32), name, loras)
    assert ours < 1e-5 < merging


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_in_bfloat16_the_pair_is_as_exact_as_merging(name, loras):
    ours, merging = errors_of(tiny_models.build(name, dtype=torch.bfloat16), name, loras)
    assert ours < 1.1 * merging  # two roundings of the same size
