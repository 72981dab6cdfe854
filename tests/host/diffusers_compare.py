"""Sample the same pair in ComfyUI and in diffusers: the same weights, noise and prompts."""

import comfy.sample
import comfy.utils
import diffusers_tiny as peer
import pack
import tiny_models
import torch

LATENT = {name: {"samples": torch.zeros(shape)} for name, shape in peer.LATENTS.items()}
SEED = 3


def same_weights(name, model):
    """diffusers' transformer with the weights of ComfyUI's model."""
    ours = model.model.diffusion_model.state_dict()
    if name == "flux":
        known = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config)
        ours = {theirs: rows_of(ours, known[theirs]) for theirs in peer.transformer(name).state_dict()}
    with torch.inference_mode(False):
        return peer.transformer(name, {key: value.clone() for key, value in ours.items()})


def rows_of(weights, source):
    """The weight that ComfyUI's own map means: a name, or also rows of a fused layer and a function that moves them."""
    if isinstance(source, str):
        return weights[source]
    name, rows, *moved = source
    weight = weights[name] if rows is None else weights[name].narrow(*rows)
    return moved[0](weight) if moved else weight


def prompt(name, seed):
    """The conditioning of tiny_models.conditioning, as diffusers takes it."""
    ((embeds, extra),) = tiny_models.conditioning(name, seed)
    if name == "flux":
        return {"prompt_embeds": embeds.clone(), "pooled_prompt_embeds": extra["pooled_output"].clone()}
    return {"prompt_embeds": embeds.clone(), "prompt_embeds_mask": torch.ones(embeds.shape[:2], dtype=torch.long)}


def noise(name):
    return comfy.sample.prepare_noise(LATENT[name]["samples"], SEED)


def schedule(name, model):
    """The sigmas of GlanceScheduler, as the page's code takes them."""
    sigmas = pack.scheduler(model, name, latent=LATENT[name])
    return {"sigmas": sigmas.tolist(), "slow_steps": 5, "width": peer.WIDTH, "height": peer.HEIGHT}


def in_comfyui(name, model, files=None, **options):
    """The latents of PhaseSplitSampler, in the model's own scale. files: Slow and Fast; None for the base."""
    if files is not None:
        model, _ = pack.load_pair(model, *map(str, files))
    samples = pack.phase_split(model, name, latent=LATENT[name], seed=SEED, **options)
    return model.model.process_latent_in(samples)


def in_diffusers(name, model, files, negative=None, cfg=1.0):
    """The latents of diffusers' pipeline with these files."""
    inputs = prompt(name, 1) | peer.other_inputs(name, noise(name), negative, cfg)
    return peer.painted(name, same_weights(name, model), *files, schedule(name, model), **inputs)


def difference(what, ours, theirs):
    """The largest difference, which is printed too."""
    found = peer.greatest(ours, theirs)
    print(f"{what}: the latents of ComfyUI and diffusers differ by {found:.2e} at most")
    return found
