"""Frozen Linear layers in training: backward keeps no weight, and a branch costs one mm and one in-place addmm.

    y = base(x);  y[..., rows] += scale * (x @ A') @ B'

Autograd itself would keep a cast copy of every fp8, offloaded or streamed weight until backward. PEFT's own forward
makes two full-size temporaries and, beside a bf16 base, an fp32 copy of the input. Here A and B stay fp32 and are cast
where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# with weight_of(layer, like) as weight: its weight (out, in) on the device of `like`, in that dtype or as it is stored.
WeightOf = Callable[[nn.Module, Tensor], AbstractContextManager[Tensor]]
_NUMBERS_PER_CAST = 2_000_000  # of a weight, cast at a time on a CPU


@contextmanager
def plain_weight(layer: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """Yield the weight of a layer that holds it as it is."""
    yield layer.get_parameter("weight")


@dataclass(frozen=True)
class Part:
    """Which rows of the output one branch writes, and its alpha / rank."""

    start: int
    length: int
    scale: float


@dataclass(frozen=True)
class Layer:
    """A frozen Linear: its own forward, how to get its weight (None if only its forward is known), and its branches."""

    module: nn.Module
    forward: Callable[..., Tensor]
    weight_of: WeightOf | None
    parts: tuple[Part, ...] = ()


class FrozenLinear(torch.autograd.Function):
    """apply(x, layer, A1, B1, A2, B2, ...): x (..., in), A (r, in), B (length, r) -> (..., out).

    Differentiable in x and in the factors.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, *factors: Tensor) -> Tensor:
        y = layer.forward(x)
        if y._is_view():  # torch's linear returns a view, and a model could not write into a view that comes from here
            y = torch.ops.aten._unsafe_view(y, y.shape)
        ctx.layer = layer
        if not factors:
            ctx.shape = x.shape
            if layer.weight_of is None:
                ctx.save_for_backward(x)
            return y
        y = y.contiguous()
        hidden = x.reshape(-1, x.shape[-1]) @ _stacked(factors[::2], x.dtype).t()  # (T, sum of r)
        rows = y.view(-1, y.shape[-1])  # (T, out)
        for part, own, up in _branches(layer, hidden, factors):
            rows[:, part.start : part.start + part.length].addmm_(own.to(y.dtype), up.to(y.dtype).t(), alpha=part.scale)
        ctx.save_for_backward(x, hidden, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer: Layer = ctx.layer
        if not layer.parts:
            x = ctx.saved_tensors[0] if ctx.saved_tensors else grad.new_empty(ctx.shape)
            return _input_gradient(layer, x, grad), None
        x, hidden, *factors = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])  # (T, out)
        rows = x.reshape(-1, x.shape[-1])  # (T, in)
        into_hidden = torch.empty_like(hidden)
        gradients: list[Tensor | None] = []
        at = 0
        for part, own, up in _branches(layer, hidden, factors):
            given = flat[:, part.start : part.start + part.length].to(hidden.dtype)
            into_hidden[:, at : at + up.shape[1]] = (given @ up.to(given.dtype)).mul_(part.scale)
            gradients += [None, (given.t() @ own).mul_(part.scale).to(up.dtype)]
            at += up.shape[1]
        downs = torch.split(into_hidden.t() @ rows, [down.shape[0] for down in factors[::2]])
        gradients[::2] = [gradient.to(down.dtype) for gradient, down in zip(downs, factors[::2], strict=True)]
        if not ctx.needs_input_grad[0]:
            return None, None, *gradients
        into = _input_gradient(layer, x, grad)
        into.view(-1, into.shape[-1]).addmm_(into_hidden, _stacked(factors[::2], hidden.dtype))
        return into, None, *gradients


class Recomputed(torch.autograd.Function):
    """apply(x, forward): a layer whose backward runs its forward again, so that only x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.forward = forward
        ctx.save_for_backward(x)
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _vector_jacobian(ctx.forward, x, grad), None


def _stacked(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return downs[0].to(dtype) if len(downs) == 1 else torch.cat([down.to(dtype) for down in downs])


def _branches(layer: Layer, hidden: Tensor, factors: Sequence[Tensor]) -> Iterator[tuple[Part, Tensor, Tensor]]:
    """Yield (part, its columns of hidden (T, r), its B)."""
    ups = factors[1::2]
    yield from zip(layer.parts, torch.split(hidden, [up.shape[1] for up in ups], dim=1), ups, strict=True)


def _input_gradient(layer: Layer, x: Tensor, grad: Tensor) -> Tensor:
    """Return grad @ W (..., in), in x's dtype."""
    if layer.weight_of is None:
        return _vector_jacobian(layer.forward, x, grad)
    flat = grad.reshape(-1, grad.shape[-1])
    with layer.weight_of(layer.module, grad) as weight:
        if weight.dtype == grad.dtype or weight.device.type != "cpu":
            return (flat @ weight.to(grad)).reshape(x.shape).to(x.dtype)
        # A CPU casts as slowly as it multiplies, unless the part stays in its cache.
        into = flat.new_zeros(len(flat), weight.shape[1])
        rows = max(1, _NUMBERS_PER_CAST // weight.shape[1])
        for part, own in zip(torch.split(flat, rows, dim=1), torch.split(weight, rows), strict=True):
            into.addmm_(part, own.to(grad.dtype))
        return into.reshape(x.shape).to(x.dtype)


def _vector_jacobian(forward: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    with torch.enable_grad():
        inner = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(forward(inner), inner, grad)
    return gradient
