"""Write an adapter in the project's own format: `<prefix>.<module>.lora_A|lora_B.weight`, `.alpha`, and metadata.

The prefix is `diffusion_model`, or `transformer` for diffusers' names that ComfyUI knows only so (`lora_names.written_prefix`).
For diffusers there is a layout of its own, without alpha (`diffusers_layout`).
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from . import diffusers_layout
from . import lora_names as names
from .adapter_metadata import Trained, written_metadata
from .errors import AdapterError, NameTaken
from .lora_file import Adapter, Factor, read_adapter
from .schedule import FAST, SLOW
from .tensor_file import write_new, write_new_bytes

# What a source file says of its scale and of its bytes; the written tensors say it themselves.
_RESTATED = ("lora_adapter_metadata", "ss_network_alpha", "ss_network_dim", "sshs_model_hash", "sshs_legacy_hash")
# What it says better than we can.
_ITS_OWN = ("modelspec.description", "modelspec.usage_hint", "modelspec.date")
COMFYUI, DIFFUSERS = ("comfyui", "diffusers")


def write_adapter(
    path: str | os.PathLike[str], factors: Mapping[str, Factor], trained: Trained, others: Mapping[str, str] | None = None
) -> Path:
    """Write `factors` (by module name) to a new file, whole or not at all; an existing file is never overwritten.

    Every module gets its alpha, also where the scale was assumed, so that the file means the same everywhere. `others` is metadata to
    keep where it says nothing of what is written here (author, licence, trigger words). Raises AdapterError.
    """
    bases = frozenset([trained.base]) if trained.base else names.possible_bases(factors)
    prefix = names.written_prefix(factors, bases)
    alphas = {f"{prefix}{module}.alpha": torch.tensor(f.scale * f.rank, dtype=torch.float32) for module, f in factors.items()}
    return _write(Path(path), prefix, factors, alphas, trained, others or {}, {})


def _write(
    path: Path, prefix: str, factors: Mapping[str, Factor], alphas: Mapping[str, torch.Tensor], trained: Trained, others: Mapping[str, str],
    restated: Mapping[str, str],
) -> Path:  # fmt: skip
    tensors = dict(alphas)
    for module, factor in factors.items():
        tensors[f"{prefix}{module}.lora_A.weight"] = factor.down.contiguous()
        tensors[f"{prefix}{module}.lora_B.weight"] = factor.up.contiguous()
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    stated = written_metadata(_with_rank(trained, factors), path.stem, names.implementation(factors), now)
    write_new(path, tensors, stated | _kept(others, stated) | dict(restated))
    return path


def _kept(others: Mapping[str, str], stated: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in others.items()
        if not key.startswith(("glance.", "modelspec.hash_")) and key not in _RESTATED and (key in _ITS_OWN or key not in stated)
    }


_LONGEST_NAME = 100
WHOLE = "_whole"  # ends the name of a pair with all that was trained, where not all of it is kept
PAIR_ENDS = (f"_{SLOW}.safetensors", f"_{FAST}.safetensors")
_PREVIEW = ".preview.png"
PREVIEW_ENDS = tuple(end.replace(".safetensors", _PREVIEW) for end in PAIR_ENDS)


def write_pair(
    folder: Path, name: str, factors: Mapping[str, Mapping[str, Factor]], common: Trained, sigmas: Mapping[str, tuple[float, ...]],
    once: bool = False,
) -> tuple[Path, Path]:  # fmt: skip
    """Two new files `<name>_slow` and `<name>_fast`, with -2, -3, ... where a file has one of the names (`free_name`). common: what both
    files state; factors and sigmas: by phase. Where a kill came between the two, the Fast file alone; once: and where both are there of this
    very pair, none. Raises AdapterError."""
    refuse_name(name.removesuffix(WHOLE))
    slow, fast = (folder / f"{name}{end}" for end in PAIR_ENDS)
    ours = is_of(slow, common.pair, SLOW)
    if once and ours and fast.exists():
        return slow, fast
    if not ours or fast.exists():
        slow, fast = _write_slow(folder, name, factors[SLOW], replace(common, phase=SLOW, sigmas=sigmas[SLOW]))
    try:
        write_adapter(fast, factors[FAST], replace(common, phase=FAST, sigmas=sigmas[FAST], partner=slow.name))
    except NameTaken:
        if not is_of(fast, common.pair, FAST):  # else another process wrote it, after the same training
            raise
    return slow, fast


def _write_slow(folder: Path, name: str, factors: Mapping[str, Factor], trained: Trained) -> tuple[Path, Path]:
    """The Slow file under the first name that is free, and what its partner will be called."""
    while True:
        slow, fast = (folder / f"{free_name(folder, name, PAIR_ENDS)}{end}" for end in PAIR_ENDS)
        try:
            return write_adapter(slow, factors, replace(trained, partner=fast.name)), fast
        except NameTaken:  # by another process, since it was free
            continue


def is_of(path: Path, pair: str | None, phase: str) -> bool:
    """Whether this is the file of this phase of this very pair."""
    if pair is None or not path.exists():
        return False
    try:
        found = read_adapter(path).trained
    except AdapterError:
        return False
    return (found.pair, found.phase) == (pair, phase)


def write_preview(adapter: Path, png: bytes) -> Path:
    """A picture under the name by which ComfyUI's model library and LoRA managers find it beside an adapter; what has that name already
    stays, and raises AdapterError."""
    path = adapter.with_suffix(_PREVIEW)
    write_new_bytes(path, png)
    return path


def refuse_name(name: str) -> None:
    """Raises AdapterError for what is no plain file name everywhere, so that no name leads out of its folder."""
    if (
        not name.isprintable()
        or name.strip(" ") != name
        or name[:1] in ("", ".")
        or any(char in name for char in "/\\:")
        or _bytes(name) > _LONGEST_NAME
    ):
        raise AdapterError(
            f"name {name[:40]!r} is no plain file name; give one without folder and ending, of at most {_LONGEST_NAME} bytes"
        )


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "replace"))


def free_name(folder: Path, name: str, ends: Iterable[str]) -> str:
    """The name, or name-2, name-3, ...: the first that nothing in the folder has with any of these ends, be it a link to nowhere."""
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    return next(free for free in names if not any(os.path.lexists(folder / f"{free}{end}") for end in ends))


def new_folder(folder: Path) -> None:
    """Make the folder and see that files can be made in it. Raises AdapterError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be written into ({error.strerror}); choose another folder") from error


def convert(source: Adapter, path: str | os.PathLike[str], phase: str | None = None, layout: str = COMFYUI) -> Path:
    """Rewrite a read adapter in the project's format, or in that of diffusers; `phase` states what the file may not."""
    bases = source.bases
    trained = replace(
        source.trained,
        phase=phase or source.trained.phase,
        base=source.trained.base or (next(iter(bases)) if len(bases) == 1 else None),
    )
    if layout == DIFFUSERS:
        factors = diffusers_layout.diffusers_factors(source.name, source.factors, trained.base)
        return _write(Path(path), diffusers_layout.PREFIX, factors, {}, trained, source.metadata, diffusers_layout.rank_metadata(factors))
    return write_adapter(path, source.factors, trained, source.metadata)


def _with_rank(trained: Trained, factors: Mapping[str, Factor]) -> Trained:
    """Rank and alpha as metadata, where they are the same for every module."""
    ranks = {f.rank for f in factors.values()}
    alphas = {f.scale * f.rank for f in factors.values()}
    return replace(
        trained,
        rank=ranks.pop() if len(ranks) == 1 else None,
        alpha=alphas.pop() if len(alphas) == 1 else None,
    )
