"""Faults put into the pack while it runs: before any line of its code, or in any operation of torch."""

import sys
from collections import Counter

import comfyui
from torch.utils._python_dispatch import TorchDispatchMode

ROOMS = tuple(str(comfyui.PACK / room) + "/" for room in ("nodes", "glance_core"))


class AtLine:
    """While it is entered, the lines of the pack's own code that this thread runs are counted by (file, number); `error` is raised before
    the given occurrence of the line `at`. An interrupt can come between any two lines, also between two that belong together."""

    def __init__(self, at=None, occurrence=1, error=None):
        self.at, self.occurrence, self.error = at, occurrence, error
        self.seen = Counter()
        self.raised = False

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def _call(self, frame, event, _):
        return self._line if not self.raised and frame.f_code.co_filename.startswith(ROOMS) else None

    def _line(self, frame, event, _):
        if event == "line" and not self.raised:
            here = (frame.f_code.co_filename, frame.f_lineno)
            self.seen[here] += 1
            if here == self.at and self.seen[here] == self.occurrence:
                self.raised = True
                raise self.error
        return self._line


class AtOperation(TorchDispatchMode):
    """Operations of torch are counted; that of number `at` raises `error` instead, as it does where no memory is left for its result."""

    def __init__(self, at=0, error=None):
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    @property
    def raised(self):
        return 0 < self.at <= self.count

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise self.error
        return function(*args, **(kwargs or {}))


def places(run):
    """((line, occurrence) for the first and the last time that each line of the pack runs in run(), the numbers of its operations)."""
    with AtLine() as lines, AtOperation() as operations:
        run()
    return [(line, n) for line, times in lines.seen.items() for n in sorted({1, times})], range(1, operations.count + 1)
