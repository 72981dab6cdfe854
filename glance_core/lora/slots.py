"""Slots: which rows of which layer one LoRA changes, and under which name it is saved.

A slot need not be a whole layer. Fused layers are trained and saved as the parts that diffusers and the paper know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..low_rank import LowRank, linear_features
from ..model_row import FusedLayout
from .diffusers import fused_rows
from .factors import Factor
from .keys import without_compiler


@dataclass(frozen=True)
class Slot:
    """Rows start .. start + outside of a Linear that takes `inside` features. module: its path in the model."""

    module: str
    inside: int
    outside: int
    start: int = 0


def is_linear(module: nn.Module) -> bool:
    """Return whether this is a Linear, of torch's class or of a host's own class that says its widths."""
    return linear_features(module) is not None


def whole_slots(model: nn.Module, pattern: str = ".*") -> dict[str, Slot]:
    """Return a slot for every Linear whose whole name matches the regular expression, by that name.

    What a compiler puts into names is left out; paths lead through it without.
    """
    found = {without_compiler(name): linear_features(module) for name, module in model.named_modules()}
    return {name: Slot(name, *sizes) for name, sizes in found.items() if sizes and re.fullmatch(pattern, name)}


def fused_slots(model: nn.Module, layout: FusedLayout) -> dict[str, Slot]:
    """Return a slot for every Linear in the blocks, or for each part of a fused one, by diffusers' name."""
    slots: dict[str, Slot] = {}
    for name, slot in whole_slots(model).items():
        rows = fused_rows(layout, name, slot.inside, slot.outside)
        slots |= {part.name: Slot(name, slot.inside, part.length, part.start) for part in rows}
    return slots


def low_rank_updates(factors: Mapping[str, Factor], slots: Mapping[str, Slot]) -> dict[str, list[LowRank]]:
    """Return a phase's updates by module, as a switch takes them. A name without a slot is a module's own."""
    updates: dict[str, list[LowRank]] = {}
    for name, factor in factors.items():
        module, start = (slots[name].module, slots[name].start) if name in slots else (name, 0)
        updates.setdefault(module, []).append(LowRank(factor.down, factor.up * factor.scale, start))
    return updates
