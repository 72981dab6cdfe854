"""Write an adapter in the project's own format: `<prefix>.<module>.lora_A|lora_B.weight`, `.alpha`, and metadata.

The prefix is `diffusion_model`, or `transformer` for diffusers' names that ComfyUI knows only so (`lora_names.written_prefix`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from . import lora_names as names
from .adapter_metadata import Trained, written_metadata
from .errors import AdapterError
from .lora_file import Adapter, Factor

# What a source file says of its scale; the written tensors say it themselves.
_RESTATED = ("lora_adapter_metadata", "ss_network_alpha", "ss_network_dim")


def write_adapter(
    path: str | os.PathLike[str], factors: Mapping[str, Factor], trained: Trained, others: Mapping[str, str] | None = None
) -> Path:
    """Write `factors` (by module name) to a new file, whole or not at all; an existing file is never overwritten.

    Every module gets its alpha, also where the scale was assumed, so that the file means the same everywhere. `others` is metadata to
    keep where it says nothing of what is written here (author, licence, trigger words). Raises AdapterError.
    """
    path = Path(path)
    bases = frozenset([trained.base]) if trained.base else names.possible_bases(factors)
    prefix = names.written_prefix(factors, bases)
    tensors: dict[str, torch.Tensor] = {}
    for module, factor in factors.items():
        key = prefix + module
        tensors[f"{key}.lora_A.weight"] = factor.down.contiguous()
        tensors[f"{key}.lora_B.weight"] = factor.up.contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(factor.scale * factor.rank, dtype=torch.float32)
    kept = {key: value for key, value in (others or {}).items() if not key.startswith("glance.") and key not in _RESTATED}
    publish(path, tensors, kept | written_metadata(_with_rank(trained, factors), path.stem))
    return path


def convert(source: Adapter, path: str | os.PathLike[str], phase: str | None = None) -> Path:
    """Rewrite a read adapter in the project's format; `phase` states what the file may not."""
    bases = source.bases
    trained = replace(
        source.trained,
        phase=phase or source.trained.phase,
        base=source.trained.base or (next(iter(bases)) if len(bases) == 1 else None),
    )
    return write_adapter(path, source.factors, trained, source.metadata)


def publish(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write beside the target, flush to the disk, then give it its name: a reader never sees half a file."""
    exists = AdapterError(f"{path} exists already and is not overwritten; choose another name")
    if path.exists():
        raise exists
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise AdapterError(f"{path}: cannot be written ({error.strerror}); choose a folder that exists and is writable") from error
    try:
        save_file(dict(tensors), temporary, metadata=dict(metadata))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # as any new file; a temporary one is its maker's alone
        try:
            os.link(temporary, path)  # unlike a rename, fails where another process took the name meanwhile
        except FileExistsError:
            raise exists from None
        except OSError as error:  # file systems without hard links
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK, errno.EINVAL):
                raise
            if path.exists():
                raise exists from None
            os.replace(temporary, path)
    except (OSError, SafetensorError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise AdapterError(f"{path}: cannot be written ({why}); free some space or choose another folder or name") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _with_rank(trained: Trained, factors: Mapping[str, Factor]) -> Trained:
    """Rank and alpha as metadata, where they are the same for every module."""
    ranks = {f.rank for f in factors.values()}
    alphas = {f.scale * f.rank for f in factors.values()}
    return replace(
        trained,
        rank=ranks.pop() if len(ranks) == 1 else None,
        alpha=alphas.pop() if len(alphas) == 1 else None,
    )
