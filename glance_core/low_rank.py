"""Low-rank branches: the tensors of one target's updates, and how they are added to the output of its module.

y = base(x);  y[..., rows] += (x @ down') @ up' + bias       one mm and one in-place addmm per target
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import SwitchError


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of one target: rows start .. start + out of its output get up @ down @ x + bias.

    down: (r, in), or (r, in, *kernel) for a convolution; r may be 0. up: (out, r), with strength and scale folded in.
    bias: (out,), with them folded in too.
    """

    down: Tensor
    up: Tensor
    start: int = 0
    bias: Tensor | None = None


class Branch(nn.Module):
    """All low-rank updates of one phase on one target: downs stacked, ups transposed, in one dtype.

    Several updates (the three parts of a fused qkv) share one mm over their stacked downs.
    """

    def __init__(self, updates: Sequence[LowRank], dtype: torch.dtype):
        super().__init__()
        stacked = torch.cat([u.down.to(dtype) for u in updates])  # always a copy: a mapped file may change on disk
        self.down = nn.Parameter(stacked, requires_grad=False)  # (sum of r, in[, *kernel])
        for i, update in enumerate(updates):  # own parameters: hosts place leaf modules, not containers in between
            up = update.up.flatten(1).t().to(dtype, copy=True, memory_format=torch.contiguous_format)
            self.register_parameter(f"up{i}", nn.Parameter(up, requires_grad=False))  # (r, out)
            if update.bias is not None:
                bias = update.bias.to(dtype, copy=True)
                self.register_parameter(f"bias{i}", nn.Parameter(bias, requires_grad=False))  # (out,)
        for tensor in self.parameters():
            if not torch.isfinite(tensor).all():
                raise SwitchError(f"a LoRA factor overflows {dtype}, the model's dtype; lower the strength")
        self.starts = tuple(u.start for u in updates)

    def on(self, device: torch.device) -> Bound:
        """Return the tensors on `device`, without a copy if they are there already."""
        places = range(len(self.starts))
        ups = tuple(self.get_parameter(f"up{i}").detach().to(device) for i in places)
        held = [i for i in places if f"bias{i}" in self._parameters]
        biases = tuple((self.starts[i], self.get_parameter(f"bias{i}").detach().to(device)) for i in held)
        return Bound(self.down.detach().to(device), ups, self.starts, biases)


class Bound:
    """A branch's tensors on one device: down (R, in[, *kernel]), and ups (r, out) for the rows from each start.

    biases: (start, bias (out,)) of the updates that have one.
    """

    __slots__ = ("biases", "down", "starts", "ups")

    def __init__(
        self,
        down: Tensor,
        ups: tuple[Tensor, ...],
        starts: tuple[int, ...],
        biases: tuple[tuple[int, Tensor], ...] = (),
    ):
        self.down, self.ups, self.starts, self.biases = down, ups, starts, biases


def check_update(module: nn.Module, name: str, update: LowRank) -> None:
    """Raise SwitchError if the update cannot be added to the module's output."""
    convolution = is_convolution(module)
    inside, outside = features(module)
    if inside is None or outside is None:
        return  # a Linear of an unknown kind; its forward will raise if it does not fit
    fits = update.down.shape[1] == inside and update.start + update.up.shape[0] <= outside
    if convolution:
        fits = fits and update.down.shape[2:] == module.kernel_size
        fits = fits and getattr(module, "groups", 1) == 1 and update.start == 0
    if not fits or (update.down.ndim > 2 and not convolution):
        rows = f"rows {update.start}..{update.start + update.up.shape[0]}"
        raise SwitchError(
            f"{name} takes {inside} and gives {outside} features, but the adapter's factors are "
            f"{tuple(update.down.shape)} and {tuple(update.up.shape)} for {rows}; the adapter is for another model size"
        )


def features(module: nn.Module) -> tuple[int | None, int | None]:
    """Return a layer's (inputs, outputs); (None, None) for a layer of an unknown kind."""
    weight = getattr(module, "weight", None)
    packed = getattr(weight, "quant_state", None)  # four bits, as bitsandbytes packs them
    plain = weight if isinstance(weight, Tensor) and weight.is_floating_point() and weight.ndim == 2 else None
    outside, inside = (*getattr(plain if packed is None else packed, "shape", ()), None, None)[:2]
    return (
        getattr(module, "in_features", getattr(module, "in_channels", inside)),
        getattr(module, "out_features", getattr(module, "out_channels", outside)),
    )


def is_convolution(module: nn.Module) -> bool:
    """Return whether the module is a convolution, whose features are dimension 1."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def add_linear(module: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> Tensor:
    """Return a Linear's output y (..., out) with the branch added, in place where autograd does not need y."""
    down = bound.down
    if down.dtype != x.dtype:  # a module that the host runs in another dtype than the rest
        down = down.to(x.dtype)
    hidden = torch.mm(x.reshape(-1, x.shape[-1]), down.t())  # (B T, R)
    if y.requires_grad or hidden.requires_grad or not y.is_contiguous():
        return _add_out_of_place(y, hidden, bound)
    rows = y.view(-1, y.shape[-1])  # (B T, out), the same memory
    at = 0
    for start, up in zip(bound.starts, bound.ups, strict=True):
        rank, out = up.shape
        part = hidden if rank == hidden.shape[1] else hidden[:, at : at + rank]
        into = rows if out == rows.shape[1] else rows[:, start : start + out]
        into.addmm_(part.to(y.dtype), up.to(y.dtype))
        at += rank
    for start, bias in bound.biases:
        rows[:, start : start + len(bias)] += bias.to(y.dtype)
    return y


def _add_out_of_place(y: Tensor, hidden: Tensor, bound: Bound) -> Tensor:
    """Return the same sum without writing into the base's output, which autograd may need."""
    update = torch.zeros_like(y).reshape(-1, y.shape[-1])
    at = 0
    for start, up in zip(bound.starts, bound.ups, strict=True):
        rank, out = up.shape
        part = update[:, start : start + out] + hidden[:, at : at + rank].to(y.dtype) @ up.to(y.dtype)
        update = update.slice_scatter(part, dim=1, start=start, end=start + out)
        at += rank
    for start, bias in bound.biases:
        end = start + len(bias)
        update = update.slice_scatter(update[:, start:end] + bias.to(y.dtype), dim=1, start=start, end=end)
    return y + update.view_as(y)


def add_convolution(module: Any, x: Tensor, y: Tensor, bound: Bound) -> Tensor:
    """Return a convolution's output with the branch added: down as the module itself convolves, up as a 1 x 1 one.

    The module's own `_conv_forward` knows its padding, circular too, also where somebody replaced it (seamless tiling).
    """
    up = torch.cat(bound.ups) if len(bound.ups) > 1 else bound.ups[0]  # (R, out)
    hidden = module._conv_forward(x, bound.down.to(x.dtype), None)  # (B, R, *out)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
    weight = up.t().reshape(up.shape[1], up.shape[0], *(1,) * (x.ndim - 2)).to(hidden.dtype)
    update = convolve(hidden, weight)  # (B, out, *out)
    for _, bias in bound.biases:
        update = update + bias.to(update.dtype).view(-1, *(1,) * (x.ndim - 2))
    return y + update.to(y.dtype)
