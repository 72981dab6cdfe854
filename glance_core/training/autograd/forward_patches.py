"""Replace the forward of modules for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

Forwards = Mapping[nn.Module, Callable[..., Any]]  # module -> the forward that it answers with
_MISSING = object()


@contextmanager
def patched_forwards(forwards: Forwards) -> Iterator[None]:
    """Let these modules answer with these forwards; undone at the end, last first."""
    undo: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in forwards.items():
            undo.append((module, module.__dict__.get("forward", _MISSING)))
            module.forward = forward
        yield
    finally:
        for module, before in reversed(undo):
            _restore(module, before)


@contextmanager
def forwards_restored(model: nn.Module) -> Iterator[None]:
    """Give every module at the end the forward it has now, even if an interrupt came in the middle of a clean-up."""
    found = {module: module.__dict__.get("forward", _MISSING) for module in model.modules()}
    try:
        yield
    finally:
        for module, before in found.items():
            _restore(module, before)


def _restore(module: nn.Module, before: Any) -> None:
    if before is _MISSING:
        module.__dict__.pop("forward", None)
    else:
        module.forward = before
