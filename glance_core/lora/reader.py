"""Read any common LoRA file, check it, and say what had to be assumed.

Only safetensors is read. A file that is damaged, or that holds something else than a plain LoRA, is refused in one
sentence.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import AdapterError
from ..models import possible_bases
from . import file_type, keys
from .metadata import PairMetadata, read_metadata
from .safetensors_io import read_tensors
from .scale import StatedScale

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)  # dtypes that an alpha may have too
_AT_ONCE = 1 << 24  # numbers that are checked together
_LARGEST = 1e30  # of an alpha; it is written as float32, which holds this and its inverse
_NO_ALPHA = "no alpha"  # begins the assumptions about files without alpha tensors


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
class Adapter:
    """A read file.

    factors: by module name, without prefix. styles: how its tensors are named. pair: what it says about itself.
    skipped: keys that are not part of a LoRA. assumed, remarks: sentences for the user.
    """

    path: Path
    factors: Mapping[str, Factor]
    styles: tuple[str, ...]
    metadata: Mapping[str, str]
    pair: PairMetadata
    skipped: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def bases(self) -> frozenset[str]:
        """The base models it can belong to: the stated one, else those that its module names fit."""
        return frozenset([self.pair.base]) if self.pair.base else possible_bases(self.factors)

    @property
    def parameters(self) -> int:
        """How many numbers its factors hold."""
        return sum(f.down.numel() + f.up.numel() for f in self.factors.values())

    def describe(self) -> dict[str, Any]:
        """Return what the loader makes of the file, as plain values for a report or JSON."""
        factors = self.factors.values()
        return {
            "file": self.name,
            "phase": self.pair.phase,
            "base": sorted(self.bases),
            "modules": len(factors),
            "parameters": self.parameters,
            "rank": sorted({f.rank for f in factors}),
            "alpha": sorted({f.alpha for f in factors if f.alpha is not None}) or None,
            "scale": sorted({f.scale for f in factors}),
            "dtype": sorted({str(f.down.dtype).removeprefix("torch.") for f in factors}),
            "styles": list(self.styles),
            "sigma_rule": self.pair.sigma_rule,
            "teacher_steps": self.pair.teacher_steps,
            "steps": self.pair.steps,
            "skipped": list(self.skipped),
            "assumed": list(self.assumed),
            "remarks": list(self.remarks),
        }


@dataclass
class _Sorted:
    """A file's tensors by module and role, and the keys that are not part of a LoRA."""

    modules: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    styles: set[str] = field(default_factory=set)
    skipped: list[str] = field(default_factory=list)
    text_encoder: int = 0


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read and check one LoRA file. Raises AdapterError for anything that cannot be applied whole."""
    path = Path(path)
    tensors, metadata = read_tensors(path)
    file_type.check_has_lora(path.name, tensors)
    found = _sorted_by_module(path.name, tensors)
    scales = StatedScale(path, metadata)
    factors = {
        module: _factor(path, module, found.sources[module], roles, scales) for module, roles in found.modules.items()
    }
    pair = read_metadata(path.name, metadata)
    return Adapter(
        path,
        factors,
        tuple(sorted(found.styles)),
        metadata,
        pair,
        tuple(found.skipped),
        (*scales.assumed(), *_assumed(found, pair, factors)),
        file_type.remarks(path.name, metadata) if pair.phase is None else (),
    )


def _sorted_by_module(name: str, tensors: Mapping[str, torch.Tensor]) -> _Sorted:
    found = _Sorted()
    for key, tensor in tensors.items():
        if keys.is_text_encoder(key):
            found.text_encoder += 1
            continue
        method = keys.other_method(key)
        if method:
            raise AdapterError(
                f"{name}: {key} belongs to {method}, and only plain LoRA can switch phases; convert it to LoRA first"
            )
        parsed = keys.parse_key(key)
        if parsed is None:
            found.skipped.append(key)
            continue
        roles = found.modules.setdefault(parsed.module, {})
        if parsed.role in roles:
            raise AdapterError(f"{name}: module {parsed.module} appears twice, the second time as {key}; keep one")
        roles[parsed.role] = tensor
        found.sources[parsed.module] = parsed.source
        if parsed.role == keys.DOWN:
            found.styles.add(parsed.style)
    for module in [
        m for m, roles in found.modules.items() if roles.keys() == {keys.ALPHA}
    ]:  # other layers have one too
        del found.modules[module]
        found.skipped.append(f"{found.sources[module]}.alpha")
    return found


def _assumed(found: _Sorted, pair: PairMetadata, factors: Mapping[str, Factor]) -> list[str]:
    """Return what was assumed beside scales, one sentence each."""
    assumed = []
    if found.text_encoder:
        assumed.append(
            f"{found.text_encoder} text-encoder tensors left out: a Glance pair changes only the diffusion model"
        )
    if found.skipped:
        more = ", ..." if len(found.skipped) > 3 else ""
        assumed.append(
            f"{len(found.skipped)} tensors left out that are not part of a LoRA: {', '.join(found.skipped[:3])}{more}"
        )
    if pair.base is None:
        by_names = "/".join(sorted(possible_bases(factors)))
        assumed.append(
            f"base model not stated in the file: {by_names} by its module names"
            if by_names
            else "base model not stated in the file"
        )
    if pair.phase is None:
        assumed.append("phase not stated in the file: used as chosen")
    return assumed


def with_alpha(adapter: Adapter, alpha: float) -> Adapter:
    """Return the adapter with this alpha on every module: scale = alpha / rank."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise AdapterError(f"alpha is {alpha}; it must be a positive number")
    factors = {m: replace(f, alpha=alpha, scale=alpha / f.rank) for m, f in adapter.factors.items()}
    return replace(
        adapter, factors=factors, assumed=tuple(text for text in adapter.assumed if not text.startswith(_NO_ALPHA))
    )


def _factor(path: Path, module: str, source: str, roles: Mapping[str, torch.Tensor], scales: StatedScale) -> Factor:
    missing = [role for role in (keys.DOWN, keys.UP) if role not in roles]
    if missing:
        has = " and ".join(sorted(roles))
        raise AdapterError(
            f"{path.name}: module {module} has {has} but no {' and no '.join(missing)} factor; the file is incomplete, "
            f"get it again"
        )
    for role, tensor in roles.items():
        _check_numbers(path.name, module, role, tensor)
    down, up = roles[keys.DOWN], roles[keys.UP]
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


def _check_numbers(name: str, module: str, role: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _FLOATS and not (role == keys.ALPHA and tensor.dtype in _INTEGERS):
        raise AdapterError(
            f"{name}: {role} of {module} is {tensor.dtype}; only float64, float32, float16 and bfloat16 are read"
        )
    if not all(torch.isfinite(part).all() for part in torch.split(tensor.reshape(-1), _AT_ONCE)):
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
