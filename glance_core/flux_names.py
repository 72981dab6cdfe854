"""FLUX's fused layers under the names that diffusers, the paper and most tools have for their parts.

Source: diffusers' conversion of the published FLUX weights (convert_flux_to_diffusers.py), read off as facts; tested against ComfyUI's map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from .lora_layers import Slot, is_linear

_STREAMS = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",), "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",),
}  # fmt: skip
_SINGLE = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def diffusers_slots(model: nn.Module) -> dict[str, Slot]:
    """Every Linear in the blocks of a FLUX (or the parts of a fused one) by diffusers' name."""
    return {slot_name: slot for name, module in model.named_modules() if is_linear(module) for slot_name, slot in _parts(name, module)}


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, Slot]]:
    found = _BLOCK.fullmatch(name)
    if found is None:
        return
    kind, number, layer = found.groups()
    prefix, known = ("transformer_blocks", _STREAMS) if kind == "double" else ("single_transformer_blocks", _SINGLE)
    inside, left, start = int(module.in_features), int(module.out_features), 0  # type: ignore[arg-type]
    parts = known.get(layer, ())
    for i, part in enumerate(parts):
        length = inside if i < len(parts) - 1 else left  # queries, keys and values are as wide as the hidden state
        yield f"{prefix}.{number}.{part}", Slot(name, inside, length, start)
        start, left = start + length, left - length
