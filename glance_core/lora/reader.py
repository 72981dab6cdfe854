"""Read any common LoRA file, check it, and say what had to be assumed.

Only safetensors is read. A file that is damaged, or that holds something else than a plain LoRA, is refused in one
sentence.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import AdapterError
from ..models import possible_bases
from . import file_type, keys
from .factors import Bias, Factor, Other, checked_bias, checked_factor, checked_other
from .metadata import PairMetadata, read_metadata
from .safetensors_io import read_tensors
from .scale import StatedScale

_NO_ALPHA = "no alpha"  # begins the assumptions about files without alpha tensors


@dataclass(frozen=True)
class Adapter:
    """A read file.

    factors, biases: by module name, without prefix. styles: how its tensors are named. pair: what it says about itself.
    skipped: keys that are not part of a LoRA. assumed, remarks: sentences for the user. others: modules that another
    method than plain LoRA changes.
    """

    path: Path
    factors: Mapping[str, Factor]
    styles: tuple[str, ...]
    metadata: Mapping[str, str]
    pair: PairMetadata
    skipped: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    biases: Mapping[str, Bias] = field(default_factory=dict)
    others: Mapping[str, Other] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def bases(self) -> frozenset[str]:
        """The base models it can belong to: the stated one, else those that its module names fit."""
        return frozenset([self.pair.base]) if self.pair.base else possible_bases([*self.factors, *self.others])

    @property
    def parameters(self) -> int:
        """How many numbers its factors hold."""
        biases = sum(bias.vector.numel() for bias in self.biases.values())
        return biases + sum(f.down.numel() + f.up.numel() for f in self.factors.values())

    def describe(self) -> dict[str, Any]:
        """Return what the loader makes of the file, as plain values for a report or JSON."""
        factors = self.factors.values()
        return {
            "file": self.name,
            "phase": self.pair.phase,
            "base": sorted(self.bases),
            "modules": len(factors),
            "biases": len(self.biases),
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
    """A file's tensors by module and role, and the keys that are not part of a LoRA.

    biases: (style, tensor) by module. others: tensors of other methods, by module and ending.
    """

    modules: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    biases: dict[str, tuple[str, torch.Tensor]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    styles: set[str] = field(default_factory=set)
    skipped: list[str] = field(default_factory=list)
    text_encoder: int = 0
    others: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)


def read_adapter(
    path: str | os.PathLike[str],
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
    every_method: bool = False,
) -> Adapter:
    """Read and check one LoRA file.

    Args:
        rename: gives the tensors of a few trainers the usual names, as a host's own loader does.
        every_method: also read LoHa, LoKr, OFT, GLoRA, Tucker factors, and differences of weights and norms.

    Raises:
        AdapterError: for anything that cannot be applied whole.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    if rename is not None:
        tensors = rename(tensors)
    file_type.check_has_lora(path.name, tensors, every_method)
    found = _sorted_by_module(path.name, tensors, every_method)
    scales = StatedScale(path, metadata)
    factors = {
        module: checked_factor(path, module, found.sources[module], roles, scales)
        for module, roles in found.modules.items()
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
        {
            module: checked_bias(path.name, module, found.sources[module], stated, factors.get(module))
            for module, stated in found.biases.items()
        },
        {
            module: checked_other(path.name, module, found.sources[module], found.methods[module], given)
            for module, given in found.others.items()
        },
    )


def _sorted_by_module(name: str, tensors: Mapping[str, torch.Tensor], every_method: bool) -> _Sorted:
    found = _Sorted()
    for key, tensor in tensors.items():
        if keys.is_text_encoder(key):
            found.text_encoder += 1
            continue
        if keys.is_of_control_lora(key):
            raise AdapterError(
                f"{name}: this is a control LoRA ({key}), which replaces norms or widens a layer, so it cannot switch "
                "phases; load it with Load LoRA before Load Glance LoRA"
            )
        other = keys.parse_other(key) if every_method else None
        if other is not None:
            found.others.setdefault(other.module, {})[other.role] = tensor
            found.sources[other.module], found.methods[other.module] = other.source, other.style
            continue
        _check_method(name, key, every_method)
        parsed = keys.parse_key(key)
        if parsed is None:
            found.skipped.append(key)
            continue
        if parsed.role == keys.BIAS:
            found.biases[parsed.module] = (parsed.style, tensor)
            found.sources[parsed.module] = parsed.source
            continue
        roles = found.modules.setdefault(parsed.module, {})
        if parsed.role in roles:
            raise AdapterError(f"{name}: module {parsed.module} appears twice, the second time as {key}; keep one")
        roles[parsed.role] = tensor
        found.sources[parsed.module] = parsed.source
        if parsed.role == keys.DOWN:
            found.styles.add(parsed.style)
    _complete_others(name, found)
    for module in [
        m for m, roles in found.modules.items() if roles.keys() == {keys.ALPHA}
    ]:  # other layers have one too
        del found.modules[module]
        found.skipped.append(f"{found.sources[module]}.alpha")
    _check_skipped(name, found)
    return found


def _check_method(name: str, key: str, every_method: bool) -> None:
    """Raise AdapterError for a key of a method that is not read here."""
    method = keys.other_method(key)
    if method and every_method:
        raise AdapterError(
            f"{name}: {key} belongs to {method}, which cannot change in mid-run; use Load LoRA, or convert the file to "
            "plain LoRA"
        )
    if method:
        or_use = ", or use Load LoRA by Noise Level" if keys.parse_other(key) else ""
        raise AdapterError(
            f"{name}: {key} belongs to {method}, and a Glance pair is plain LoRA; convert it to LoRA first{or_use}"
        )


def _complete_others(name: str, found: _Sorted) -> None:
    """Move what belongs to modules of other methods there: their alpha, and the factors around a Tucker factor."""
    for module, tensors in found.others.items():
        roles = found.modules.pop(module, {})
        tucker = "lora_mid.weight" in tensors
        if not tucker and roles.keys() - {keys.ALPHA}:
            raise AdapterError(
                f"{name}: module {module} has LoRA factors and {found.methods[module]}, of which ComfyUI would drop "
                "one; get a file without one of them"
            )
        tensors |= roles


def _check_skipped(name: str, found: _Sorted) -> None:
    """Raise AdapterError for a tensor whose loss would change what the rest means.

    That is one of a module with factors, or a whole layer that was trained beside them.
    """
    sources = {found.sources[module] for module in [*found.modules, *found.others]}
    for key in found.skipped:
        ends = [dot.start() for dot in re.finditer(r"\.", key)]
        if any(key[:end] in sources for end in ends):
            raise AdapterError(
                f"{name}: {key} changes a LoRA module in an unknown way, so the file cannot be applied whole; convert "
                "it to plain LoRA first"
            )
        if key.endswith((".weight", ".bias")) and "lora" not in key:
            raise AdapterError(
                f"{name}: {key} is of a whole layer that was trained beside the LoRA, and a whole layer cannot switch "
                "phases; get or train a LoRA without it"
            )


def _assumed(found: _Sorted, pair: PairMetadata, factors: Mapping[str, Factor]) -> list[str]:
    """Return what was assumed beside scales, one sentence each."""
    assumed = []
    if found.text_encoder:
        assumed.append(f"{found.text_encoder} text-encoder tensors left out: only the diffusion model changes")
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
    biases = {m: replace(b, scale=factors[m].scale) if b.scaled else b for m, b in adapter.biases.items()}
    return replace(
        adapter,
        factors=factors,
        biases=biases,
        assumed=tuple(text for text in adapter.assumed if not text.startswith(_NO_ALPHA)),
    )
