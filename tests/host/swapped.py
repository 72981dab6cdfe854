"""A reference for LoRAs by noise level: whole models with merged LoRAs, swapped by hand within one sampling run."""

import comfy.sample
import comfy.samplers
import comfy.sd
import tiny_models
import torch


def merged_model(name, loras, **built):
    """A model of its own with LoRAs merged into its weights, as ComfyUI merges them. loras: (tensors, strength)."""
    patcher = tiny_models.build(name, **built)
    for tensors, strength in loras:
        patcher = comfy.sd.load_lora_for_models(patcher, None, dict(tensors), strength, 0)[0]
    patcher.patch_model()
    patcher.pre_run()
    return patcher


class SwappingGuider(comfy.samplers.CFGGuider):
    """Asks another model at each noise level, and may take another cfg there. chosen: sigma -> (MODEL, cfg or None)."""

    def __init__(self, patcher, chosen):
        super().__init__(patcher)
        self.chosen, self.calls = chosen, []

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        patcher, cfg = self.chosen(float(timestep.reshape(-1)[0]))
        self.calls.append(patcher)
        positive, negative = self.conds.get("positive"), self.conds.get("negative")
        return comfy.samplers.sampling_function(
            patcher.model,
            x,
            timestep,
            negative,
            positive,
            cfg or self.cfg,
            model_options=model_options or {},
            seed=seed,
        )


def guided(guider, name, sigmas, cfg=1.0, sampler="euler", **options):
    """One run of a guider.

    options: seed, latent; start: go on from these samples without noise; positive, negative, callback, noise_mask.
    """
    start, seed = options.pop("start", None), options.pop("seed", 3)
    samples = (options.pop("latent", None) or tiny_models.empty_latent(name))["samples"]
    noise = comfy.sample.prepare_noise(samples, seed) if start is None else torch.zeros_like(samples)
    positive, negative = (
        options.pop(kind, None) or tiny_models.conditioning(name, number)
        for kind, number in (("positive", 1), ("negative", 2))
    )
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    samples = samples if start is None else start
    return guider.sample(
        noise, samples, sampler, sigmas, options.pop("noise_mask", None), disable_pbar=True, seed=seed, **options
    )


def by_step(sigmas, models):
    """The choice of a model for each step; a step reaches from its own sigma down to the next."""
    inner = [float(sigma) for sigma in sigmas[1:-1]]

    def chosen(sigma):
        return models[sum(sigma <= each * (1 + 1e-6) for each in inner)], None

    return chosen


def swapped(name, sigmas, models, **run):
    """A run that asks models[i] in step i."""
    return guided(SwappingGuider(models[0], by_step(sigmas, models)), name, sigmas, **run)
