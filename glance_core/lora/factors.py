"""The tensors of one module of a LoRA file, checked: its two factors with their scale, and its bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import AdapterError
from . import keys
from .scale import StatedScale

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_EIGHT_BIT = (torch.float8_e4m3fn, torch.float8_e5m2)  # bfloat16 holds every value of them
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)  # dtypes that an alpha may have too
_AT_ONCE = 1 << 24  # numbers that are checked together
_LARGEST = 1e30  # of an alpha; it is written as float32, which holds this and its inverse


@dataclass(frozen=True)
class Factor:
    """One module's low-rank update: scale * up @ down, added to the base's output.

    down: (r, in) or (r, in, *kernel). up: (out, r) or (out, r, 1, ...). alpha: None if the file has none.
    source: the module's name as the file writes it.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None
    scale: float
    source: str

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.down.shape[0]


@dataclass(frozen=True)
class Bias:
    """A vector (out,) that is added to one module's output, times scale.

    scaled: the scale is that of the module's factors. source: the module's name as the file writes it.
    """

    vector: torch.Tensor
    scale: float
    scaled: bool
    source: str


@dataclass(frozen=True)
class Other:
    """What another method than plain LoRA has for one module.

    method: its name. tensors: by ending, as ComfyUI names them after the module. source: the module's name as the file
    writes it.
    """

    method: str
    tensors: Mapping[str, torch.Tensor]
    source: str


_ENDINGS = {keys.DOWN: "lora_down.weight", keys.UP: "lora_up.weight", keys.ALPHA: "alpha"}


def checked_other(name: str, module: str, source: str, method: str, roles: Mapping[str, torch.Tensor]) -> Other:
    """Return what a file's tensors by ending make. Raises AdapterError for numbers that are none."""
    for role, tensor in roles.items():
        _check_numbers(name, module, role, tensor)
        if role == keys.ALPHA and tensor.numel() != 1:
            raise AdapterError(f"{name}: alpha of {module} has shape {tuple(tensor.shape)}; it must be one number")
    return Other(method, {_ENDINGS.get(role, role): _readable(tensor) for role, tensor in roles.items()}, source)


def checked_bias(name: str, module: str, source: str, stated: tuple[str, torch.Tensor], factor: Factor | None) -> Bias:
    """Return the bias that a file's (style, tensor) makes. Raises AdapterError if it makes none.

    PEFT scales its biases as its factors; a difference of biases (`diff_b`) is not scaled.
    """
    style, tensor = stated
    _check_numbers(name, module, keys.BIAS, tensor)
    if tensor.ndim != 1 or not len(tensor):
        raise AdapterError(f"{name}: bias of {module} has shape {tuple(tensor.shape)}; it must be a vector")
    if style == keys.DIFFERENCE:
        return Bias(_readable(tensor), 1.0, False, source)
    if factor is None:
        raise AdapterError(f"{name}: module {module} has a bias but no factors; the file is incomplete, get it again")
    return Bias(_readable(tensor), factor.scale, True, source)


def checked_factor(
    path: Path, module: str, source: str, roles: Mapping[str, torch.Tensor], scales: StatedScale
) -> Factor:
    """Return the factors that a file's tensors by role make, with their scale. Raises AdapterError if they do not."""
    missing = [role for role in (keys.DOWN, keys.UP) if role not in roles]
    if missing:
        has = " and ".join(sorted(roles))
        raise AdapterError(
            f"{path.name}: module {module} has {has} but no {' and no '.join(missing)} factor; the file is incomplete, "
            f"get it again"
        )
    for role, tensor in roles.items():
        _check_numbers(path.name, module, role, tensor)
    down, up = _readable(roles[keys.DOWN]), _readable(roles[keys.UP])
    if (
        down.ndim < 2
        or up.ndim < 2
        or down.shape[0] != up.shape[1]
        or 0 in down.shape
        or 0 in up.shape
        or math.prod(up.shape[2:]) != 1
    ):
        shapes = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
        raise AdapterError(f"{path.name}: the factors of {module} do not fit together, {shapes}; get the file again")
    stated = _alpha(path.name, module, roles[keys.ALPHA]) if keys.ALPHA in roles else None
    alpha, scale = scales.of(module, down.shape[0], stated)
    if not (abs(scale) >= 1 / _LARGEST and abs(scale) * down.shape[0] <= _LARGEST):
        raise AdapterError(
            f"{path.name}: alpha of {module} is {alpha}, which no training gives; the file is damaged, get it again"
        )
    return Factor(down, up, alpha, scale, source)


def scaled_exactly(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale * tensor, in float32 if its own dtype cannot hold that exactly."""
    exact = tensor.double() * scale
    stored = exact.to(tensor.dtype)
    return stored if torch.equal(stored.double(), exact) else exact.float()


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in a dtype that torch computes with; the values stay the same."""
    return tensor.to(torch.bfloat16) if tensor.dtype in _EIGHT_BIT else tensor


def _check_numbers(name: str, module: str, role: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _FLOATS + _EIGHT_BIT and not (role == keys.ALPHA and tensor.dtype in _INTEGERS):
        raise AdapterError(
            f"{name}: {role} of {module} is {tensor.dtype}; only float64, float32, float16, bfloat16 and float8 "
            "are read"
        )
    if not all(torch.isfinite(part).all() for part in torch.split(_readable(tensor).reshape(-1), _AT_ONCE)):
        raise AdapterError(
            f"{name}: {role} of {module} holds NaN or infinity; the training diverged or the file is damaged"
        )


def _alpha(name: str, module: str, tensor: torch.Tensor) -> float:
    if tensor.numel() != 1:
        raise AdapterError(f"{name}: alpha of {module} has shape {tuple(tensor.shape)}; it must be one number")
    alpha = float(tensor)
    if alpha == 0:
        raise AdapterError(
            f"{name}: alpha of {module} is 0, which switches the module off; the file is damaged, get it again"
        )
    return alpha
