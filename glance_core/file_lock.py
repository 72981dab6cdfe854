"""A lock that one process holds on a path; the system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import AdapterError

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether the lock is ours, for as long as we are inside; the file is made for it, and gone afterwards. On a file system without locks it
    is ours, and the log says that nobody else is kept out. Raises AdapterError where no file can be made."""
    file = _taken(path)
    if file is None:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            if sys.platform != "win32":  # while it is ours: whoever opened it before finds out that it lost its name
                _unlink(path)
    if sys.platform == "win32":  # where an open file keeps its name
        _unlink(path)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # a file left behind is locked by nobody
        path.unlink()


def _taken(path: Path) -> BinaryIO | None:
    """The open, locked file of this very path; None where another has it. An object, that lets go wherever an interrupt drops it."""
    while True:
        try:
            file = open(path, "ab")  # noqa: SIM115  closed where the lock ends
        except OSError as error:
            raise AdapterError(f"{path}: cannot be written ({error.strerror}); free some space or choose another folder or name") from error
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in _HELD:
                file.close()
                return None
            logging.getLogger("glance").warning(
                "Glance: %s cannot be locked (%s); let no other training of this name run there", path, error.strerror
            )
            return file
        if _is_at(file, path):
            return file
        file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the path still leads to the open file: its former holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
