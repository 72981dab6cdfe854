"""An adapter under the names that ComfyUI's own loader knows, if the file has others: the parts of a layer in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..errors import AdapterError
from ..models import base_model
from . import module_names, other_names
from .factors import Bias, Factor, scaled_exactly
from .other_names import Part


def host_names(
    name: str, factors: Mapping[str, Factor], biases: Mapping[str, Bias], base: str | None
) -> tuple[Mapping[str, Factor], Mapping[str, Bias]]:
    """Return factors and biases by ComfyUI's names of the layers. Names that its loader knows stay.

    Args:
        name: the file's, for errors.
        base: the base model, if it is known.

    Raises:
        AdapterError: if parts of a layer are missing, so that its size is not known.
    """
    base = base or _base_of_names([*factors, *biases])
    if base is None or base_model(base).diffusers_names:
        return factors, biases
    parts = {module: _host_part(base, module) for module in (*factors, *biases)}
    renamed: dict[str, Factor] = {}
    found: dict[str, dict[int, tuple[Part, Factor]]] = {}
    for module, factor in factors.items():
        part = parts[module]
        if part is None:
            renamed[module] = factor
        elif part.count == 1:
            up = other_names.swapped_halves(factor.up) if part.swapped else factor.up
            renamed[part.name] = replace(factor, up=up)
        else:
            found.setdefault(part.name, {})[part.index] = (part, factor)
    renamed |= {layer: _joined(name, layer, list(pieces.values())) for layer, pieces in found.items()}
    return renamed, _renamed_biases(name, biases, parts)


def _host_part(base: str, module: str) -> Part | None:
    """Return the layer that the module is or belongs to; None if it has ComfyUI's name already, or an unknown one."""
    return None if other_names.diffusers_parts(base, module) else other_names.host_part(base, module)


def _base_of_names(modules: list[str]) -> str | None:
    """Return the only base that has all these names, if ComfyUI's loader does not know them."""
    unknown = [m for m in modules if not (module_names.is_hosts(m) or module_names.is_diffusers(m))]
    bases = [base for base in other_names.bases() if all(other_names.host_part(base, module) for module in unknown)]
    return bases[0] if unknown and len(bases) == 1 else None


def _joined(name: str, layer: str, pieces: list[tuple[Part, Factor]]) -> Factor:
    """Return one update of the whole layer: factors side by side, each for its own rows."""
    inside = pieces[0][1].down.shape[1]
    outside = _features(name, layer, pieces, inside)
    columns = []
    for part, factor in pieces:
        start, length = part.rows(inside, outside)
        if factor.up.shape[0] != length or factor.down.shape[1] != inside:
            raise AdapterError(f"{name}: the parts of {layer} do not fit together; get the file again")
        whole = factor.up.new_zeros(outside, factor.rank)
        whole[start : start + length] = factor.up
        columns.append(scaled_exactly(whole, factor.scale))
    dtype = torch.float32 if any(up.dtype == torch.float32 for up in columns) else columns[0].dtype
    up, down = torch.cat([up.to(dtype) for up in columns], 1), torch.cat([f.down.to(dtype) for _, f in pieces])
    return Factor(down, up, float(len(down)), 1.0, layer)


def _features(name: str, layer: str, pieces: list[tuple[Part, Factor]], inside: int) -> int:
    """Return how many outputs the whole layer has, from its parts."""
    first, factor = pieces[0]
    if first.sizes == other_names.EQUAL:
        return factor.up.shape[0] * first.count
    last = next((each for part, each in pieces if part.index == first.count - 1), None)
    if last is None:
        raise AdapterError(
            f"{name}: ComfyUI has {layer} as one layer, whose size this file does not tell; leave the file as it is, "
            "since Load Glance LoRA reads its names"
        )
    others = inside + last.up.shape[0] if first.sizes == other_names.GROUPED else 3 * inside
    return others + last.up.shape[0]


def _renamed_biases(name: str, biases: Mapping[str, Bias], parts: Mapping[str, Part | None]) -> dict[str, Bias]:
    renamed = {}
    for module, bias in biases.items():
        part = parts[module]
        if part is not None and part.count > 1:
            raise AdapterError(
                f"{name}: {module} has a bias for a part of ComfyUI's {part.name}; leave the file as it is, since Load "
                "Glance LoRA reads its names"
            )
        if part is not None and part.swapped:
            bias = replace(bias, vector=other_names.swapped_halves(bias.vector))
        renamed[part.name if part else module] = bias
    return renamed
