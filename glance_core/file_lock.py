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
    ours = None
    while ours is None:
        with _opened(path) as file:  # closed also where an interrupt comes before the lines below, or between them
            try:
                ours = _taken(file, path)
                if ours is not None:
                    yield ours
            finally:
                _let_go(file, path, bool(ours))


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "ab")
    except OSError as error:
        raise AdapterError(f"{path}: cannot be written ({error.strerror}); free some space or choose another folder or name") from error


def _taken(file: BinaryIO, path: Path) -> bool | None:
    """Lock the open file: whether that is ours now. None where its former holder has removed it meanwhile: then it locks nothing."""
    try:
        _lock(file.fileno())
    except OSError as error:
        if error.errno in _HELD:
            return False
        logging.getLogger("glance").warning(
            "Glance: %s cannot be locked (%s); let no other training of this name run there", path, error.strerror
        )
        return True
    return True if _is_at(file, path) else None


def _let_go(file: BinaryIO, path: Path, ours: bool) -> None:
    if sys.platform == "win32":  # where an open file keeps its name
        file.close()
    if ours:
        with contextlib.suppress(OSError):  # a file left behind is locked by nobody
            path.unlink()
    file.close()  # last, where it can be: whoever opened it before finds out that it lost its name


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
