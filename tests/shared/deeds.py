"""What a process does that nobody asked it for, as Python's audit hooks tell it (PEP 578).

Imports run code too, so everything is done once before one watches. What Rust and C++ do underneath no hook sees: tests compare folders as well.
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

_STRANGE = (
    "pickle.", "marshal.loads", "socket.", "urllib.", "http.client.", "ftplib.", "smtplib.", "poplib.",
    "imaplib.", "telnetlib.", "webbrowser.", "subprocess.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.startfile", "pty.",
)  # fmt: skip
_CODE = ("exec", "compile", "code.__new__", "function.__new__")
_LIBRARY = tuple(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
# Of the event's arguments: those that are paths, and where it has one the folder's descriptor that they are relative to.
_WRITES = {
    "os.mkdir": ((0,), 2), "os.remove": ((0,), 1), "os.rmdir": ((0,), 1), "os.rename": ((0, 1), 2), "os.link": ((0, 1), 2), "os.symlink": ((1,), 2),
    "os.truncate": ((0,), None), "os.chmod": ((0,), 2), "os.chown": ((0,), 3), "os.utime": ((0,), 3), "os.setxattr": ((0,), None),
}  # fmt: skip
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Deeds:
    """Strange deeds while `watching`; to write below one of `allowed` is none. ours: where a host runs too, which makes code of its own
    (named tuples, say), code counts that is made for a file below here."""

    def __init__(self, allowed, ours=None):
        self.ours = ours and os.path.realpath(ours)
        self.allowed = [Path(os.path.realpath(folder)) for folder in (*allowed, tempfile.gettempdir())]
        self.watching, self.strange, self.seen = False, [], 0
        sys.addaudithook(self._heard)

    def _heard(self, event, arguments):
        if not self.watching:
            return
        self.watching = False  # what is done to find out is no deed
        try:
            self.seen += 1
            if event.startswith(_STRANGE) or (event in _CODE and (self.ours is None or _maker().startswith(self.ours + os.sep))):
                self.strange.append(f"{event} {arguments!r:.200}")
            for path in _written(event, arguments):
                if not any(Path(os.path.realpath(path)).is_relative_to(folder) for folder in self.allowed) and path != os.devnull:
                    self.strange.append(f"{event} {path}")
        finally:
            self.watching = True


def _maker():
    """The file that asked for it: the nearest that is neither this one nor in the standard library."""
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
        beneath = arguments[relative] if relative is not None else -1
        for place in places:
            if isinstance(arguments[place], (str, bytes)):
                yield os.path.join(os.readlink(f"/proc/self/fd/{beneath}") if beneath != -1 else "", os.fsdecode(arguments[place]))


def state(*folders):
    """Every file below, with its size and when it was last written; but no compiled Python."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in Path(folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
