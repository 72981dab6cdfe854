"""Adapter files: read any common LoRA, check it, say what was assumed, and write the project's own self-describing format.

Only safetensors is read; a file that is damaged or means something else than a plain LoRA is refused in one sentence.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import file_kinds
from . import lora_names as names
from .adapter_metadata import Trained, read_trained
from .errors import AdapterError
from .stated_scale import StatedScale
from .tensor_file import read_tensors

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)  # of which an alpha may be
_AT_ONCE = 1 << 24  # numbers looked at together
_LARGEST = 1e30  # alpha; float32, as which it is written, holds it and its inverse


@dataclass(frozen=True)
class Factor:
    """One module's low-rank update: scale * up @ down, added to the base's output.

    down (r, in) or (r, in, *kernel), up (out, r) or (out, r, 1, ...); alpha None where the file has none;
    source is the module's name as the file writes it.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None
    scale: float
    source: str

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Adapter:
    """A read file: factors by module name (without prefix), what it says of itself, what had to be assumed, and what it looks like."""

    path: Path
    factors: Mapping[str, Factor]
    styles: tuple[str, ...]
    metadata: Mapping[str, str]
    trained: Trained
    skipped: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def bases(self) -> frozenset[str]:
        """The architectures it can belong to: the metadata's, else those its module names fit."""
        return frozenset([self.trained.base]) if self.trained.base else names.possible_bases(self.factors)

    @property
    def parameters(self) -> int:
        return sum(f.down.numel() + f.up.numel() for f in self.factors.values())

    def describe(self) -> dict[str, Any]:
        """What the loader makes of the file, as plain values for a report or JSON."""
        return {
            "file": self.name,
            "phase": self.trained.phase,
            "base": sorted(self.bases),
            "modules": len(self.factors),
            "parameters": self.parameters,
            "rank": sorted({f.rank for f in self.factors.values()}),
            "alpha": sorted({f.alpha for f in self.factors.values() if f.alpha is not None}) or None,
            "scale": sorted({f.scale for f in self.factors.values()}),
            "dtype": sorted({str(f.down.dtype).removeprefix("torch.") for f in self.factors.values()}),
            "styles": list(self.styles),
            "ladder": self.trained.ladder,
            "teacher_steps": self.trained.teacher_steps,
            "steps": self.trained.steps,
            "skipped": list(self.skipped),
            "assumed": list(self.assumed),
            "remarks": list(self.remarks),
        }


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read and check one LoRA file. Raises AdapterError, in one sentence, for anything that cannot be applied whole."""
    path = Path(path)
    tensors, metadata = read_tensors(path)
    file_kinds.refuse_without_lora(path.name, tensors)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    sources: dict[str, str] = {}
    styles: set[str] = set()
    text_encoder, skipped = 0, []
    for key, tensor in tensors.items():
        if names.is_text_encoder(key):
            text_encoder += 1
            continue
        method = names.other_method(key)
        if method:
            raise AdapterError(f"{path.name}: {key} belongs to {method}, and only plain LoRA can switch phases; convert it to LoRA first")
        parsed = names.parse_key(key)
        if parsed is None:
            skipped.append(key)
            continue
        roles = parts.setdefault(parsed.module, {})
        if parsed.role in roles:
            raise AdapterError(f"{path.name}: module {parsed.module} is given twice, the second time as {key}; keep one")
        roles[parsed.role] = tensor
        sources[parsed.module] = parsed.source
        if parsed.role == names.DOWN:
            styles.add(parsed.style)
    for module in [m for m, roles in parts.items() if roles.keys() == {names.ALPHA}]:  # no LoRA's: other layers have an alpha too
        del parts[module]
        skipped.append(f"{sources[module]}.alpha")
    factors = {}
    scales = StatedScale(path, metadata)
    for module, roles in parts.items():
        factors[module] = _factor(path, module, sources[module], roles, scales)
    assumed = list(scales.assumed())
    if text_encoder:
        assumed.append(f"{text_encoder} text-encoder tensors left out: a Glance pair changes the diffusion model alone")
    if skipped:
        assumed.append(f"{len(skipped)} tensors left out that are no LoRA: {', '.join(skipped[:3])}{', ...' if len(skipped) > 3 else ''}")
    trained = read_trained(path.name, metadata)
    if trained.base is None:
        by_names = "/".join(sorted(names.possible_bases(factors)))
        assumed.append(
            f"architecture not stated in the file: {by_names} by its module names" if by_names else "architecture not stated in the file"
        )
    if trained.phase is None:
        assumed.append("phase not stated in the file: taken as chosen")
    remarks = file_kinds.remarks(path.name, metadata) if trained.phase is None else ()
    return Adapter(path, factors, tuple(sorted(styles)), metadata, trained, tuple(skipped), tuple(assumed), remarks)


def check_pair(slow: Adapter, fast: Adapter) -> tuple[str, ...]:
    """Refuse a pair that cannot belong together; return what is odd but possible."""
    for adapter, wanted, other in ((slow, "slow", "fast"), (fast, "fast", "slow")):
        if adapter.trained.phase == other:
            twice = slow.trained.phase == fast.trained.phase
            way_out = f"choose {_partner(adapter) or f'the {wanted.title()} file of the pair'} there" if twice else "swap the two files"
            raise AdapterError(f"{adapter.name} is a {other.title()} adapter but was chosen as {wanted}_lora; {way_out}")
    if slow.bases and fast.bases and not slow.bases & fast.bases:
        one, two = ("/".join(sorted(a.bases)) for a in (slow, fast))
        raise AdapterError(f"{slow.name} is for {one} and {fast.name} for {two}; choose two files of one pair")
    a, b = slow.trained, fast.trained
    for what in ("ladder", "shift", "teacher_steps", "steps", "fingerprint"):
        x, y = getattr(a, what), getattr(b, what)
        if x is not None and y is not None and x != y:
            raise AdapterError(f"{slow.name} was trained with glance.{what} {x} and {fast.name} with {y}; choose two files of one pair")
    notes = []
    if a.pair and b.pair and a.pair != b.pair:
        whose = f"; {slow.name} belongs to {_partner(slow)}" if a.partner else ""
        notes.append(f"{slow.name} and {fast.name} were trained in different runs{whose}")
    if a.phase is None and b.phase is None and "fast" in slow.name.lower() and "slow" in fast.name.lower():
        notes.append(f"the file names look swapped: {slow.name} is used as Slow, {fast.name} as Fast")
    if slow.path == fast.path:
        notes.append(f"{slow.name} is used for both phases: there is no switch; choose the pair's other file for one of them")
    elif _same_numbers(slow, fast):
        notes.append(f"{slow.name} and {fast.name} hold the same numbers: there is no switch; get the pair's other file again")
    if slow.factors.keys() != fast.factors.keys():
        notes.append(f"the two files target different modules ({len(slow.factors)} and {len(fast.factors)})")
    return tuple(notes)


def _partner(adapter: Adapter) -> str:
    """The name of the other file as the adapter has it, fit for a sentence."""
    return " ".join((adapter.trained.partner or "").split())[:100]


def _same_numbers(slow: Adapter, fast: Adapter) -> bool:
    """Whether both do the same, and something at all."""
    if slow.factors.keys() != fast.factors.keys() or not any(f.up.any() for f in slow.factors.values()):
        return False
    pairs = ((slow.factors[module], fast.factors[module]) for module in slow.factors)
    return all(x.scale == y.scale and torch.equal(x.up, y.up) and torch.equal(x.down, y.down) for x, y in pairs)


def with_alpha(adapter: Adapter, alpha: float) -> Adapter:
    """The adapter with this alpha on every module: scale = alpha / rank."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise AdapterError(f"alpha must be a positive number, got {alpha}")
    factors = {m: replace(f, alpha=alpha, scale=alpha / f.rank) for m, f in adapter.factors.items()}
    return replace(adapter, factors=factors, assumed=tuple(a for a in adapter.assumed if not a.startswith("no alpha")))


