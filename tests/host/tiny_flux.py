"""The embedded model inside ComfyUI, for the tests: the model, its prompts, its pair."""

import pack
import torch

import nodes as host_nodes
from glance_core import tiny

PAIR = ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")
PROMPT = "a large green star left and a small purple ring on striped pink"


def load():
    """The MODEL, as ComfyUI's own loader gives it."""
    pack.node("GlanceTinyText")  # loads the pack, whose folder of models ComfyUI lists then
    with torch.inference_mode():
        return host_nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0]


def with_pair(model, slow_strength=1.0, fast_strength=1.0):
    """The MODEL with the embedded pair."""
    return pack.load_pair(model, *PAIR, slow_strength, fast_strength)[0]


def text(prompt):
    return pack.node("GlanceTinyText").execute(prompt).args[0]


def empty_latent(batch=1):
    return {"samples": torch.zeros(batch, *tiny.LATENT)}


def phase_split(model, slow=5, fast=5, cfg=1.0, sampler="euler", **options):
    """The samples of PhaseSplitSampler on the embedded model's prompts, from seed 7."""
    inputs = {"positive": text(PROMPT), "negative": text(""), "latent": empty_latent(), "seed": 7} | options
    return pack.phase_split(model, None, slow, fast, cfg, sampler, **inputs)
