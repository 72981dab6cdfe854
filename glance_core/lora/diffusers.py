"""An adapter as any diffusers reads it: diffusers' names, one pair of factors per layer, the scale folded in.

diffusers skips other names with only a warning, and what it makes of an alpha depends on model and version (0.36 drops
some without a word). A file without alpha has scale 1 for every reader.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..errors import AdapterError
from ..model_row import FusedLayout
from ..models import MODELS, base_model, titles
from . import other_names
from .factors import Factor, scaled_exactly
from .keys import has_diffusers_names

PREFIX = "transformer."


@dataclass(frozen=True)
class Rows:
    """Rows start .. start + length of a layer's output, which diffusers has as a layer of its own."""

    name: str
    start: int
    length: int


def fused_rows(layout: FusedLayout, layer: str, inside: int, outside: int) -> list[Rows]:
    """Return diffusers' names for the rows of a layer in the blocks.

    Args:
        layer: its path in the model.
        inside, outside: its features.

    Returns:
        An empty list for a layer outside of the blocks, or if the rows do not fit.
    """
    kind, _, rest = layer.partition(".")
    number, _, inner = rest.partition(".")
    parts = layout.layers.get(kind, {}).get(inner, ())
    if not parts or not number.isdecimal():
        return []
    last = outside - (len(parts) - 1) * inside
    if last < 1 or (inner.endswith("qkv") and last != inside):
        return []
    lengths = [inside] * (len(parts) - 1) + [last]
    return [
        Rows(f"{layout.blocks[kind]}.{number}.{part}", sum(lengths[:i]), length)
        for i, (part, length) in enumerate(zip(parts, lengths, strict=True))
    ]


def diffusers_factors(name: str, factors: Mapping[str, Factor], base: str | None) -> dict[str, Factor]:
    """Return the factors by diffusers' module names, with scale 1.

    Args:
        name: the file's, for errors.
        base: the base model, if it is stated.

    Raises:
        AdapterError: if diffusers' names for the modules are not known.
    """
    renamed: dict[str, Factor] = {}
    listed = _listed_base(name, factors, base)
    layout = None if listed or has_diffusers_names(factors) else _layout_of(name, factors, base)
    for module, factor in factors.items():
        if listed:
            pieces = _listed_parts(listed, module, factor)
        else:
            pieces = _fused_parts(layout, module, factor) if layout else _unchanged(module, factor)
        if not pieces:
            shapes = f"{tuple(factor.down.shape)} and {tuple(factor.up.shape)}"
            raise AdapterError(f"{name}: diffusers has no name for {module} with factors {shapes}; leave it out")
        renamed |= {part: _folded(piece) for part, piece in pieces.items()}
    return renamed


def _listed_base(name: str, factors: Mapping[str, Factor], base: str | None) -> str | None:
    """Return the base whose names other_names.py has; None if it has none, or a layout of blocks is known instead."""
    if base is not None:
        return base if base in other_names.bases() else None
    if any(_in_blocks(row.fused, module) for row in MODELS.values() if row.fused for module in factors):
        return None
    found = {
        each: tuple(tuple(other_names.diffusers_parts(each, module)) for module in factors)
        for each in other_names.bases()
    }
    found = {each: parts for each, parts in found.items() if all(parts)}
    if len(set(found.values())) > 1:
        raise AdapterError(
            f"{name}: its names are those of {' and '.join(found)}, which diffusers names differently; convert a file "
            "that states its base model"
        )
    return next(iter(found), None)


def _listed_parts(base: str, module: str, factor: Factor) -> dict[str, Factor]:
    """Return the parts of a module of ComfyUI's, or the one part that it is already, by diffusers' names."""
    parts, known = other_names.diffusers_parts(base, module), other_names.host_part(base, module)
    if known and not parts:
        parts = other_names.diffusers_parts(base, known.name)
        names = [part.name for part in parts if (part.index, part.count) == (known.index, known.count)]
        return {names[0]: factor} if names else {}
    outside = factor.up.shape[0]
    rows = {part.name: part.rows(factor.down.shape[1], outside) for part in parts}
    lengths = [length for _, length in rows.values()]
    if min(lengths, default=0) < 1 or sum(lengths) != outside:
        return {}
    moved = {part.name: other_names.swapped_halves(factor.up) if part.swapped else factor.up for part in parts}
    return {part: replace(factor, up=moved[part][start : start + length]) for part, (start, length) in rows.items()}


def _layout_of(name: str, factors: Mapping[str, Factor], base: str | None) -> FusedLayout:
    if base is not None:
        layout = base_model(base).fused
    else:
        layouts = (row.fused for row in MODELS.values() if row.fused)
        layout = next((each for each in layouts if any(_in_blocks(each, module) for module in factors)), None)
    if layout is None or not any(_in_blocks(layout, module) for module in factors):
        known = titles(lambda row: bool(row.fused) or row.same_names)
        raise AdapterError(
            f"{name}: diffusers' names for its modules ({next(iter(factors))}, ...; {base or 'base model not stated'}) "
            f"are not known; the layout diffusers works for {known}, and for {', '.join(other_names.bases())}"
        )
    return layout


def _in_blocks(layout: FusedLayout, module: str) -> bool:
    return module.partition(".")[0] in layout.blocks


def rank_metadata(factors: Mapping[str, Factor]) -> dict[str, str]:
    """Return PEFT's settings as diffusers stores them, if layers differ in rank.

    Up to 0.36 diffusers takes the first layer's rank for the alpha of all.
    """
    ranks = {module: factor.rank for module, factor in factors.items()}
    (usual, count), *_ = Counter(ranks.values()).most_common()
    if count == len(ranks):
        return {}
    others = {f"^{module}": rank for module, rank in ranks.items() if rank != usual}
    settings = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
    }
    return {"lora_adapter_metadata": json.dumps({PREFIX + key: value for key, value in settings.items()})}


def _unchanged(module: str, factor: Factor) -> dict[str, Factor]:
    """Return the factor, unless its name belongs to another layout than the rest of the file."""
    mixed = any(_in_blocks(row.fused, module) for row in MODELS.values() if row.fused)
    return {} if mixed else {module: factor}


def _fused_parts(layout: FusedLayout, module: str, factor: Factor) -> dict[str, Factor]:
    if module == layout.swapped:
        shift, scale = factor.up.chunk(2)
        return {layout.outside[module]: replace(factor, up=torch.cat([scale, shift]))}
    if module in layout.outside:
        return {layout.outside[module]: factor}
    rows = fused_rows(layout, module, factor.down.shape[1], factor.up.shape[0])
    return {part.name: replace(factor, up=factor.up[part.start : part.start + part.length]) for part in rows}


def _folded(factor: Factor) -> Factor:
    """Return the same update with scale 1, in float32 if the file's own dtype cannot hold the scaled factor exactly."""
    stored = scaled_exactly(factor.up, factor.scale)
    down = factor.down if stored.dtype == factor.up.dtype else factor.down.float()
    # Clones: parts of one layer must not share memory in a file.
    return Factor(down.clone(), stored.contiguous(), float(factor.rank), 1.0, factor.source)