def _factor(path: Path, module: str, source: str, roles: Mapping[str, torch.Tensor], scales: StatedScale) -> Factor:
    missing = [role for role in (names.DOWN, names.UP) if role not in roles]
    if missing:
        has = " and ".join(sorted(roles))
        raise AdapterError(
            f"{path.name}: module {module} has {has} but no {' and no '.join(missing)} factor; the file is incomplete, get it again"
        )
    down, up = roles[names.DOWN], roles[names.UP]
    for role, tensor in roles.items():
        if tensor.dtype not in _FLOATS and not (role == names.ALPHA and tensor.dtype in _INTEGERS):
            raise AdapterError(f"{path.name}: {role} of {module} is {tensor.dtype}; only float64, float32, float16 and bfloat16 are read")
        if not all(torch.isfinite(part).all() for part in torch.split(tensor.reshape(-1), _AT_ONCE)):
            raise AdapterError(f"{path.name}: {role} of {module} holds NaN or infinity; the training diverged or the file is damaged")
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or 0 in down.shape or 0 in up.shape or math.prod(up.shape[2:]) != 1:
        raise AdapterError(f"{path.name}: the factors of {module} do not fit, down {tuple(down.shape)} and up {tuple(up.shape)}")
    alpha = None
    if names.ALPHA in roles:
        if roles[names.ALPHA].numel() != 1:
            raise AdapterError(f"{path.name}: alpha of {module} has shape {tuple(roles[names.ALPHA].shape)}; it must be one number")
        alpha = float(roles[names.ALPHA])
        if alpha == 0:
            raise AdapterError(f"{path.name}: alpha of {module} is 0, which switches the module off; the file is damaged, get it again")
    alpha, scale = scales.of(module, down.shape[0], alpha)
    if not (abs(scale) >= 1 / _LARGEST and abs(scale) * down.shape[0] <= _LARGEST):
        raise AdapterError(f"{path.name}: alpha of {module} is {alpha}, which no training gives; the file is damaged, get it again")
    return Factor(down, up, alpha, scale, source)
