"""Low-rank branches: the tensors of one target's updates, and how they are added to the output of its module.

y = base(x);  y[..., rows] += strength (x @ down') @ up' + strength bias      one mm and one in-place addmm per target
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import SwitchError


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of one target: rows start .. start + out of its output get up @ down @ x + bias.

    down: (r, in), or (r, in, *kernel) for a convolution; r may be 0. up: (out, r), with the adapter's scale folded in.
    bias: (out,), with it folded in too.
    """

    down: Tensor
    up: Tensor
    start: int = 0
    bias: Tensor | None = None


@dataclass(frozen=True)
class _Part:
    """Where one update lies in a branch: columns first .. last of x @ down', and rows from `row` on of up number `up`.

    adapter: whose it is. start: its first row in the target's output. bias: the name of its bias, "" without one.
    """

    adapter: int
    first: int
    last: int
    up: int
    row: int
    start: int
    bias: str


@dataclass(frozen=True)
class Term:
    """One product that is added: strength (hidden[:, columns] @ up) into the output's rows from `start` on.

    up: (r, out). scales: (r,), in place of one strength, for adapters that answer with different ones.
    """

    columns: slice
    up: Tensor
    start: int
    strength: float
    scales: Tensor | None = None

    def hidden(self, of_all: Tensor) -> Tensor:
        """Return this term's columns (B T, r) of x @ down' of all terms (B T, R)."""
        own = of_all if len(self.up) == of_all.shape[1] else of_all[:, self.columns]
        return own if self.scales is None else own * self.scales


@dataclass(frozen=True)
class Bound:
    """What answers on one device in one phase: down (R, in[, *kernel]), and the terms that share x @ down'.

    biases: (start, bias (out,), strength).
    """

    down: Tensor
    terms: tuple[Term, ...]
    biases: tuple[tuple[int, Tensor, float], ...] = ()


class Branch(nn.Module):
    """The low-rank updates of all adapters on one target: downs stacked, ups transposed and stacked, in one dtype.

    Adapters that change the same rows share one `up`, and so one mm and one addmm if they answer together. The parts
    of a fused qkv share the mm.

    adapters: each adapter's updates of this target.
    """

    def __init__(self, adapters: Sequence[Sequence[LowRank]], dtype: torch.dtype):
        super().__init__()
        every = [(adapter, update) for adapter, updates in enumerate(adapters) for update in updates]
        stacked = torch.cat([update.down.to(dtype) for _, update in every])  # always a copy: a mapped file may change
        self.down = nn.Parameter(stacked, requires_grad=False)  # (R, in[, *kernel])
        self._parts: list[_Part] = []
        last = 0
        for at, (_, group) in enumerate(groupby(every, key=lambda each: (each[1].start, len(each[1].up)))):
            members, row = list(group), 0
            for adapter, update in members:
                first, last = last, last + len(update.down)
                bias = f"bias{len(self._parts)}" if update.bias is not None else ""
                if update.bias is not None:  # own parameters: hosts place leaf modules, not containers in between
                    copied = update.bias.to(dtype, copy=True)
                    self.register_parameter(bias, nn.Parameter(copied, requires_grad=False))  # (out,)
                self._parts.append(_Part(adapter, first, last, at, row, update.start, bias))
                row += last - first
            ups = torch.cat([update.up.flatten(1).t().to(dtype) for _, update in members]).contiguous()
            self.register_parameter(f"up{at}", nn.Parameter(ups, requires_grad=False))  # (r, out)
        for tensor in self.parameters():
            if not torch.isfinite(tensor).all():
                raise SwitchError(
                    f"a LoRA factor overflows {dtype}, the model's dtype; run the model in bfloat16 or float32"
                )

    def on(self, device: torch.device, phases: Sequence[Sequence[float]]) -> tuple[tuple[Bound, ...], ...]:
        """Return what answers in each phase, empty if nothing does, without a copy of tensors that are there already.

        Args:
            phases: for each phase, the strength of each adapter.
        """
        tensors = {name: usable(tensor, device) for name, tensor in self.named_parameters()}
        return tuple(
            tuple(_bound(tensors, parts, strengths) for parts in self._answering(strengths)) for strengths in phases
        )

    def _answering(self, strengths: Sequence[float]) -> Iterator[list[_Part]]:
        """Yield the parts with a strength, those whose columns follow each other together."""
        parts: list[_Part] = []
        for part in self._parts:
            if strengths[part.adapter] == 0:
                continue
            if parts and part.first != parts[-1].last:
                yield parts
                parts = []
            parts.append(part)
        if parts:
            yield parts


