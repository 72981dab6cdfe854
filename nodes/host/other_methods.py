"""Updates of other methods than plain LoRA, as the switch takes them: exactly what ComfyUI's merge of the file does.

ComfyUI's own adapter classes read the tensors and compute. What they make of a weight is used here without the weight:
additive ones as products with the input, orthogonal ones on the output, which they rotate as they would the weight.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.weight_adapter as host
import torch

from ...glance_core.change import (
    Change,
    InputLowRank,
    NormDifference,
    ParameterDifference,
    WeightDifference,
    is_norm,
)
from ...glance_core.errors import AdapterError
from ...glance_core.lora.factors import Other
from ...glance_core.low_rank import LowRank, features, is_convolution
from ...glance_core.switch import Update
from .host_changes import AddedByHost, Place, RotatedByHost

Tensor = torch.Tensor
_X = "x"  # stands for the module's name when ComfyUI's classes read its tensors
_BY_HAND = ("diff", "w_norm", "b_norm")  # which ComfyUI's loader reads itself


def updates_of_layer(place: Place, other: Other) -> tuple[Update, ...]:
    """Return the updates of a Linear, a convolution or a norm. Raises AdapterError for what cannot be exact."""
    differences = {ending: tensor for ending, tensor in other.tensors.items() if ending in _BY_HAND}
    if is_norm(place.layer):
        return (_norm_difference(place, other),)
    if features(place.layer) is None or differences.keys() - {"diff"}:
        raise AdapterError(
            f"{place.name} is a {type(place.layer).__name__}, which {other.method} cannot change in mid-run; use Load "
            "LoRA"
        )
    if differences:
        if other.tensors.keys() != {"diff"}:
            raise AdapterError(f"{place.name} has {_listed(other)}, which do not belong together; get the file again")
        return (_weight_difference(place, differences["diff"].float()),)
    adapter = _read(place, other)
    if isinstance(adapter, host.GLoRAAdapter):
        return _glora(place, adapter)
    if isinstance(adapter, (host.OFTAdapter, host.BOFTAdapter)):
        return (_rotation(place, adapter),)
    if isinstance(adapter, host.LoRAAdapter):
        return (_tucker(adapter),)
    return (_product(place, adapter),)


def update_of_parameter(name: str, owner: torch.nn.Module, parameter: str, other: Other, dtype: torch.dtype) -> Change:
    """Return the update of a parameter that is no layer's weight. Raises AdapterError if it is none."""
    own, difference = getattr(owner, parameter, None), other.tensors.get("diff")
    if not isinstance(own, Tensor) or difference is None or len(other.tensors) > 1 or own.shape != difference.shape:
        shape = tuple(own.shape) if isinstance(own, Tensor) else "no parameter"
        raise AdapterError(f"{name} is {shape} in the model, which {_listed(other)} cannot change; use Load LoRA")
    return ParameterDifference(parameter, difference.float(), dtype)


def _listed(other: Other) -> str:
    return ", ".join(f"{ending} {tuple(tensor.shape)}" for ending, tensor in sorted(other.tensors.items()))


def _does_not_fit(place: Place, other: Other | str) -> AdapterError:
    what = other if isinstance(other, str) else _listed(other)
    return AdapterError(
        f"{place.name} has a weight of {(place.rows, *place.shape[1:])}, which {what} does not fit; the file is for "
        "another model size"
    )


def _read(place: Place, other: Other) -> Any:
    """Return ComfyUI's adapter of these tensors."""
    tensors = {f"{_X}.{ending}": tensor for ending, tensor in other.tensors.items()}
    alpha = float(other.tensors["alpha"]) if "alpha" in other.tensors else None
    read: set[str] = {f"{_X}.alpha"}
    try:
        found = [a for kind in host.adapters if (a := kind.load(_X, tensors, alpha, None, read)) is not None]
    except KeyError as error:
        raise AdapterError(f"{place.name} lacks {str(error)[3:-1]}; the file is incomplete, get it again") from error
    if len(found) != 1 or tensors.keys() - read:
        raise AdapterError(f"{place.name} has {_listed(other)}, which ComfyUI does not read as one; use plain LoRA")
    return found[0]


def _norm_difference(place: Place, other: Other) -> Change:
    weights = [other.tensors[ending].float() for ending in ("w_norm", "diff") if ending in other.tensors]
    bias = other.tensors.get("b_norm")
    size = getattr(place.layer, "normalized_shape", None) or (getattr(place.layer, "num_channels", 0),)
    fits = all(tuple(each.shape) == tuple(size) for each in (*weights, *([] if bias is None else [bias])))
    fits = fits and (bias is None or getattr(place.layer, "bias", None) is not None)
    if len(weights) != 1 or other.tensors.keys() - set(_BY_HAND) or not fits:
        raise AdapterError(
            f"{place.name} is a norm of {tuple(size)}, which {_listed(other)} cannot change; use Load LoRA"
        )
    return NormDifference(weights[0], None if bias is None else bias.float(), place.dtype)


def _weight_difference(place: Place, difference: Tensor) -> Change:
    if difference.numel() != place.rows * math.prod(place.shape[1:]) or (
        is_convolution(place.layer) and not place.whole
    ):
        raise _does_not_fit(place, f"a difference of {tuple(difference.shape)}")
    return WeightDifference(difference.reshape(place.rows, *place.shape[1:]), place.dtype, place.start)


