"""Updates of a module that are not low-rank: what the switch asks of them, and those that need nothing but torch.

Each is exact for what it states, and none reads or writes the base's weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import SwitchError
from .low_rank import usable

Before = Callable[[Tensor], Tensor]  # what the module returns without this change and those after it


class BoundChange(Protocol):
    """A change on one device, with its strength."""

    def answer(self, module: nn.Module, x: Tensor, before: Before) -> Tensor:
        """Return the changed output of the module for x."""
        ...


class Change(nn.Module):
    """A change of one module, as an nn.Module whose own parameters are its tensors. Subclasses define `bind`."""

    def keep(self, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        """Make a copy of the tensor a parameter."""
        copied = tensor.to(dtype, copy=True)
        if not torch.isfinite(copied).all():
            raise SwitchError(f"an adapter's tensor overflows {dtype}; run the model in bfloat16 or float32")
        self.register_parameter(name, nn.Parameter(copied, requires_grad=False))

    def on(self, device: torch.device, strengths: Sequence[float]) -> tuple[tuple[BoundChange, ...], ...]:
        """Return what answers in each phase, empty where the strength is 0."""
        tensors = {name: usable(tensor, device) for name, tensor in self.named_parameters()}
        return tuple((self.bind(tensors, strength),) if strength else () for strength in strengths)

    def bind(self, tensors: dict[str, Tensor], strength: float) -> BoundChange:
        """Return the change with its tensors on the device."""
        raise NotImplementedError


class WeightDifference(Change):
    """The difference of a Linear's weight, (out, in), or of a convolution's, (out, in, *kernel).

    start: the first row that it changes.
    """

    def __init__(self, difference: Tensor, dtype: torch.dtype, start: int = 0):
        super().__init__()
        self.start = start
        self.keep("difference", difference, dtype)

    def bind(self, tensors: dict[str, Tensor], strength: float) -> BoundChange:
        return _WeightDifference(tensors["difference"], self.start, strength)


@dataclass(frozen=True)
class _WeightDifference:
    difference: Tensor
    start: int
    strength: float

    def answer(self, module: Any, x: Tensor, before: Before) -> Tensor:
        if self.difference.ndim > 2:
            added: Tensor = module._conv_forward(x, self.difference.to(x.dtype), None)
            return add_rows(before(x), added, self.start, self.strength, dim=1)
        return add_rows(before(x), nn.functional.linear(x, self.difference.to(x.dtype)), self.start, self.strength)


class NormDifference(Change):
    """The difference of a normalisation layer's weight and bias, each (n,), or None for no difference."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                self.keep(name, tensor, dtype)

    def bind(self, tensors: dict[str, Tensor], strength: float) -> BoundChange:
        return BoundNormDifference(tensors.get("weight"), tensors.get("bias"), strength)


@dataclass(frozen=True)
class BoundNormDifference:
    """The same on one device, with its strength."""

    weight: Tensor | None
    bias: Tensor | None
    strength: float

    def changed(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the changed weight and bias."""
        if self.weight is not None:
            weight = weight + self.strength * self.weight.to(weight)
        if self.bias is not None and bias is not None:
            bias = bias + self.strength * self.bias.to(bias)
        return weight, bias

    def answer(self, module: Any, x: Tensor, before: Before) -> Tensor:
        """Return the output of the changed norm for x."""
        y = before(x)
        weight, bias = (None if each is None else self.strength * each.to(y) for each in (self.weight, self.bias))
        if isinstance(module, nn.LayerNorm):
            zero = torch.zeros(module.normalized_shape, dtype=y.dtype, device=y.device)
            return y + nn.functional.layer_norm(x, module.normalized_shape, _or(weight, zero), bias, module.eps)
        if isinstance(module, nn.GroupNorm):
            zero = torch.zeros(module.num_channels, dtype=y.dtype, device=y.device)
            return y + nn.functional.group_norm(x, module.num_groups, _or(weight, zero), bias, module.eps)
        return y if weight is None else y + nn.functional.rms_norm(x, module.normalized_shape, weight, module.eps)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor


def is_norm(module: nn.Module) -> bool:
    """Return whether the module is a normalisation layer that NormDifference knows."""
    return isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))


class InputLowRank(Change):
    """A low-rank map of the input: the module then answers x + strength up @ down @ x, as in GLoRA's W + W A.

    down: (r, in). up: (in, r), with the adapter's scale folded in. The input's features are its last dimension, or
    dimension 1 for a convolution.
    """

    def __init__(self, down: Tensor, up: Tensor, dtype: torch.dtype):
        super().__init__()
        self.keep("down", down, dtype)
        self.keep("up", up, dtype)

    def bind(self, tensors: dict[str, Tensor], strength: float) -> BoundChange:
        return _InputLowRank(tensors["down"], tensors["up"], strength)


@dataclass(frozen=True)
class _InputLowRank:
    down: Tensor
    up: Tensor
    strength: float

    def answer(self, module: nn.Module, x: Tensor, before: Before) -> Tensor:
        last = x.movedim(1, -1) if hasattr(module, "_conv_forward") else x
        added = (last @ self.down.to(x.dtype).t()) @ self.up.to(x.dtype).t()
        return before(x + self.strength * (added.movedim(-1, 1) if last is not x else added))


class ParameterDifference(Change):
    """The difference of a module's parameter that is no weight of a layer, like the modulation of a block.

    While the module runs, the changed tensor lies in front of the parameter. The parameter itself stays as it is.
    """

    def __init__(self, name: str, difference: Tensor, dtype: torch.dtype):
        super().__init__()
        self.name = name
        self.keep("difference", difference, dtype)

    def bind(self, tensors: dict[str, Tensor], strength: float) -> BoundChange:
        return _ParameterDifference(self.name, tensors["difference"], strength)


@dataclass(frozen=True)
class _ParameterDifference:
    name: str
    difference: Tensor
    strength: float

    def answer(self, module: nn.Module, x: Tensor, before: Before) -> Tensor:
        own: Tensor = getattr(module, self.name)
        outer = module.__dict__.get(self.name)
        module.__dict__[self.name] = own + self.strength * self.difference.to(own)
        try:
            return before(x)
        finally:
            if outer is None:
                del module.__dict__[self.name]
            else:
                module.__dict__[self.name] = outer


def add_rows(y: Tensor, added: Tensor, start: int, strength: float, dim: int = -1) -> Tensor:
    """Return y with strength * added in its features from `start` on."""
    added = added.to(y.dtype)
    if added.shape[dim] == y.shape[dim]:
        return torch.add(y, added, alpha=strength)
    part = torch.add(y.narrow(dim, start, added.shape[dim]), added, alpha=strength)
    return y.slice_scatter(part, dim=dim, start=start, end=start + added.shape[dim])
