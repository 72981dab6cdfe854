"""Low-rank branches on the modules of a frozen model, and the switch that selects which phase's branch answers.

The base's weights are never read or written, so quantised, offloaded and streamed weights need no special case.
Each phase has a strength for every adapter. Adapters that answer together share one product, and a strength is a number
in it. Switching moves one pointer per target.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .change import BoundChange, Change
from .errors import SwitchError
from .low_rank import Bound, Branch, LowRank, add_convolution, add_linear, check_call, features, is_convolution

Strengths = Sequence[Sequence[float]]  # for each phase, the strength of each adapter; 0 costs nothing
Update: TypeAlias = LowRank | Change
Answer: TypeAlias = Bound | BoundChange
_UNSET = object()


class PhaseWeights(nn.Module):
    """All adapters' updates by target, as an nn.Module, so that a host can place and count its memory.

    Low-rank updates of one target share a branch, unless another kind of change comes between them: in the order of the
    adapters, each acts on what those before it make of the module.

    adapters: each adapter's target name -> updates.
    """

    def __init__(self, adapters: Sequence[Mapping[str, Sequence[Update]]], dtype: torch.dtype):
        super().__init__()
        self.adapter_count = len(adapters)
        self.targets = tuple(dict.fromkeys(name for each in adapters for name, updates in each.items() if updates))
        self.updates = nn.ModuleList()
        self._of_target: dict[str, list[Branch | _Changed]] = {}
        for name in self.targets:
            every = [(adapter, update) for adapter, each in enumerate(adapters) for update in each.get(name, ())]
            self._of_target[name] = [*_stacked(every, self.adapter_count, dtype)]
            self.updates.extend(each.change if isinstance(each, _Changed) else each for each in self._of_target[name])

    def on(self, device: torch.device, strengths: Strengths) -> dict[str, tuple[tuple[Answer, ...], ...]]:
        """Return what answers on each target in each phase. Targets without an answer in any phase are left out."""
        bound = {}
        for name in self.targets:
            each = [update.on(device, strengths) for update in self._of_target[name]]
            phases = tuple(tuple(itertools.chain.from_iterable(phase)) for phase in zip(*each, strict=True))
            if any(phases):
                bound[name] = phases
        return bound

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(p.numel() * p.element_size() for p in self.parameters())


@dataclass(frozen=True)
class _Changed:
    """A change of another kind, and whose it is."""

    adapter: int
    change: Change

    def on(self, device: torch.device, phases: Strengths) -> tuple[tuple[BoundChange, ...], ...]:
        return self.change.on(device, [strengths[self.adapter] for strengths in phases])


def _stacked(every: Sequence[tuple[int, Update]], count: int, dtype: torch.dtype) -> Iterator[Branch | _Changed]:
    """Yield the updates of one target by (adapter, update), low-rank ones that follow each other as one branch."""
    for low_rank, group in itertools.groupby(every, key=lambda each: isinstance(each[1], LowRank)):
        members = list(group)
        if low_rank:
            yield Branch([[u for of, u in members if of == a and isinstance(u, LowRank)] for a in range(count)], dtype)
        else:
            yield from (_Changed(adapter, change) for adapter, change in members if isinstance(change, Change))


class _Target:
    """One wrapped module: `hook` replaces its forward while the switch is installed."""

    def __init__(self, name: str, module: nn.Module):
        self.name, self.module = name, module
        self.add = add_convolution if is_convolution(module) else add_linear
        self.sized = features(module) is not None
        self.active: tuple[Answer, ...] = ()  # several branches only if what is between them is off or no branch
        self.bound: tuple[tuple[Answer, ...], ...] = ()  # by phase
        self.called = self.changing = False  # changing: inside of a change's own answer
        self.inner: Callable[..., Any] = module.forward
        self.previous: Any = _UNSET
        self.wrapped = self.stranded = False
        self.hook = self._forward  # one bound method, so that a compiled graph recognises it

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        return self._answer(len(self.active), x, args, kwargs)

    def _answer(self, count: int, x: Tensor, args: Any, kwargs: Any) -> Any:
        """Return the output with the first `count` of what answers now."""
        if count == 0:
            return self.inner(x, *args, **kwargs)
        last = self.active[count - 1]
        if isinstance(last, Bound):
            y = self._answer(count - 1, x, args, kwargs)
            if not self.sized:
                check_call(self.name, x, y, last)
            return self.add(self.module, x, y, last)
        outer, self.changing = self.changing, True
        try:
            return last.answer(self.module, x, lambda changed: self._answer(count - 1, changed, args, kwargs))
        finally:
            self.changing = outer

    def wrap(self) -> None:
        while isinstance(below := getattr(self.module.forward, "__self__", None), _Target) and below.stranded:
            below._restore()
        self.previous = self.module.__dict__.get("forward", _UNSET)
        self.inner = self.module.forward
        self.wrapped = True  # set first, so that an interrupt before the next line is undone too
        self.module.forward = self.hook

    def unwrap(self) -> None:
        """Put the previous forward back. If somebody wrapped ours meanwhile, stay below and pass calls through."""
        self.active, self.bound = (), ()  # a host that moves the weights must not find them held here
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
        self._names: tuple[str, ...] = ()  # of the targets that answer in some phase
        self._called: set[str] = set()
        self._strengths: Strengths = ()
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
        called = self.called
        return tuple(name for name in self._names if name not in called)

    @property
    def called(self) -> frozenset[str]:
        """Targets that were called since `install`."""
        return frozenset(self._called.union(target.name for target in self._installed if target.called))

    def install(self, root: nn.Module, device: torch.device, strengths: Strengths | None = None) -> None:
        """Wrap the targets below `root`; no phase is selected yet.

        Args:
            strengths: of this run. By default every adapter has a phase of its own.

        Raises:
            SwitchError: for a target that the model lacks, or strengths for another number of adapters.
        """
        if self._installed:
            return
        count = self.weights.adapter_count
        if strengths is None:
            strengths = [[float(adapter == phase) for adapter in range(count)] for phase in range(count)]
        if any(len(phase) != count for phase in strengths):
            raise SwitchError(f"every phase needs a strength for each of the {count} adapters")
        self._called.clear()
        self._strengths = strengths
        self._install(root, device)

    def install_again(self, root: nn.Module, device: torch.device) -> None:
        """Do the same in the same run, after a host removed the branches; earlier calls still count."""
        if not self._installed:
            self._install(root, device)

    def _install(self, root: nn.Module, device: torch.device) -> None:
        bound = self.weights.on(device, self._strengths)
        known = {target.name: target for target in self._targets.get(root, ())}
        modules = {name: find_module(root, name) for name in bound}
        self._names = tuple(bound)
        targets = tuple(  # the same hooks as last time, unless a module was replaced
            known[name] if name in known and known[name].module is module else _Target(name, module)
            for name, module in modules.items()
        )
        self._targets[root] = targets
        try:
            self._installed = targets  # before the first is wrapped, so that `remove` undoes it wherever this ends
            for target in targets:
                target.bound = bound[target.name]
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
        if self._installed and phase is not None and not 0 <= phase < len(self._strengths):
            raise SwitchError(f"there is no phase {phase}; choose 0 to {len(self._strengths) - 1}")
        for target in self._installed:
            target.active = () if phase is None else target.bound[phase]
        self._phase = phase


def has_active_branch(module: nn.Module) -> bool:
    """Return whether a switch is installed on the module and one of its branches answers there now."""
    target = getattr(module.forward, "__self__", None)
    while isinstance(target, _Target):
        if target.active:
            return True
        target = getattr(target.inner, "__self__", None)
    return False


def changes_read_now(module: nn.Module) -> Iterator[BoundChange]:
    """Yield the changes that answer on the module, for a host that reads its weight without calling it."""
    target = getattr(module.forward, "__self__", None)
    while isinstance(target, _Target):
        if not target.changing:
            target.called = target.called or bool(target.active)
            yield from (each for each in target.active if not isinstance(each, Bound))
        target = getattr(target.inner, "__self__", None)


def find_module(root: nn.Module, name: str) -> nn.Module:
    """Return the module at a dotted path. Raises SwitchError if there is none."""
    try:
        return root.get_submodule(name)
    except AttributeError as error:
        raise SwitchError(
            f"the model {type(root).__name__} has no module {name}; the adapter is for another base model"
        ) from error
