"""The pack's nodes and ComfyUI's own ways of doing the same, as short calls for the tests."""

import comfy.sample
import comfy.samplers
import comfy.sd
import comfyui
import tiny
import torch


def node(name):
    return comfyui.load_pack()[name]


def load_pair(model, slow, fast, slow_strength=1.0, fast_strength=1.0):
    """(MODEL with the pair, report) from LoadGlanceLoRA."""
    return node("LoadGlanceLoRA").execute(model, slow, fast, slow_strength, fast_strength).args


def scheduler(model, name, slow=5, fast=5, schedule="auto", denoise=1.0, teacher_steps="", latent=None):
    latent = latent or tiny.empty_latent(name)
    return node("GlanceScheduler").execute(model, latent, schedule, slow, fast, denoise, teacher_steps).args[0]


def phase_split(model, name, slow=5, fast=5, cfg=1.0, sampler="euler", schedule="auto", denoise=1.0, teacher_steps="", latent=None, seed=3):
    """The samples PhaseSplitSampler returns."""
    latent = latent or tiny.empty_latent(name)
    positive, negative = tiny.conditioning(name, 1), tiny.conditioning(name, 2)
    execute = node("PhaseSplitSampler").execute
    return execute(model, positive, negative, latent, seed, cfg, sampler, schedule, slow, fast, denoise, teacher_steps).args[0]["samples"]


def host_sample(model, name, sigmas, cfg=1.0, sampler="euler", start=None, seed=3, latent=None, callback=None):
    """One run of the host's own sampler. start: continue from these samples without adding noise."""
    samples = (latent or tiny.empty_latent(name))["samples"]
    noise = comfy.sample.prepare_noise(samples, seed) if start is None else torch.zeros_like(samples)
    if isinstance(sampler, str):
        sampler = comfy.samplers.sampler_object(sampler)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, tiny.conditioning(name, 1), tiny.conditioning(name, 2), samples if start is None else start,
        callback=callback, disable_pbar=True, seed=seed,
    )  # fmt: skip


def merged(model, tensors, strength=1.0):
    """The host's own way: a clone with the LoRA merged into its weights."""
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0]


def chained(slow_model, fast_model, name, sigmas, switch, **kwargs):
    """Two of the host's samplers in a row, the first on sigmas[:switch + 1], the second on the rest."""
    middle = host_sample(slow_model, name, sigmas[: switch + 1], **kwargs)
    return host_sample(fast_model, name, sigmas[switch:], start=middle, **kwargs)


def relative(a, b) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
