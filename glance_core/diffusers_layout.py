"""An adapter as any diffusers reads it: diffusers' names, one pair of factors for each of its layers, and the scale inside the factors.

diffusers leaves out what has FLUX's own names with a warning alone, and what it makes of an alpha depends on model and version: 0.36 drops
that of Qwen-Image without a word. A file without alpha has scale 1 for every reader.
Source of the names: diffusers' conversion of the published FLUX weights, read off as facts; tested against ComfyUI's map and against
diffusers' own converter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from .errors import AdapterError
from .lora_file import Factor
from .lora_names import is_diffusers

PREFIX = "transformer."
_FLUX_BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
_FLUX_BASES = ("flux", "flux-schnell", "glance-tiny")

# FLUX's layers in a block, and diffusers' names for their rows, in this order: each takes as many rows as the layer has inputs, the last
# what is left (queries, keys and values are as wide as the hidden state).
_LAYERS = {
    "double_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.proj": ("attn.to_add_out",),
        "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",), "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
        "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",),
    },
    "single_blocks": {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",),
    },
}  # fmt: skip
_OUTSIDE = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear",
    **{f"{ours}.{layer}": f"time_text_embed.{theirs}.linear_{i}"
       for ours, theirs in (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"), ("guidance_in", "guidance_embedder"))
       for i, layer in ((1, "in_layer"), (2, "out_layer"))},
}  # fmt: skip
_SWAPPED = "final_layer.adaLN_modulation.1"  # FLUX has shift before scale here, diffusers scale before shift


@dataclass(frozen=True)
class Rows:
    """The rows start .. start + length of a layer's output, which diffusers has as a layer of its own."""

    name: str
    start: int
    length: int


def flux_rows(layer: str, inside: int, outside: int) -> list[Rows]:
    """What diffusers calls the rows of a FLUX layer (its path in the model) that takes `inside` and gives `outside` features.

    Empty for a layer outside of the blocks, and where the rows do not fit.
    """
    kind, _, rest = layer.partition(".")
    number, _, inner = rest.partition(".")
    parts = _LAYERS.get(kind, {}).get(inner, ())
    if not parts or not number.isdecimal():
        return []
    last = outside - (len(parts) - 1) * inside
    if last < 1 or (inner.endswith("qkv") and last != inside):
        return []
    lengths = [inside] * (len(parts) - 1) + [last]
    return [
        Rows(f"{_FLUX_BLOCKS[kind]}.{number}.{part}", sum(lengths[:i]), length)
        for i, (part, length) in enumerate(zip(parts, lengths, strict=True))
    ]


def diffusers_factors(name: str, factors: Mapping[str, Factor], base: str | None) -> dict[str, Factor]:
    """The factors by diffusers' module names, scale 1. name: the file's, for errors; base: the architecture, where it is stated.

    Raises AdapterError where diffusers' names for the modules are not known.
    """
    if is_diffusers(factors):
        named = _as_it_is
    elif any(module.startswith(tuple(_FLUX_BLOCKS)) for module in factors) and (base is None or base in _FLUX_BASES):
        named = _flux_parts
    else:
        raise AdapterError(
            f"{name}: its modules ({next(iter(factors))}, ...; {base or 'unknown architecture'}) are none that this package knows diffusers' "
            "names for; the layout diffusers is for FLUX and Qwen-Image"
        )
    out: dict[str, Factor] = {}
    for module, factor in factors.items():
        pieces = named(module, factor)
        if not pieces:
            down, up = tuple(factor.down.shape), tuple(factor.up.shape)
            raise AdapterError(f"{name}: {module} with factors {down} and {up} is no layer that diffusers has a name for; leave it out")
        out |= {part: _folded(piece) for part, piece in pieces.items()}
    return out


def rank_metadata(factors: Mapping[str, Factor]) -> dict[str, str]:
    """PEFT's settings as diffusers stores them, where layers differ in rank: up to 0.36 it takes the first one's for the alpha of all."""
    ranks = {module: factor.rank for module, factor in factors.items()}
    (usual, count), *_ = Counter(ranks.values()).most_common()
    if count == len(ranks):
        return {}
    others = {f"^{module}": rank for module, rank in ranks.items() if rank != usual}
    settings = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others, "target_modules": list(ranks)}
    return {"lora_adapter_metadata": json.dumps({PREFIX + key: value for key, value in settings.items()})}


def _as_it_is(module: str, factor: Factor) -> dict[str, Factor]:
    return {} if module.partition(".")[0] in _FLUX_BLOCKS else {module: factor}  # two kinds of names in one file


def _flux_parts(module: str, factor: Factor) -> dict[str, Factor]:
    if module == _SWAPPED:
        shift, scale = factor.up.chunk(2)
        return {_OUTSIDE[module]: replace(factor, up=torch.cat([scale, shift]))}
    if module in _OUTSIDE:
        return {_OUTSIDE[module]: factor}
    rows = flux_rows(module, factor.down.shape[1], factor.up.shape[0])
    return {part.name: replace(factor, up=factor.up[part.start : part.start + part.length]) for part in rows}


def _folded(factor: Factor) -> Factor:
    """The same update with scale 1; in fp32 where the file's own precision cannot hold the scaled factor to the bit."""
    up = factor.up.double() * factor.scale
    down, stored = factor.down, up.to(factor.up.dtype)
    if not torch.equal(stored.double(), up) and stored.dtype in (torch.float16, torch.bfloat16):
        down, stored = down.float(), up.float()
    return Factor(down.clone(), stored.contiguous(), float(factor.rank), 1.0, factor.source)  # parts of one layer share no memory
