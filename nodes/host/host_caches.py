"""Values that a model of ComfyUI, or a patch on it, keeps from one call to the next.

They were computed with the adapters of that moment, so they must go whenever the adapters change. Some models keep the
keys and values of the prompt; some nodes keep those of reference pictures. They are found by the names of their
functions, so that a newer model's cache is found too.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .log import log

_CLEARS = re.compile(r"^(clear|reset|empty|free|flush)_\w*cache\w*$")
_CLEARS_ITSELF = ("free", "clear", "reset")
_NESTED = 4  # containers in one another that are searched for tensors
_warned: set[str] = set()


def clear_caches(patcher: Any) -> None:
    """Empty every cache of a MODEL and of the patches on it."""
    for module in patcher.model.diffusion_model.modules():
        for clear in _own(module):
            clear()
    patcher.model_patches_call_function("cleanup")
    for name, value in patcher.model_options.get("transformer_options", {}).items():
        way = next((way for way in _CLEARS_ITSELF if callable(getattr(value, way, None))), None)
        if "cache" in name and way is not None:
            getattr(value, way)()


def warn_of_unknown_caches(patcher: Any) -> None:
    """Log each cache that `clear_caches` cannot empty, once for each class."""
    for module in patcher.model.diffusion_model.modules():
        if next(_own(module), None) is not None:
            continue
        for name, value in vars(module).items():
            place = f"{type(module).__name__}.{name}"
            if "cache" in name and place not in _warned and _holds_tensors(value):
                _warned.add(place)
                log.warning(
                    "Glance: %s keeps values between model calls and cannot be emptied, so results may mix phases; "
                    "compare with a run of the base, and please report the model",
                    place,
                )


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
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple, set)):
        return False
    return any(_holds_tensors(item, depth - 1) for item in value)
