"""The pack's nodes, and ComfyUI's own ways of doing the same, as short calls for the tests."""

import comfy.nested_tensor
import comfy.sample
import comfy.samplers
import comfy.sd
import comfyui
import tiny_models
import torch


def node(name):
    return comfyui.load_pack()[name]


def load_pair(model, slow, fast, slow_strength=1.0, fast_strength=1.0):
    """(MODEL with the pair, report) from LoadGlanceLoRA."""
    return node("LoadGlanceLoRA").execute(model, slow, fast, slow_strength, fast_strength).args


def scheduler(model, name, slow=5, fast=5, **options):
    """The SIGMAS of GlanceScheduler. options: its other inputs, and `latent`."""
    return scheduled(model, name, slow, fast, **options)[0]


def scheduled(model, name, slow=5, fast=5, latent=None, **options):
    """(SIGMAS, SAMPLER) of GlanceScheduler. options: its other inputs."""
    inputs = {"schedule": "auto", "denoise": 1.0, "slow_steps": slow, "fast_steps": fast} | options
    return node("GlanceScheduler").execute(model, latent or tiny_models.empty_latent(name), **inputs).args


def phase_split(model, name, slow=5, fast=5, cfg=1.0, sampler="euler", **options):
    """The samples that PhaseSplitSampler returns. options: its other inputs, and `latent`."""
    latent = options.pop("latent", None) or tiny_models.empty_latent(name)
    inputs = {"seed": 3, "schedule": "auto", "denoise": 1.0, "slow_steps": slow, "fast_steps": fast} | options
    for prompt, seed in (("positive", 1), ("negative", 2)):
        if prompt not in inputs:
            inputs[prompt] = tiny_models.conditioning(name, seed)
    execute = node("PhaseSplitSampler").execute
    return execute(model, latent_image=latent, cfg=cfg, sampler_name=sampler, **inputs).args[0]["samples"]


def host_sample(model, name, sigmas, cfg=1.0, sampler="euler", **options):
    """One run of ComfyUI's own sampler.

    options: seed, latent, callback; start: continue from these samples without adding noise.
    """
    start, seed = options.pop("start", None), options.pop("seed", 3)
    samples = (options.pop("latent", None) or tiny_models.empty_latent(name))["samples"]
    noise = comfy.sample.prepare_noise(samples, seed) if start is None else _map(torch.zeros_like, samples)
    if isinstance(sampler, str):
        sampler = comfy.samplers.sampler_object(sampler)
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        tiny_models.conditioning(name, 1),
        tiny_models.conditioning(name, 2),
        samples if start is None else start,
        disable_pbar=True,
        seed=seed,
        **options,
    )


def merged(model, tensors, strength=1.0):
    """ComfyUI's own way: a clone with the LoRA merged into its weights."""
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0]


def chained(slow_model, fast_model, name, sigmas, switch, **options):
    """Two of ComfyUI's samplers in a row, the first on sigmas[:switch + 1], the second on the rest."""
    middle = host_sample(slow_model, name, sigmas[: switch + 1], **options)
    return host_sample(fast_model, name, sigmas[switch:], start=middle, **options)


def _map(function, samples):
    if samples.is_nested:
        return comfy.nested_tensor.NestedTensor([function(part) for part in samples.unbind()])
    return function(samples)


def flat(samples) -> torch.Tensor:
    """Samples as one vector, those of several parts too."""
    parts = samples.unbind() if samples.is_nested else [samples]
    return torch.cat([part.reshape(-1) for part in parts])


def relative(a, b) -> float:
    """The norm of the difference over the norm of b."""
    a, b = flat(a), flat(b)
    return float((a.double() - b.double()).norm() / b.double().norm())