def _merged_into_zeros(place: Place, adapter: Any) -> Tensor:
    """Return what ComfyUI's merge adds to the weight, at strength 1."""
    zeros = torch.zeros(place.rows, *place.shape[1:])
    merged: Tensor = adapter.calculate_weight(zeros, place.name, 1.0, 1.0, None, lambda a: a)
    if not merged.any():  # it logs what went wrong, and returns the weight as it was
        raise _does_not_fit(place, adapter.name)
    return merged


def _tucker(adapter: Any) -> LowRank:
    """Return LoRA factors with a middle one between them as two, of which down has the kernel."""
    up, down, alpha, middle, *_ = adapter.weights
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    down = torch.einsum("oj...,ji->oi...", middle.float(), down.float().flatten(1))
    return LowRank(down, scale * up.float().flatten(1))


def _glora(place: Place, adapter: Any) -> tuple[Update, ...]:
    """Return W + W A + B as a map of the input and a low-rank update. Files have the factors in two orders."""
    a1, a2, b1, b2, alpha, _ = (t.float().flatten(1) if isinstance(t, Tensor) else t for t in adapter.weights)
    outside, inside = place.rows, place.shape[1]
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    if b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]:
        old = old and a2.shape[0] == outside == inside
    rank = a1.shape[0] if old else a2.shape[0]
    first, second, up, down = (a1, a2, b2, b1) if old else (a2, a1, b1, b2)
    scale = 1.0 if alpha is None else alpha / rank
    if not place.whole or first.shape != (rank, inside) or second.shape != (inside, rank):
        raise _does_not_fit(place, f"GLoRA of rank {rank} and {a1.shape[1]} features")
    return (
        InputLowRank(first, scale * second, place.dtype),
        LowRank(down.reshape(rank, *place.shape[1:]), scale * up),
    )


def _product(place: Place, adapter: Any) -> Update:
    """Return LoHa or LoKr. On a convolution it is the difference that it makes, since kernels are small."""
    if adapter.weights[-1] is not None:
        raise AdapterError(f"{place.name} belongs to DoRA, which cannot change in mid-run; use Load LoRA")
    if isinstance(adapter, host.LoKrAdapter):
        adapter = _plain_lokr(adapter)
        size = adapter.weights[0].numel() * adapter.weights[1].numel()
    else:
        first, second, *_ = adapter.weights
        size = math.prod((len(first), *second.shape[1:])) if adapter.weights[5] is None else -1
    if is_convolution(place.layer):
        if not place.whole:
            raise _does_not_fit(place, type(adapter).__name__)
        return WeightDifference(_merged_into_zeros(place, adapter), place.dtype)
    if size != place.rows * place.shape[1]:
        raise _does_not_fit(place, f"{adapter.name} of {size} numbers")
    if isinstance(adapter, host.LoHaAdapter):
        low_rank = _as_low_rank(adapter)
        if len(low_rank.down) * (place.rows + place.shape[1]) <= place.rows * place.shape[1]:
            return LowRank(low_rank.down, low_rank.up, place.start)
    return AddedByHost(adapter, place)


def _plain_lokr(adapter: Any) -> Any:
    """Return the adapter with its two Kronecker factors multiplied out and scaled as ComfyUI's merge does it."""
    w1, w2, alpha, w1_a, w1_b, w2_a, w2_b, t2, dora = (
        t.float() if isinstance(t, Tensor) else t for t in adapter.weights
    )
    rank = None
    if w1 is None:
        rank, w1 = len(w1_b), w1_a @ w1_b
    if w2 is None:
        rank = len(w2_b)
        w2 = w2_a @ w2_b if t2 is None else torch.einsum("ijkl,jr,ip->prkl", t2, w2_b, w2_a)
    scale = alpha / rank if alpha is not None and rank is not None else 1.0
    w1, w2 = (scale * w1).contiguous(), w2.contiguous()  # ComfyUI's merge of Tucker factors fails for others
    return host.LoKrAdapter(adapter.loaded_keys, (w1, w2, None, None, None, None, None, None, dora))


def _as_low_rank(adapter: Any) -> LowRank:
    """Return LoHa as factors whose rank is the product of its two: (a b) * (c d) is the sum of (a_i c_j) (b_i d_j)."""
    a, b, alpha, c, d, *_ = adapter.weights
    scale = 1.0 if alpha is None else alpha / len(b)
    up = torch.einsum("oi,oj->oij", a.float(), c.float()).flatten(1)
    down = torch.einsum("in,jn->ijn", b.float(), d.float()).flatten(0, 1)
    return LowRank(down, scale * up)


def _rotation(place: Place, adapter: Any) -> Change:
    """Return OFT or BOFT."""
    blocks, rescale, alpha, dora = adapter.weights
    *_, number, size, _ = blocks.shape
    if number * size != place.rows or dora is not None:
        raise _does_not_fit(place, f"{adapter.name} with {number} blocks of {size}")
    if rescale is not None and (isinstance(adapter, host.OFTAdapter) or rescale.numel() != place.rows):
        raise AdapterError(
            f"{place.name} has a rescale, which ComfyUI's merge of {adapter.name} does not use; use Load LoRA"
        )
    rescale = None if rescale is None else rescale.float().reshape(-1, 1)
    return RotatedByHost(type(adapter)(set(), (blocks.float(), rescale, alpha or 0, None)), place)