def usable(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, without a copy if it is there already and autograd can save it if it must."""
    moved = tensor.detach().to(device)
    return moved.clone() if moved.is_inference() and not torch.is_inference_mode_enabled() else moved


def _bound(tensors: Mapping[str, Tensor], parts: Sequence[_Part], strengths: Sequence[float]) -> Bound:
    begin = parts[0].first
    terms = []
    for at, group in groupby(parts, key=lambda part: part.up):
        members = list(group)
        ranks = [part.last - part.first for part in members]
        if not any(ranks):  # biases alone
            continue
        first, row, own = members[0].first - begin, members[0].row, [strengths[part.adapter] for part in members]
        up = tensors[f"up{at}"][row : row + sum(ranks)]
        term = Term(slice(first, first + sum(ranks)), up, members[0].start, own[0])
        if len(set(own)) > 1:
            scales = torch.tensor(own).repeat_interleave(torch.tensor(ranks)).to(up)
            term = replace(term, strength=1.0, scales=scales)
        terms.append(term)
    biases = tuple((part.start, tensors[part.bias], strengths[part.adapter]) for part in parts if part.bias)
    return Bound(tensors["down"][begin : parts[-1].last], tuple(terms), biases)


def check_update(module: nn.Module, name: str, update: LowRank) -> None:
    """Raise SwitchError if the update cannot be added to the module's output."""
    convolution, sizes = is_convolution(module), features(module)
    if sizes is None:
        return  # a Linear of an unknown kind, which `check_call` looks at in its first call
    inside, outside = sizes
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


def linear_features(module: nn.Module) -> tuple[int, int] | None:
    """Return how many features a Linear takes and gives; None if this is not one, or does not say.

    The shape of a packed weight says nothing. bitsandbytes (NF4) keeps that of the numbers beside it, and the Linears
    that ComfyUI gets with it have no other sizes.
    """
    if (sizes := _stated(module, "in_features", "out_features")) is not None:
        return sizes
    shape = getattr(getattr(getattr(module, "weight", None), "quant_state", None), "shape", None)
    return (int(shape[1]), int(shape[0])) if shape is not None and len(shape) == 2 else None


def features(module: nn.Module) -> tuple[int, int] | None:
    """Return the same for a Linear or a convolution."""
    return linear_features(module) or _stated(module, "in_channels", "out_channels")


def _stated(module: nn.Module, inside: str, outside: str) -> tuple[int, int] | None:
    sizes = getattr(module, inside, None), getattr(module, outside, None)
    return sizes if isinstance(sizes[0], int) and isinstance(sizes[1], int) else None  # type: ignore[return-value]


def check_call(name: str, x: Tensor, y: Any, bound: Bound) -> None:
    """Raise SwitchError if a branch cannot be added to y, which a layer of unknown sizes returned for x."""
    if not isinstance(y, Tensor) or y.shape[:-1] != x.shape[:-1]:
        raise SwitchError(f"{name} is not a Linear, so no LoRA can act on it; use a file without this layer")
    ends = [term.start + term.up.shape[1] for term in bound.terms]
    rows = max(ends + [start + len(bias) for start, bias, _ in bound.biases])
    if x.shape[-1] != bound.down.shape[1] or y.shape[-1] < rows:
        raise SwitchError(
            f"{name} takes {x.shape[-1]} and gives {y.shape[-1]} features, but the adapter's factors take "
            f"{bound.down.shape[1]} and give {rows}; the adapter is for another model size"
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
    for term in bound.terms:
        out = term.up.shape[1]
        into = rows if out == rows.shape[1] else rows[:, term.start : term.start + out]
        into.addmm_(term.hidden(hidden).to(y.dtype), term.up.to(y.dtype), alpha=term.strength)
    for start, bias, strength in bound.biases:
        rows[:, start : start + len(bias)].add_(bias.to(y.dtype), alpha=strength)
    return y


def _add_out_of_place(y: Tensor, hidden: Tensor, bound: Bound) -> Tensor:
    """Return the same sum without writing into the base's output, which autograd may need."""
    update = torch.zeros_like(y).reshape(-1, y.shape[-1])
    for term in bound.terms:
        start, end = term.start, term.start + term.up.shape[1]
        product = term.hidden(hidden).to(y.dtype) @ term.up.to(y.dtype)
        part = torch.add(update[:, start:end], product, alpha=term.strength)
        update = update.slice_scatter(part, dim=1, start=start, end=end)
    for start, bias, strength in bound.biases:
        end = start + len(bias)
        part = torch.add(update[:, start:end], bias.to(y.dtype), alpha=strength)
        update = update.slice_scatter(part, dim=1, start=start, end=end)
    return y + update.view_as(y)


def add_convolution(module: Any, x: Tensor, y: Tensor, bound: Bound) -> Tensor:
    """Return a convolution's output with the branch added: down as the module itself convolves, up as a 1 x 1 one.

    The module's own `_conv_forward` knows its padding, circular too, also where somebody replaced it (seamless tiling).
    """
    places = (-1, *(1,) * (x.ndim - 2))
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
    for term in bound.terms:  # one, since its updates all change all rows; none if they are biases alone
        hidden = module._conv_forward(x, bound.down.to(x.dtype), None)  # (B, R, *out)
        if term.scales is not None:
            hidden = hidden * term.scales.view(places)
        up = term.up.t()  # (out, R)
        update = convolve(hidden, up.reshape(*up.shape, *places[1:]).to(hidden.dtype))  # (B, out, *out)
        y = y + (term.strength * update).to(y.dtype)
    for _, bias, strength in bound.biases:
        y = y + (strength * bias.to(y.dtype)).view(places)
    return y
