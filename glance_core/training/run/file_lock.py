"""A lock that one process holds on a path. The system releases it when the process ends, however it ends."""

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

from ...errors import AdapterError

log = logging.getLogger("glance")
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
    """Yield whether the lock is ours. The file exists only meanwhile.

    On a file system without locks it is ours, and the log says that nobody else is kept out.

    Raises:
        AdapterError: if no file can be made.
    """
    ours = None
    while ours is None:
        with _opened(path) as file:  # closed also if an interrupt comes before or between the next lines
            try:
                ours = _try_lock(file, path)
                if ours is not None:
                    yield ours
            finally:
                _release(file, path, bool(ours))


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "ab")
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder or name"
        ) from error


def _try_lock(file: BinaryIO, path: Path) -> bool | None:
    """Lock the open file; return whether it is ours, or None if its last holder removed it, so try again."""
    try:
        _lock(file.fileno())
    except OSError as error:
        if error.errno in _HELD:
            return False
        log.warning(
            "Glance: cannot lock %s (%s); do not start another training run of this name there", path, error.strerror
        )
        return True
    return True if _is_at(file, path) else None


def _release(file: BinaryIO, path: Path, ours: bool) -> None:
    if sys.platform == "win32":  # an open file keeps its name there
        file.close()
    if ours:
        with contextlib.suppress(OSError):  # nobody holds a file that is left behind
            path.unlink()
    file.close()  # last, where possible: whoever opened it before finds that it lost its name


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
