"""Gradient checkpointing of a model's blocks, correct also where a block changes its inputs in place.

Forward keeps only a block's inputs, and backward runs the block again (Chen et al., arXiv 1604.06174), by torch's own
reentrant checkpoint. Some blocks add to their inputs in place, so a second run on the same tensors would start from the
first run's result, and torch's non-reentrant checkpoint gives wrong gradients without a word. Here every run gets
copies of what the block writes into. Every tensor is an input that gradients flow to, however deep it lies in tuples
and dataclasses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ...errors import TrainingError
from .forward_patches import patched_forwards
from .inplace import InplaceTracker


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's blocks by name: what its lists of modules hold, except plain layers."""
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
def checkpointed(
    blocks: Mapping[str, nn.Module] | None, name: str, tracker: InplaceTracker
) -> Iterator[Callable[[], None]]:
    """Checkpoint these blocks. Yield a check for after a forward: it raises TrainingError if no block was called.

    Args:
        blocks: None checkpoints nothing.
        name: the model's, for the message.
        tracker: the same one in every step.
    """
    if blocks is None:
        yield lambda: None
        return
    if not blocks:
        raise TrainingError(f"{name} has no blocks for gradient_checkpointing; switch it off")
    called = [0]

    def count() -> None:
        called[0] += 1

    def check() -> None:
        if not called[0]:
            raise TrainingError(
                f"{name} never called its blocks as modules, so gradient_checkpointing saves nothing; switch it off"
            )

    patches = {block: partial(_checkpointed, _Block(block, block.forward, count, tracker)) for block in blocks.values()}
    with patched_forwards(patches):
        yield check


@dataclass(frozen=True)
class _Block:
    """A block, its own forward, what counts its calls, and what is known of its writes."""

    module: nn.Module
    forward: Callable[..., Any]
    count: Callable[[], None]
    tracker: InplaceTracker


@dataclass(frozen=True)
class _TensorAt:
    """Stands for the i-th tensor of a flattened call."""

    i: int


@dataclass(frozen=True)
class _Options:
    """A dictionary argument, such as the host's options. live: the dictionary itself. then: its first content."""

    live: dict[Any, Any]
    then: dict[Any, Any]


def _checkpointed(block: _Block, *args: Any, **kwargs: Any) -> Any:
    block.count()
    if not torch.is_grad_enabled():
        return block.forward(*args, **kwargs)
    tensors: list[Tensor] = []
    flat_args, flat_kwargs = flatten_tensors(args, tensors), {k: flatten_tensors(v, tensors) for k, v in kwargs.items()}

    def run(anchor: Tensor, *inputs: Tensor) -> Any:
        again = torch.is_grad_enabled()  # the reentrant checkpoint runs first without gradients

        def on(given: list[Tensor]) -> Any:
            own_kwargs = {k: unflatten_tensors(v, given, again) for k, v in flat_kwargs.items()}
            return block.forward(*unflatten_tensors(flat_args, given, again), **own_kwargs)

        def once() -> Any:
            return block.tracker.on_copies(block.module, inputs, on)

        out = block.tracker.run(block.module, once) if again else once()
        out = tuple(out) if isinstance(out, list) else out
        _check_outputs(out)
        return _connected(out, anchor) if again else out

    anchor = torch.zeros((), requires_grad=True)  # the reentrant checkpoint needs one input with a gradient
    return torch.utils.checkpoint.checkpoint(run, anchor, *tensors, use_reentrant=True, preserve_rng_state=False)


def _check_outputs(out: Any) -> None:
    """Raise TrainingError for outputs that torch's checkpoint cannot follow."""
    if any(_hides(value) for value in (out if type(out) is tuple else (out,))):
        raise TrainingError(
            f"a block returns tensors inside a {type(out).__name__}, which gradient_checkpointing would lose; switch "
            "it off"
        )
    if not any(isinstance(value, Tensor) for value in (out if isinstance(out, tuple) else (out,))):
        raise TrainingError("a block returns no tensor, so gradient_checkpointing cannot follow it; switch it off")


def _connected(out: Any, anchor: Tensor) -> Any:
    """Return the block's outputs; if they have no gradient, give them one that leads nowhere."""
    tensors = out if isinstance(out, tuple) else (out,)
    if any(isinstance(value, Tensor) and value.requires_grad for value in tensors):
        return out
    tied = tuple(
        value + anchor.to(value) if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in tensors
    )
    return tied if isinstance(out, tuple) else tied[0]


def _hides(value: Any) -> bool:
    """Return whether a tensor lies where torch's checkpoint does not look; it connects tensors and tuples of them."""
    if isinstance(value, dict):
        return _holds_tensor(value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return _holds_tensor(getattr(value, item.name) for item in fields(value))
    return isinstance(value, (list, tuple)) and _holds_tensor(value)


def _holds_tensor(values: Iterable[Any]) -> bool:
    return any(isinstance(item, Tensor) or _hides(item) for item in values)


def flatten_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """Append each floating-point tensor of a nested value to `tensors`, and return the value with their places instead.

    Raises:
        TrainingError: for a tensor with a gradient inside a dictionary, which a checkpoint would lose.
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        tensors.append(value)
        return _TensorAt(len(tensors) - 1)
    if isinstance(value, dict):
        if any(isinstance(item, Tensor) and item.requires_grad for item in value.values()):
            raise TrainingError(
                "a block takes a tensor with a gradient inside a dictionary, which gradient_checkpointing would lose; "
                "switch it off"
            )
        return _Options(value, dict(value))
    return _mapped(value, lambda item: flatten_tensors(item, tensors))


def unflatten_tensors(value: Any, tensors: list[Tensor], again: bool) -> Any:
    """Return the nested value with these tensors.

    Args:
        again: dictionaries are as they were at the first run, not as they are now.
    """
    if isinstance(value, _TensorAt):
        return tensors[value.i]
    if isinstance(value, _Options):
        return value.then if again else value.live
    return _mapped(value, lambda item: unflatten_tensors(item, tensors, again))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tuple, list or dataclass with `change` applied to its items, and anything else as it is."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(change, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(change, value))
    if is_dataclass(value) and not isinstance(value, (type, _TensorAt, _Options)):
        changed = copy.copy(value)
        for item in fields(value):
            object.__setattr__(changed, item.name, change(getattr(value, item.name)))
        return changed
    return value
