"""Low-rank branches on the modules of a frozen model, and the switch that selects which phase's branch answers.

    y = base(x);  y[..., rows] += (x @ down') @ up'        one mm and one in-place addmm per target

The base's weights are never read or written, so quantised, offloaded and streamed weights need no special case.
Strength and scale are folded into `up` once. Switching moves one pointer per target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import SwitchError

_UNSET = object()


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of one target: rows start .. start + out of its output get up @ down @ x.

    down: (r, in), or (r, in, *kernel) for a convolution. up: (out, r), with strength and scale folded in.
    """

    down: Tensor
    up: Tensor
    start: int = 0


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
        for tensor in self.parameters():
            if not torch.isfinite(tensor).all():
                raise SwitchError(f"a LoRA factor overflows {dtype}, the model's dtype; lower the strength")
        self.starts = tuple(u.start for u in updates)

    def on(self, device: torch.device) -> Bound:
        """Return the tensors on `device`, without a copy if they are there already."""
        ups = (self.get_parameter(f"up{i}").detach().to(device) for i in range(len(self.starts)))
        return Bound(self.down.detach().to(device), tuple(ups), self.starts)


class PhaseWeights(nn.Module):
    """The branches of every phase by target name, as an nn.Module, so that a host can place and count its memory.

    phases: for each phase, target name -> updates. A phase leaves a target alone that is absent or has none.
    """

    def __init__(self, phases: Sequence[Mapping[str, Sequence[LowRank]]], dtype: torch.dtype):
        super().__init__()
        self.targets = tuple(dict.fromkeys(name for phase in phases for name, updates in phase.items() if updates))
        self.phase_count = len(phases)
        self.branches = nn.ModuleList()
        self._index: list[dict[str, int]] = []
        for phase in phases:
            index = {}
            for name, updates in phase.items():
                if updates:
                    index[name] = len(self.branches)
                    self.branches.append(Branch(updates, dtype))
            self._index.append(index)

    def branch(self, phase: int, target: str) -> Branch | None:
        """Return a phase's branch on a target, if it has one."""
        at = self._index[phase].get(target)
        return None if at is None else self.branches[at]  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(p.numel() * p.element_size() for p in self.parameters())


class Bound:
    """A branch's tensors on one device: down (R, in[, *kernel]), and ups (r, out) for the rows from each start."""

    __slots__ = ("down", "starts", "ups")

    def __init__(self, down: Tensor, ups: tuple[Tensor, ...], starts: tuple[int, ...]):
        self.down, self.ups, self.starts = down, ups, starts


class _Target:
    """One wrapped module: `hook` replaces its forward while the switch is installed."""

    def __init__(self, name: str, module: nn.Module):
        self.name, self.module = name, module
        self.add = _add_conv if _is_convolution(module) else _add_linear
        self.active: Bound | None = None
        self.bound: tuple[Bound | None, ...] = ()
        self.called = False
        self.inner: Callable[..., Any] = module.forward
        self.previous: Any = _UNSET
        self.wrapped = self.stranded = False
        self.hook = self._forward  # one bound method, so that a compiled graph recognises it

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = self.inner(x, *args, **kwargs)
        active = self.active
        self.called = True
        return y if active is None else self.add(self.module, x, y, active)

    def wrap(self) -> None:
        while isinstance(below := getattr(self.module.forward, "__self__", None), _Target) and below.stranded:
            below._restore()
        self.previous = self.module.__dict__.get("forward", _UNSET)
        self.inner = self.module.forward
        self.wrapped = True  # set first, so that an interrupt before the next line is undone too
        self.module.forward = self.hook

    def unwrap(self) -> None:
        """Put the previous forward back. If somebody wrapped ours meanwhile, stay below and pass calls through."""
        self.active, self.bound = None, ()  # a host that moves the weights must not find them held here
        if self.module.__dict__.get("forward") is self.hook:
            self._restore()
        elif self.wrapped:
            self.stranded = True
        self.wrapped = False

    def _restore(self) -> None:
        if self.previous is _UNSET:
            del self.module.__dict__["forward"]
        else:
            self.module.forward = self.previous


