"""Safetensors files: read with one clear sentence for damaged or disguised ones, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import AdapterError, NameTaken
from .file_type import START, of_bytes

PART = ".part"  # ends the name of what is still being written
HASH = "(the SHA-256 of the tensors)".ljust(64, ".")  # stands for the hash in metadata that is about to be written
# No LoRA and no checkpoint of ours comes near these; a file made to exhaust memory or patience does.
_LONGEST_HEADER = 25_000_000  # bytes
_MOST_TENSORS = 100_000
_LONGEST_NAME = 500  # characters of a tensor's name
_TRIES = 100
_LONGEST_PARSED_HEADER = 2_000_000  # bytes of a damaged file's header that are parsed here to say what is wrong


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return every tensor (mapped from disk, not copied) and the metadata of a safetensors file.

    All of it comes from one file: safetensors opens the path more than once, so the file is read again if another
    took its name meanwhile.

    Raises:
        AdapterError: for a file that cannot be read.
    """
    for _ in range(_TRIES):
        before = _identity(path)
        try:
            found = _read(path)
        except AdapterError:
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return found
    raise AdapterError(f"{path.name}: another program keeps writing it; wait until it is done")


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells the file that has this name now from another."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    size, start = _size_and_start(path)
    if size == 0:
        raise AdapterError(f"{path.name}: the file is empty; download it again")
    header = int.from_bytes(start[:8], "little")
    # Other formats begin with other bytes, but none with such a length and then a brace.
    if not (header <= _LONGEST_HEADER and start[8:9] == b"{"):
        what = of_bytes(start)
        if what is not None:
            raise AdapterError(f"{path.name}: {what}")
    if size < 8 or header > size - 8:
        raise AdapterError(
            f"{path.name}: the header claims {header} bytes but the file has {size}; it is truncated or not a "
            "safetensors file, download it again"
        )
    if header > _LONGEST_HEADER:
        raise AdapterError(
            f"{path.name}: its header has {header} bytes, above the limit of {_LONGEST_HEADER}; it is not a LoRA"
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            _check_names(path.name, keys)
            return {key: file.get_tensor(key) for key in keys}, dict(file.metadata() or {})
    except AdapterError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        what = _wrong_size(path, header, size) or f"it is not a valid safetensors file ({error})"
        raise AdapterError(f"{path.name}: {what}; download it again") from error


def _size_and_start(path: Path) -> tuple[int, bytes]:
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(
            found.st_mode
        ):  # opening a pipe may wait for somebody who writes
            with open(path, "rb") as file:
                return found.st_size, file.read(START)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise AdapterError(f"{path.name or path}: cannot be opened ({why}); check the path") from error
    raise AdapterError(f"{path.name}: this is a pipe, a socket or a device, not a file; choose a .safetensors file")


def _check_names(name: str, keys: Sequence[str]) -> None:
    if len(keys) > _MOST_TENSORS:
        raise AdapterError(
            f"{name}: it holds {len(keys)} tensors, above the limit of {_MOST_TENSORS}; it is not a LoRA"
        )
    for key in keys:
        if len(key) > _LONGEST_NAME or not key.isprintable():
            raise AdapterError(
                f"{name}: a tensor is named {key[:60]!r}, with {len(key)} characters; names may have {_LONGEST_NAME} "
                f"printable characters, so get the file from its publisher"
            )


def _wrong_size(path: Path, header: int, size: int) -> str | None:
    """Return a sentence if the file ends elsewhere than its header says."""
    if header > _LONGEST_PARSED_HEADER:
        return None
    try:
        with open(path, "rb") as file:
            stated = json.loads(file.read(8 + header)[8:])
        ends = [each["data_offsets"][1] for name, each in stated.items() if name != "__metadata__"]
        whole = 8 + header + max(end for end in ends if isinstance(end, int) and 0 <= end < 2**62)
    except (OSError, ValueError, RecursionError, TypeError, LookupError, AttributeError):
        return None
    if whole > size:
        return f"it is cut off: its header says {whole} bytes and the file has {size}"
    return f"it is longer than its header says, {size} bytes instead of {whole}" if whole < size else None


def write_new(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a new file, whole or not at all; `HASH` in its metadata becomes the hash of its tensors.

    Raises:
        NameTaken: if a file of this name exists.
        AdapterError: if it cannot be written.
    """
    _write_new(path, lambda temporary: _save(temporary, tensors, metadata))


def write_new_bytes(path: Path, content: bytes) -> None:
    """Do the same for any other file."""
    _write_new(path, lambda temporary: Path(temporary).write_bytes(content))


def _write_new(path: Path, save: Callable[[str], object]) -> None:
    exists = NameTaken(f"{path} exists already and is not overwritten; choose another name")
    if os.path.lexists(path):
        raise exists

    def take_name(temporary: str) -> None:
        try:
            os.link(temporary, path)  # unlike a rename, fails if another process took the name meanwhile
        except FileExistsError:
            raise exists from None
        except OSError as error:  # file systems without hard links
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK, errno.EINVAL):
                raise
            if os.path.lexists(path):
                raise exists from None
            os.replace(temporary, path)

    _write(path, save, take_name)


def write_over(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a file of our own making; the old one stays whole until the new one is."""
    _write(
        path,
        lambda temporary: _save(temporary, tensors, metadata),
        lambda temporary: os.replace(temporary, path),
    )


def _save(temporary: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    save_file(dict(tensors), temporary, metadata=dict(metadata))
    if any(HASH in value for value in metadata.values()):
        _fill_in_hash(temporary)


def _fill_in_hash(temporary: str) -> None:
    """Write the hash over its stand-in. Both have one length, so no tensor moves."""
    with open(temporary, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header, digest = file.read(length), hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        file.seek(8)
        file.write(header.replace(HASH.encode(), digest.hexdigest().encode()))


def _write(path: Path, save: Callable[[str], object], take_name: Callable[[str], None]) -> None:
    """Write beside the target, flush to disk, then take its name, so that a reader never sees half a file.

    It uses a hidden folder of its own: the library writes through a nameless file, which a kill would leave behind.
    """
    try:
        beside = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
    except (OSError, ValueError) as error:  # ValueError: a name with characters that no name may have
        why = getattr(error, "strerror", None) or error
        raise AdapterError(f"{path}: cannot be written ({why}); choose a writable folder and a plain name") from error
    temporary = os.path.join(beside, "whole")
    try:
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_of_new_files(beside))
        take_name(temporary)
    except (OSError, SafetensorError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise AdapterError(
            f"{path}: cannot be written ({why}); free some space or choose another folder or name"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _sync_folder(path.parent)


def _mode_of_new_files(folder: str) -> int:
    """Return the mode that new files get here. Asking for the umask would change it, for every other thread too."""
    made = Path(folder, "mode")
    made.touch()
    return stat.S_IMODE(made.stat().st_mode)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, if the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
