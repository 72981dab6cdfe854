"""What of a model of ComfyUI stands in the way of autograd, put aside for a training run.

- Models that a node loaded consist of inference tensors, which autograd cannot save.
- Fused kernels for rotary embeddings have no backward.
- Some mixtures of experts compute under no_grad, as they are made for sampling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch

_ROTARY = ("apply_rope", "rms_rope")


@contextmanager
def fit_for_autograd(model: torch.nn.Module) -> Iterator[None]:
    """Let autograd through the model. Undone at the end."""
    with ExitStack() as afterwards:
        fits = (_normal_tensors(model), _normal_bypass(model), _differentiable_kernels(), _gradients_allowed(model))
        for fit in fits:
            afterwards.enter_context(fit)
        yield


@contextmanager
def _normal_tensors(model: torch.nn.Module) -> Iterator[None]:
    """Replace inference tensors by normal ones of the same memory: parameters, buffers and plain attributes."""
    changed: list[tuple[dict[str, Any], str, Any, Any]] = []
    for module in model.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            for name, tensor in table.items():
                if _has_memory(tensor) and tensor.is_inference() and tensor.device.type != "meta":
                    changed.append((table, name, tensor, _same_memory(tensor)))
    try:
        for table, name, _, normal in changed:
            table[name] = normal
        yield
    finally:
        for table, name, before, normal in changed:
            if table.get(name) is normal and normal.data_ptr() == before.data_ptr():  # else ComfyUI moved it meanwhile
                table[name] = before


def _has_memory(tensor: Any) -> bool:
    """Return whether this is a tensor with memory of its own, of torch's class or of one that adds attributes (GGUF).

    A class with its own dispatch wraps other tensors. It computes with what they mean, which is a new tensor.
    """
    return isinstance(tensor, torch.Tensor) and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def _same_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return a normal tensor of the same class, attributes and memory."""
    shared = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    # size(), because `shape` of a packed weight may be that of the numbers that it means
    shared.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    plain = type(tensor) is torch.nn.Parameter
    other = torch.nn.Parameter(shared, requires_grad=False) if plain else shared.as_subclass(type(tensor))
    vars(other).update(vars(tensor))  # of a quantised weight, how to read it
    return other


@contextmanager
def _normal_bypass(model: torch.nn.Module) -> Iterator[None]:
    """Do the same for the LoRAs that ComfyUI adds to what a layer returns, in place of merging them."""
    changed: list[tuple[Any, Any, Any]] = []
    for module in model.modules():
        for adapter in _bypassing(module):
            weights = adapter.weights
            parts = weights if isinstance(weights, (list, tuple)) else [weights]
            normal = [_same_memory(part) if _has_memory(part) and part.is_inference() else part for part in parts]
            changed.append((adapter, weights, type(weights)(normal) if parts is weights else normal[0]))
    try:
        for adapter, _, normal in changed:
            adapter.weights = normal
        yield
    finally:
        for adapter, before, normal in changed:
            if adapter.weights is normal:
                adapter.weights = before


def _bypassing(module: torch.nn.Module) -> Iterator[Any]:
    """Yield the adapters whose forwards lie over the module's own."""
    owner = getattr(module.forward, "__self__", module)
    while owner is not module:
        if hasattr(adapter := getattr(owner, "adapter", None), "weights"):
            yield adapter
        below = getattr(owner, "original_forward", None)
        owner = getattr(below, "__self__", module)


@contextmanager
def _differentiable_kernels() -> Iterator[None]:
    """Let comfy_kitchen compute in plain torch where a gradient is asked for."""
    try:
        import comfy_kitchen
        from comfy_kitchen.backends import eager
    except ImportError:  # ComfyUI then computes in plain torch itself
        yield
        return
    with ExitStack() as afterwards:
        for name in vars(eager):
            fused = getattr(comfy_kitchen, name, None)
            if name.startswith(_ROTARY) and callable(fused):
                afterwards.callback(setattr, comfy_kitchen, name, fused)
                setattr(comfy_kitchen, name, _with_backward(fused, getattr(eager, name)))
        yield


def _with_backward(fused: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fused)
    def kernel(*args: Any, **kwargs: Any) -> Any:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        return (plain if needed else fused)(*args, **kwargs)

    return kernel


@contextmanager
def _gradients_allowed(model: torch.nn.Module) -> Iterator[None]:
    """Let methods that are decorated with torch.no_grad run without it."""
    with ExitStack() as afterwards:
        for module in model.modules():
            for name, method in _methods_without_gradients(type(module)).items():
                if name not in vars(module):
                    afterwards.callback(vars(module).pop, name, None)
                    vars(module)[name] = MethodType(method, module)
        yield


@functools.cache
def _methods_without_gradients(module_class: type) -> dict[str, Callable[..., Any]]:
    """Return the methods of a class that torch.no_grad decorates, by name, without it."""
    found = {}
    for owner in module_class.__mro__:
        for name, method in vars(owner).items():
            inner = getattr(method, "__wrapped__", None)
            if owner.__module__.startswith("torch.") or inner is None or name in found:
                continue
            cells = (cell.cell_contents for cell in getattr(method, "__closure__", None) or ())
            if any(isinstance(getattr(value, "__self__", value), torch.no_grad) for value in cells):
                found[name] = inner
    return found
