"""Find an adapter's modules in a MODEL, by ComfyUI's own key map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import torch

from ...glance_core.change import NormDifference, is_norm
from ...glance_core.errors import AdapterError
from ...glance_core.lora.factors import Bias, Factor, Other
from ...glance_core.lora.keys import spellings, without_compiler
from ...glance_core.lora.other_names import host_part, swapped_halves
from ...glance_core.lora.reader import Adapter
from ...glance_core.lora.slots import is_linear
from ...glance_core.low_rank import LowRank, check_update, features, is_convolution
from ...glance_core.models import KNOWN_BY_NAMES
from ...glance_core.switch import Update, find_module
from .base_model import base_of, compute_dtype, describe
from .other_methods import Place, update_of_parameter, updates_of_layer


@dataclass(frozen=True)
class Matched:
    """An adapter's updates by module (path from the model's root), how many modules matched, and those that did not."""

    updates: Mapping[str, tuple[Update, ...]]
    modules: int
    unmatched: tuple[str, ...]


@dataclass(frozen=True)
class _Target:
    """A weight of the model: (dim, start, length) if only some rows are meant, and how ComfyUI rearranges them."""

    weight: str
    rows: tuple[int, int, int] | None = None
    rearrange: Any = None


def key_map(patcher: Any) -> dict[str, Any]:
    """Return ComfyUI's map from the names that a LoRA may use to the model's weights, or to parts of them.

    A block that some node compiled has `_orig_mod.` in its names; files do not, and paths lead through it without.
    """
    found = comfy.lora.model_lora_keys_unet(patcher.model, {})
    return {without_compiler(name): _uncompiled(target) for name, target in found.items()}


def _uncompiled(target: Any) -> Any:
    return without_compiler(target) if isinstance(target, str) else (without_compiler(target[0]), *target[1:])


def match(adapter: Adapter, patcher: Any, keys: Mapping[str, Any]) -> Matched:
    """Return the adapter's updates for this model, in its compute dtype.

    The scale goes into `up` in float32, before both factors are cast.

    Args:
        keys: of `key_map`.

    Raises:
        AdapterError: if the adapter is for another base model or size.
    """
    check_base(adapter, patcher)
    dtype = compute_dtype(patcher)
    updates: dict[str, list[Update]] = {}
    unmatched: dict[str, None] = {}
    for module, part in [*adapter.factors.items(), *adapter.biases.items(), *adapter.others.items()]:
        name, target = f"{adapter.name}: {module}", _find(keys, part.source, module)
        if isinstance(part, Other) and target is not None and not target.weight.endswith(".weight"):
            owner, _, parameter = target.weight.rpartition(".")
            found = update_of_parameter(name, find_module(patcher.model, owner), parameter, part, dtype)
            updates.setdefault(owner, []).append(found)
            continue
        if target is None or not target.weight.endswith(".weight"):
            target = _find_by_other_name(keys, patcher, module)
        if target is None:
            unmatched[module] = None
            continue
        path = target.weight.removesuffix(".weight")
        layer = find_module(patcher.model, path)
        for update in _updates(name, part, layer, target, dtype):
            if isinstance(update, LowRank):
                check_update(layer, name, update)
                _check_width(name, patcher.patches.get(target.weight), layer, update)
                update = replace(update, down=update.down.to(dtype), up=update.up.to(dtype))
            updates.setdefault(path, []).append(update)
    modules = adapter.factors.keys() | adapter.biases.keys() | adapter.others.keys()
    matched = len(modules) - len(unmatched)
    if matched == 0 or matched < len(unmatched):
        count = f"only {matched}" if matched else "none"
        fits = base_of(patcher).name in adapter.bases
        way_out = (
            "its layers have other names or sizes than the file's; load the model as it was for the file"
            if fits
            else "load a file made for this model"
        )
        raise AdapterError(
            f"{adapter.name} does not fit the model: {count} of its {len(modules)} modules ({_bases(adapter)}; "
            f"the first not found is {next(iter(unmatched))}) are in this {describe(patcher)}; {way_out}"
        )
    return Matched({path: tuple(found) for path, found in updates.items()}, matched, tuple(unmatched))


def _updates(
    name: str, part: Factor | Bias | Other, layer: torch.nn.Module, target: _Target, dtype: torch.dtype
) -> tuple[Update, ...]:
    """Return what one part of an adapter does to a layer."""
    if isinstance(part, Factor):
        _check_kind(name, layer)
        return (_update(name, _shaped(part, layer), target),)
    if isinstance(part, Bias):
        if is_norm(layer) and getattr(layer, "bias", None) is not None and len(part.vector) == len(layer.bias):
            return (NormDifference(None, part.scale * part.vector.float(), dtype),)
        return (_bias_update(name, part, layer, target),)
    if target.rearrange is not None or (target.rows and target.rows[0] != 0):
        raise AdapterError(f"{name} is rearranged by ComfyUI in a way that {part.method} cannot follow; use Load LoRA")
    _, start, rows = target.rows or (0, 0, (features(layer) or (0, 0))[1])
    return updates_of_layer(Place(name, layer, start, rows, dtype), part)


def _check_width(name: str, patches: Any, layer: torch.nn.Module, update: LowRank) -> None:
    """Raise AdapterError if another LoRA on the MODEL changes the width of the layer, as control LoRAs do."""
    shape = comfy.lora.calculate_shape(patches, layer.weight, name) if patches else ()
    if len(shape) > 1 and shape[1] != update.down.shape[1]:
        raise AdapterError(
            f"{name} takes {update.down.shape[1]} features, but another LoRA on the model widens this layer to "
            f"{shape[1]}; leave that LoRA out, or this layer of the pair"
        )


def check_base(adapter: Adapter, patcher: Any) -> None:
    """Raise AdapterError if the adapter belongs to another base, even if some of its modules fit by name and size."""
    base = base_of(patcher)
    stated = adapter.pair.base is not None
    fits = not adapter.bases.isdisjoint((base.name, *base.earlier_names))
    if adapter.bases and not fits and (stated or base.name in KNOWN_BY_NAMES):
        raise AdapterError(
            f"{adapter.name} is a {_bases(adapter)} adapter but the model is a {describe(patcher)}; load a file made "
            f"for {base.name}"
        )


def _bases(adapter: Adapter) -> str:
    return "/".join(sorted(adapter.bases)) or "base model not known"


def _find(keys: Mapping[str, Any], source: str, module: str) -> _Target | None:
    """Return the weight that ComfyUI's map has for a module; a tuple there names a part of it."""
    found = next((keys[name] for name in spellings(source, module) if name in keys), None)
    if found is None:
        return None
    if isinstance(found, str):
        target = _Target(found)
    else:
        target = _Target(found[0], found[1], found[2] if len(found) > 2 else None)
    return target


