"""FLUX's fused layers under the names that diffusers, the paper and most tools have for their parts, as slots to train."""

from __future__ import annotations

from torch import nn

from .diffusers_layout import flux_rows
from .lora_layers import Slot, is_linear


def diffusers_slots(model: nn.Module) -> dict[str, Slot]:
    """Every Linear in the blocks of a FLUX (or the parts of a fused one) by diffusers' name."""
    slots: dict[str, Slot] = {}
    for name, module in model.named_modules():
        if is_linear(module):
            inside, outside = int(module.in_features), int(module.out_features)
            slots |= {rows.name: Slot(name, inside, rows.length, rows.start) for rows in flux_rows(name, inside, outside)}
    return slots
