"""A disk for one process: a small tmpfs that fills up or is read-only. It is private and ends with the process."""

import contextlib
import ctypes
import io
import json
import os
import sys
from pathlib import Path

from glance_core.__main__ import main

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 32, 0x4000, 0x40000
NOT_ALLOWED = 77  # exit status


def mount(at: Path, size: str) -> None:
    """Mount a tmpfs of this size for this process alone. Raises OSError if the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        user, group = os.getuid(), os.getgid()
        if libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), "unshare")
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    _mount(None, Path("/"), _MS_REC | _MS_PRIVATE)
    _mount(b"tmpfs", at, 0, f"size={size}")


def remount(at: Path, size: str, read_only: bool = False) -> None:
    _mount(None, at, _MS_REMOUNT | (_MS_RDONLY if read_only else 0), f"size={size}")


def _mount(kind: bytes | None, at: Path, flags: int, options: str = "") -> None:
    if ctypes.CDLL(None, use_errno=True).mount(kind, os.fsencode(at), kind, flags, options.encode() or None):
        raise OSError(ctypes.get_errno(), "mount", str(at))


def train_twice(arguments: list[str], folder: Path, size: str, read_only: bool, found: Path) -> None:
    """Train onto a disk of this size, then again when it is large. Write output and files into `found`."""
    folder.mkdir()
    try:
        mount(folder, size)
        remount(folder, size, read_only)
    except OSError:
        sys.exit(NOT_ALLOWED)
    report = {"first": _train(arguments), "kept": _listed(folder)}
    for path in folder.glob("*.run.safetensors"):
        (found / "kept.safetensors").write_bytes(path.read_bytes())
    remount(folder, "64m")
    report |= {"second": _train(arguments), "written": _listed(folder)}
    for path in folder.glob("*.safetensors"):
        (found / path.name).write_bytes(path.read_bytes())
    (found / "report.json").write_text(json.dumps(report))


def _train(arguments: list[str]) -> tuple[int, str]:
    """Return the exit status, and what it printed to stderr."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        return main(arguments), printed.getvalue()


def _listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