class PhaseSwitch:
    """Installs `weights` on the modules of a model, and lets one phase answer at a time, or none.

    Installing and removing are exact inverses, last in first out, whatever is raised in between. Both may be called
    twice.
    """

    def __init__(self, weights: PhaseWeights):
        self.weights = weights
        self._targets: WeakKeyDictionary[nn.Module, tuple[_Target, ...]] = WeakKeyDictionary()
        self._installed: tuple[_Target, ...] = ()
        self._called: set[str] = set()
        self._phase: int | None = None

    @property
    def installed(self) -> bool:
        """Whether the branches are on a model."""
        return bool(self._installed)

    @property
    def phase(self) -> int | None:
        """The phase that answers; None for the base alone."""
        return self._phase

    @property
    def never_called(self) -> tuple[str, ...]:
        """Targets that were not called since `install`: the model computes them in another way, or not at all."""
        called = self._called.union(target.name for target in self._installed if target.called)
        return tuple(name for name in self.weights.targets if name not in called)

    def install(self, root: nn.Module, device: torch.device, again: bool = False) -> None:
        """Wrap the targets below `root`; no phase is selected yet.

        Args:
            again: in the same run, after a host removed the branches; earlier calls still count.

        Raises:
            SwitchError: for a target that the model lacks.
        """
        if self._installed:
            return
        if not again:
            self._called.clear()
        known = {target.name: target for target in self._targets.get(root, ())}
        modules = {name: find_module(root, name) for name in self.weights.targets}
        targets = tuple(  # the same hooks as last time, unless a module was replaced
            known[name] if name in known and known[name].module is module else _Target(name, module)
            for name, module in modules.items()
        )
        self._targets[root] = targets
        try:
            self._installed = targets  # before the first is wrapped, so that `remove` undoes it wherever this ends
            for target in targets:
                branches = (self.weights.branch(phase, target.name) for phase in range(self.weights.phase_count))
                target.bound = tuple(None if branch is None else branch.on(device) for branch in branches)
                target.called = False
                target.wrap()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Undo `install`. If it is interrupted, call it again."""
        for target in reversed(self._installed):
            if target.called:
                self._called.add(target.name)
            target.unwrap()
        if any(target.stranded for target in self._installed):
            self._targets.clear()  # a stranded hook may still be in the chain; wrapped again it would call itself
        self._installed, self._phase = (), None

    def select(self, phase: int | None) -> None:
        """Let `phase` answer from the next forward on; None for the base alone."""
        if phase is not None and not 0 <= phase < self.weights.phase_count:
            raise SwitchError(f"there is no phase {phase}; choose 0 to {self.weights.phase_count - 1}")
        for target in self._installed:
            target.active = None if phase is None else target.bound[phase]
        self._phase = phase


def phase_index(sigma: float, thresholds: Sequence[float]) -> int:
    """Return the phase of a noise level: 0 above the first of the falling thresholds, 1 above the second, ..."""
    return sum(sigma <= threshold for threshold in thresholds)


def find_module(root: nn.Module, name: str) -> nn.Module:
    """Return the module at a dotted path. Raises SwitchError if there is none."""
    try:
        return root.get_submodule(name)
    except AttributeError as error:
        raise SwitchError(
            f"the model {type(root).__name__} has no module {name}; the adapter is for another base model"
        ) from error


def check_update(module: nn.Module, name: str, update: LowRank) -> None:
    """Raise SwitchError if the update cannot be added to the module's output."""
    convolution = _is_convolution(module)
    inside = getattr(module, "in_features", getattr(module, "in_channels", None))
    outside = getattr(module, "out_features", getattr(module, "out_channels", None))
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


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _add_linear(module: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> Tensor:
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
    return y + update.view_as(y)


def _add_conv(module: Any, x: Tensor, y: Tensor, bound: Bound) -> Tensor:
    """Add a convolution's branch: down with the base's stride and padding, up as a 1 x 1 convolution."""
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
    (up,) = bound.ups
    down = bound.down.to(x.dtype)
    hidden = convolve(x, down, None, module.stride, module.padding, module.dilation)  # (B, R, *out)
    weight = up.t().reshape(up.shape[1], up.shape[0], *(1,) * (x.ndim - 2)).to(hidden.dtype)
    return y + convolve(hidden, weight).to(y.dtype)