def _find_by_other_name(keys: Mapping[str, Any], patcher: Any, module: str) -> _Target | None:
    """Return the weight of a module that ComfyUI's map does not have, by a name that others give it."""
    part = host_part(base_of(patcher).name, module)
    weight = keys.get(f"diffusion_model.{part.name}") if part else None
    if part is None or not isinstance(weight, str) or not weight.endswith(".weight"):
        return None
    if part.count == 1:
        return _Target(weight, None, swapped_halves if part.swapped else None)
    layer = find_module(patcher.model, weight.removesuffix(".weight"))
    sizes = features(layer)
    return None if sizes is None else _Target(weight, (0, *part.rows(*sizes)))


def _shaped(factor: Factor, layer: torch.nn.Module) -> Factor:
    """Return the factor in the layer's dimensions: trainers flatten convolutions, and write Linears as 1 x 1 ones."""
    kernel = getattr(layer, "kernel_size", None)
    down = factor.down
    if kernel is None:
        down = down.flatten(1) if math.prod(down.shape[2:]) == 1 else down
    elif down.ndim == 2 and down.shape[1] % math.prod(kernel) == 0:
        down = down.reshape(len(down), -1, *kernel)
    return replace(factor, down=down)


def _check_kind(name: str, layer: torch.nn.Module) -> None:
    """Raise AdapterError for a layer that does not multiply its input by a matrix, as norms and embeddings."""
    weight = getattr(layer, "weight", None)
    vector = isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.ndim < 2
    if features(layer) is None and (isinstance(layer, torch.nn.Embedding) or vector):
        raise AdapterError(
            f"{name} is a {type(layer).__name__}, whose weight cannot switch phases; use a file without this layer"
        )


def _bias_update(name: str, bias: Bias, layer: torch.nn.Module, target: _Target) -> LowRank:
    """Return an update without factors that adds the vector to the layer's output."""
    sizes = features(layer) if is_linear(layer) or is_convolution(layer) else None
    if sizes is None:
        raise AdapterError(
            f"{name} is a {type(layer).__name__}, whose bias cannot switch phases; convert the file to plain LoRA first"
        )
    vector = bias.vector.float() * bias.scale
    down = vector.new_zeros(0, sizes[0], *getattr(layer, "kernel_size", ()))
    empty = Factor(down, vector.new_zeros(len(vector), 0), None, 1.0, bias.source)
    moved = vector if target.rearrange is None else target.rearrange(vector)
    return replace(_update(name, empty, target), bias=moved)


def _update(name: str, factor: Factor, target: _Target) -> LowRank:
    up = factor.up.float() * factor.scale
    if target.rearrange is not None:
        moved = target.rearrange(up)
        down = factor.down.float().flatten(1)
        if not torch.allclose(target.rearrange(up.flatten(1) @ down), moved.flatten(1) @ down, atol=1e-6):
            raise AdapterError(
                f"{name} is rearranged by ComfyUI in a way that a low-rank branch cannot follow; merge this LoRA "
                "instead"
            )
        up = moved
    if target.rows is None:
        return LowRank(factor.down, up)
    dim, start, length = target.rows
    if dim != 0 or up.shape[0] != length:
        raise AdapterError(
            f"{name} gives {up.shape[0]} features where the model has {length}; the adapter is for another size"
        )
    return LowRank(factor.down, up, start)
