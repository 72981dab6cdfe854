"""Caches on a model of ComfyUI: values that one model call keeps for the next.

They were computed with the adapters of that moment, so they must go whenever the adapters change. Some models keep the
keys and values of the prompt; some nodes keep those of reference pictures. They are found by the names of their
functions, so that a newer model's cache is found too. Without such a function, what is called a cache gets the value
that it had when we first saw the model.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ...glance_core.errors import GlanceError

_CLEARS = re.compile(r"^(clear|reset|empty|free|flush)_\w*cache\w*$")
_CLEARS_ITSELF = ("free", "clear", "reset")
_NESTED = 4  # containers in one another that are searched for tensors
_CONTAINERS = (dict, list, set)
_SCALARS = (str, int, float, torch.dtype, type(None))
_VALUES = (*_CONTAINERS, tuple, *_SCALARS)
_first_values: WeakKeyDictionary[torch.nn.Module, dict[str, Any]] = WeakKeyDictionary()


class _Unknown:
    """Stands for a first value that cannot be put back: the cache was in use, or is an object."""


def note_caches(patcher: Any) -> None:
    """Remember the caches of a MODEL as they are, unless they are known."""
    for module in patcher.model.modules():
        _first(module)


def clear_caches(patcher: Any) -> None:
    """Empty every cache of a MODEL and of the patches on it.

    Raises:
        GlanceError: for one that was in use when we first saw it, and that nothing tells how to empty.
    """
    for module in patcher.model.modules():
        first = _first(module)
        for clear in _own(module):
            clear()
        _put_back(module, first)
    patcher.model_patches_call_function("cleanup")
    for name, value in patcher.model_options.get("transformer_options", {}).items():
        way = _way_to_clear(value)
        if "cache" in name and way is not None:
            way()


def _put_back(module: torch.nn.Module, first: Mapping[str, Any]) -> None:
    """Give the module's caches their first values, if they hold anything."""
    now = _named_caches(module)
    if not any(map(_holds_tensors, now.values())):
        return
    for name, value in now.items():
        way = None if isinstance(value, _VALUES) else _way_to_clear(value)
        if name not in first:
            delattr(module, name)
        elif way is not None:
            way()
        elif not isinstance(first[name], _Unknown):
            _set(module, name, first[name])
        elif _holds_tensors(value):
            raise GlanceError(
                f"{type(module).__name__}.{name} keeps values of an earlier run, which both phases would use, and "
                "nothing tells how to empty it; load the model again and run it with the pair first, or remove the "
                "node that caches"
            )


def _set(module: torch.nn.Module, name: str, first: Any) -> None:
    """Put a first value back; into the same container, which others may hold too."""
    value = getattr(module, name)
    if isinstance(value, _CONTAINERS) and type(value) is type(first):
        first = copy.deepcopy(first)
        value.clear()
        value.extend(first) if isinstance(value, list) else value.update(first)
    else:
        setattr(module, name, copy.deepcopy(first))


def _first(module: torch.nn.Module) -> Mapping[str, Any]:
    """Return the module's caches as they were when we first saw it."""
    if module not in _first_values:
        _first_values[module] = {name: _kept(value) for name, value in _named_caches(module).items()}
    return _first_values[module]


def _kept(value: Any) -> Any:
    return copy.deepcopy(value) if _is_plain(value) else _Unknown()


def _is_plain(value: Any) -> bool:
    """Return whether these are plain numbers and words, in whatever containers."""
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return isinstance(value, _SCALARS) or (isinstance(value, (list, tuple, set)) and all(map(_is_plain, value)))


def _named_caches(module: torch.nn.Module) -> dict[str, Any]:
    """Return the plain attributes that are called a cache."""
    return {name: value for name, value in vars(module).items() if "cache" in name}


def _way_to_clear(value: Any) -> Callable[[], Any] | None:
    """Return the value's own function that empties it."""
    name = next((name for name in _CLEARS_ITSELF if callable(getattr(value, name, None))), None)
    return None if name is None else getattr(value, name)  # type: ignore[no-any-return]


def _own(module: torch.nn.Module) -> Iterator[Callable[[], Any]]:
    """Yield the module's own functions that empty a cache."""
    for name in _clearing_methods(type(module)):
        yield getattr(module, name)


@functools.cache
def _clearing_methods(module_class: type) -> tuple[str, ...]:
    """Return the names of the methods that empty a cache and need no arguments."""
    methods = {name: getattr(module_class, name) for name in dir(module_class) if _CLEARS.match(name)}
    return tuple(name for name, method in methods.items() if callable(method) and _takes_only_self(method))


def _takes_only_self(method: Callable[..., Any]) -> bool:
    _, *others = inspect.signature(method).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(each.default is not each.empty or each.kind in optional for each in others)


def _holds_tensors(value: Any, depth: int = _NESTED) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if depth == 0:
        return False
    if not isinstance(value, (*_VALUES, torch.nn.Module)) and not callable(value):
        value = getattr(value, "__dict__", {})
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple, set)):
        return False
    return any(_holds_tensors(item, depth - 1) for item in value)
