"""Write an adapter in the project's own format (FORMAT.md), or in diffusers' (diffusers.py)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..errors import AdapterError
from ..models import possible_bases
from . import diffusers as diffusers_layout
from . import keys
from .factors import Bias, Factor, scaled_exactly
from .host_layout import host_names
from .metadata import PairMetadata, written_metadata
from .reader import Adapter
from .safetensors_io import write_new

# What a source file says about its scale and its bytes; the written tensors say it themselves.
_RESTATED = ("lora_adapter_metadata", "ss_network_alpha", "ss_network_dim", "sshs_model_hash", "sshs_legacy_hash")
# What a source file says better than we can.
_KEPT_FROM_SOURCE = ("modelspec.description", "modelspec.usage_hint", "modelspec.date")
COMFYUI, DIFFUSERS = "comfyui", "diffusers"


@dataclass(frozen=True)
class _Layout:
    """The tensors of a file: a prefix for module names, others by key, and metadata that belongs to the layout."""

    prefix: str
    factors: Mapping[str, Factor]
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_adapter(
    path: str | os.PathLike[str],
    factors: Mapping[str, Factor],
    pair: PairMetadata,
    others: Mapping[str, str] | None = None,
    biases: Mapping[str, Bias] | None = None,
) -> Path:
    """Write a new file, whole or not at all, and return its path. An existing file is never overwritten.

    Every module gets its alpha, also if the scale was assumed, so that the file means the same everywhere.

    Args:
        factors, biases: by module name.
        others: metadata to keep where it does not contradict what is written (author, licence, trigger words).

    Raises:
        AdapterError: if it cannot be written.
    """
    prefix = keys.written_prefix(factors, pair.base or _only(possible_bases(factors)))
    alphas = {
        f"{prefix}{module}.alpha": torch.tensor(f.scale * f.rank, dtype=torch.float32) for module, f in factors.items()
    }
    vectors = {
        f"{prefix}{module}.{keys.DIFFERENCE}": scaled_exactly(bias.vector, bias.scale)
        for module, bias in (biases or {}).items()
    }
    return _write(Path(path), _Layout(prefix, factors, alphas | vectors), pair, others or {})


def convert(source: Adapter, path: str | os.PathLike[str], phase: str | None = None, layout: str = COMFYUI) -> Path:
    """Rewrite a read adapter in the project's format or in diffusers'.

    A base that the file does not state stays unstated: module names alone do not prove it.

    Args:
        phase: states what the file does not.
        layout: COMFYUI or DIFFUSERS.
    """
    pair, base = replace(source.pair, phase=phase or source.pair.phase), _only(source.bases)
    if layout == DIFFUSERS:
        if source.biases:
            raise AdapterError(
                f"{source.name}: {next(iter(source.biases))} has a bias, which diffusers does not load; convert it to "
                f"the layout {COMFYUI}"
            )
        renamed = diffusers_layout.diffusers_factors(source.name, source.factors, base)
        written = _Layout(diffusers_layout.PREFIX, renamed, metadata=diffusers_layout.rank_metadata(renamed))
        return _write(Path(path), written, pair, source.metadata)
    factors, biases = host_names(source.name, source.factors, source.biases, base)
    return write_adapter(path, factors, pair, source.metadata, biases)


def _only(bases: frozenset[str]) -> str | None:
    """Return the only base that is possible; None if there are others, or none is known."""
    return next(iter(bases)) if len(bases) == 1 else None


def _write(path: Path, layout: _Layout, pair: PairMetadata, others: Mapping[str, str]) -> Path:
    tensors = dict(layout.others)
    for module, factor in layout.factors.items():
        tensors[f"{layout.prefix}{module}.lora_A.weight"] = factor.down.contiguous()
        tensors[f"{layout.prefix}{module}.lora_B.weight"] = factor.up.contiguous()
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    stated = written_metadata(_with_rank(pair, layout.factors), path.stem, keys.implementation(layout.factors), now)
    write_new(path, tensors, stated | _kept(others, stated) | dict(layout.metadata))
    return path


def _kept(others: Mapping[str, str], stated: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in others.items()
        if not key.startswith(("glance.", "modelspec.hash_"))
        and key not in _RESTATED
        and (key in _KEPT_FROM_SOURCE or key not in stated)
    }


def _with_rank(pair: PairMetadata, factors: Mapping[str, Factor]) -> PairMetadata:
    """Return the metadata with rank and alpha, if every module has the same."""
    ranks = {f.rank for f in factors.values()}
    alphas = {f.scale * f.rank for f in factors.values()}
    return replace(
        pair,
        rank=ranks.pop() if len(ranks) == 1 else None,
        alpha=alphas.pop() if len(alphas) == 1 else None,
    )
