"""Record what a process does without being asked, by Python's audit hooks (PEP 578).

Imports run code too, so do everything once before watching. Hooks do not see what Rust and C++ do, so tests compare
folders as well.
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

_FORBIDDEN = (
    "pickle.", "marshal.loads", "socket.", "urllib.", "http.client.", "ftplib.", "smtplib.", "poplib.",
    "imaplib.", "telnetlib.", "webbrowser.", "subprocess.", "os.system", "os.exec", "os.fork", "os.spawn",
    "os.posix_spawn", "os.startfile", "pty.",
)  # fmt: skip
_CODE = ("exec", "compile", "code.__new__", "function.__new__")
_LIBRARY = tuple(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
# Event -> which of its arguments are paths, and which is the descriptor of the folder that they are relative to.
_WRITES = {
    "os.mkdir": ((0,), 2), "os.remove": ((0,), 1), "os.rmdir": ((0,), 1), "os.rename": ((0, 1), 2),
    "os.link": ((0, 1), 2), "os.symlink": ((1,), 2), "os.truncate": ((0,), None), "os.chmod": ((0,), 2),
    "os.chown": ((0,), 3), "os.utime": ((0,), 3), "os.setxattr": ((0,), None),
}  # fmt: skip
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class AuditHook:
    """While `watching`, collects forbidden events, and writes outside of the allowed folders.

    allowed: folders to write into, beside the temporary one. ours: in a host, which creates code itself (named tuples,
    for example), only code counts that a file below this folder asked for. seen: how many events there were.
    """

    def __init__(self, allowed, ours=None):
        self.ours = ours and os.path.realpath(ours)
        self.allowed = [Path(os.path.realpath(folder)) for folder in (*allowed, tempfile.gettempdir())]
        self.watching, self.forbidden, self.seen = False, [], 0
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if not self.watching:
            return
        self.watching = False  # the checks themselves cause events
        try:
            self.seen += 1
            ours = self.ours is None or _caller().startswith(self.ours + os.sep) if event in _CODE else False
            if event.startswith(_FORBIDDEN) or ours:
                self.forbidden.append(f"{event} {arguments!r:.200}")
            for path in _written(event, arguments):
                inside = any(Path(os.path.realpath(path)).is_relative_to(folder) for folder in self.allowed)
                if not inside and path != os.devnull:
                    self.forbidden.append(f"{event} {path}")
        finally:
            self.watching = True


def _caller():
    """Return the nearest file on the stack that is neither this one nor in the standard library."""
    frame = sys._getframe(2)
    while frame is not None:
        file = os.path.realpath(frame.f_code.co_filename)
        if os.path.isabs(frame.f_code.co_filename) and ("site-packages" in file or not file.startswith(_LIBRARY)):
            return file
        frame = frame.f_back
    return ""


def _written(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes)) and (set(mode or "") & set("wax+") or (flags or 0) & _FLAGS):
            yield os.fsdecode(path)
    if event in _WRITES:
        places, relative = _WRITES[event]
        descriptor = arguments[relative] if relative is not None else -1
        folder = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor != -1 else ""
        for place in places:
            if isinstance(arguments[place], (str, bytes)):
                yield os.path.join(folder, os.fsdecode(arguments[place]))


def state(*folders):
    """Return each file below, with its size and the time of its last write; compiled Python does not count."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in Path(folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
