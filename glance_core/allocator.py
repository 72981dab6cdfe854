"""The C library's memory allocator, for programs whose tensors have a few megabytes."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)
_BYTES = {_TRIM_THRESHOLD: 2_000_000_000, _TOP_PAD: 64_000_000, _MMAP_THRESHOLD: 1_000_000_000}


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free. Handing it back takes a fifth of a small model's time on a CPU.

    Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in _BYTES.items():
            mallopt(option, value)
