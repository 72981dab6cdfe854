"""Gradient checkpointing of a model's blocks, right also where a block changes its inputs in place.

Forward keeps a block's inputs alone; backward runs the block again (Chen et al., arXiv 1604.06174), by torch's own reentrant checkpoint.
FLUX's blocks add to `img` and `txt` in place, so that a second run on the same tensors would start from the first one's result: torch's
non-reentrant checkpoint then gives wrong gradients without a word. Here every run gets copies of what the block writes into, and every
tensor, however deep in tuples and dataclasses it arrives, is an input that gradients flow to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from .errors import TrainingError
from .frozen import forwards
from .saved import Saves


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The model's blocks by name: what its lists of modules hold, looking through lists and sequences, plain layers left out."""
    found: dict[str, nn.Module] = {}

    def look(module: nn.Module, name: str, listed: bool) -> None:
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}" if name else child_name
            if isinstance(child, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
                look(child, path, listed or isinstance(child, nn.ModuleList))
            elif listed and next(child.children(), None) is not None:
                found[path] = child
            elif not listed:
                look(child, path, False)

    look(model, "", False)
    return found


@contextmanager
def recomputed(blocks: Mapping[str, nn.Module] | None, name: str, saves: Saves) -> Iterator[Callable[[], None]]:
    """Checkpoint these blocks. Yields a check to call after a forward: it raises TrainingError if no block was called.

    blocks None: nothing is checkpointed. name: the model's, for the message. saves: what is known of the blocks from earlier steps.
    """
    if blocks is None:
        yield lambda: None
        return
    if not blocks:
        raise TrainingError(f"{name} has no blocks that gradient_checkpointing could take; switch it off")
    called = [0]

    def count() -> None:
        called[0] += 1

    def check() -> None:
        if not called[0]:
            raise TrainingError(f"{name} never called its blocks as modules, so gradient_checkpointing saves nothing there; switch it off")

    with forwards({block: partial(_checkpointed, block, block.forward, count, saves) for block in blocks.values()}):
        yield check


@dataclass(frozen=True)
class _At:
    """Stands for the i-th tensor of a flattened call."""

    i: int


@dataclass(frozen=True)
class _Options:
    """A dictionary argument (the host's options): the block gets the very one when it first runs, and what it then held afterwards."""

    live: dict[Any, Any]
    then: dict[Any, Any]


def _checkpointed(block: nn.Module, forward: Callable[..., Any], count: Callable[[], None], saves: Saves, *args: Any, **kwargs: Any) -> Any:
    count()
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    tensors: list[Tensor] = []
    positional = [_taken(value, tensors) for value in args]
    named = {key: _taken(value, tensors) for key, value in kwargs.items()}

    def run(anchor: Tensor, *inputs: Tensor) -> Any:
        again = torch.is_grad_enabled()

        def on(given: list[Tensor]) -> Any:
            return forward(*(_put(v, given, again) for v in positional), **{k: _put(v, given, again) for k, v in named.items()})

        def once() -> Any:
            return saves.on_copies(block, inputs, on)

        out = saves.run(block, once) if again else once()
        out = tuple(out) if isinstance(out, list) else out
        if any(_hides(value) for value in (out if type(out) is tuple else (out,))):
            raise TrainingError(
                f"a block gives back tensors inside a {type(out).__name__}, which gradient_checkpointing would lose; switch it off"
            )
        if not any(isinstance(value, Tensor) for value in (out if isinstance(out, tuple) else (out,))):
            raise TrainingError("a block gives back no tensor, so that gradient_checkpointing cannot follow it; switch it off")
        return _connected(out, anchor) if again else out

    anchor = torch.zeros((), requires_grad=True)  # the reentrant checkpoint asks for one input with a gradient
    return torch.utils.checkpoint.checkpoint(run, anchor, *tensors, use_reentrant=True, preserve_rng_state=False)


def _connected(out: Any, anchor: Tensor) -> Any:
    """The block's outputs; where neither inputs nor a LoRA inside give them a gradient, one that leads nowhere."""
    tensors = out if isinstance(out, tuple) else (out,)
    if any(isinstance(value, Tensor) and value.requires_grad for value in tensors):
        return out
    tied = tuple(value + anchor.to(value) if isinstance(value, Tensor) and value.is_floating_point() else value for value in tensors)
    return tied if isinstance(out, tuple) else tied[0]


def _hides(value: Any) -> bool:
    """Whether a tensor lies where torch's checkpoint does not look: it connects tensors and tuples of them."""
    if isinstance(value, dict):
        return any(isinstance(item, Tensor) or _hides(item) for item in value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return any(isinstance(item, Tensor) or _hides(item) for item in (getattr(value, item.name) for item in fields(value)))
    return isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) or _hides(item) for item in value)


def _taken(value: Any, tensors: list[Tensor]) -> Any:
    """The value with each floating-point tensor in it replaced by its place in `tensors`."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        tensors.append(value)
        return _At(len(tensors) - 1)
    if isinstance(value, dict):
        if any(isinstance(item, Tensor) and item.requires_grad for item in value.values()):
            raise TrainingError(
                "a block takes a tensor with a gradient inside a dictionary, which gradient_checkpointing would lose; switch it off"
            )
        return _Options(value, dict(value))
    return _mapped(value, lambda item: _taken(item, tensors))


def _put(value: Any, tensors: list[Tensor], again: bool) -> Any:
    if isinstance(value, _At):
        return tensors[value.i]
    if isinstance(value, _Options):
        return value.then if again else value.live
    return _mapped(value, lambda item: _put(item, tensors, again))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(change, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(change, value))
    if is_dataclass(value) and not isinstance(value, (type, _At, _Options)):
        changed = copy.copy(value)
        for item in fields(value):
            object.__setattr__(changed, item.name, change(getattr(value, item.name)))
        return changed
    return value
