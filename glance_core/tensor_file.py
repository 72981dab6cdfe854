"""Read a safetensors file that may come from anybody: damage and disguise are told in one sentence, nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import AdapterError

_HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library itself


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor and the metadata of a safetensors file, after the checks that give a clear sentence."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{path.name or path}: cannot be opened ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    if size == 0:
        raise AdapterError(f"{path.name}: the file is empty; download it again")
    header = int.from_bytes(start, "little")
    if size < 8 or header > size - 8:
        raise AdapterError(f"{path.name}: {_what_else(start, header, size)}")
    if header > _HEADER_LIMIT:
        raise AdapterError(f"{path.name}: a header of {header} bytes is above the limit of {_HEADER_LIMIT}; this is no LoRA")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        raise AdapterError(f"{path.name}: not a valid safetensors file ({error}); download it again") from error


def _what_else(start: bytes, header: int, size: int) -> str:
    """What a file that cannot be safetensors is, and the way out. Its first bytes alone would not tell: they are a length there."""
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "this is a pickled checkpoint, which can run code; convert it to safetensors"
    if start.lstrip()[:1] == b"<":
        return "this is a web page, not a model; download the file itself"
    return f"the header claims {header} bytes but the file has {size}; it is truncated or no safetensors file, download it again"
