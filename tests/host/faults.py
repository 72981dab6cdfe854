"""Inject faults into the pack while it runs: before any line of its code, or in any operation of torch."""

import contextlib
import sys
from collections import Counter

import comfyui
import tiny_models
from torch.utils._python_dispatch import TorchDispatchMode

FOLDERS = tuple(str(comfyui.PACK / folder) + "/" for folder in ("nodes", "glance_core"))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


class AtLine:
    """Raises before a line of the pack's own code, in this thread. An interrupt can come between any two lines.

    at: (file, line). occurrence: how often the line has run then, counted from 1. seen: how often each line ran.
    """

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
        return self._line if not self.raised and frame.f_code.co_filename.startswith(FOLDERS) else None

    def _line(self, frame, event, _):
        if event == "line" and not self.raised:
            here = (frame.f_code.co_filename, frame.f_lineno)
            self.seen[here] += 1
            if here == self.at and self.seen[here] == self.occurrence:
                self.raised = True
                raise self.error
        return self._line


class AtOperation(TorchDispatchMode):
    """Counts operations of torch. Number `at` raises instead, as it does without memory for its result."""

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
    """Return the places for faults in run(): lines of the pack, and numbers of torch's operations.

    A line is ((file, line), occurrence), for its first and its last time.
    """
    with AtLine() as lines, AtOperation() as operations:
        run()
    return [(line, n) for line, times in lines.seen.items() for n in sorted({1, times})], range(1, operations.count + 1)


def run_under(fault, run):
    """Return whether the fault came up in run(), and whether run() ended well anyway.

    The error loses its traceback, as in a host: a traceback keeps every frame, and an open file in a frame its lock.
    """
    ended = False
    with contextlib.suppress(BaseException), fault:
        run()
        ended = True
    fault.error.__traceback__ = None
    return fault.raised, ended


def left_on(model, before):
    """Return what a run left on the model, as text; empty if the model is as it was."""
    try:
        tiny_models.assert_bit_exact(model, before)
    except AssertionError as error:
        for module in model.model.modules():  # later faults must start with a clean model
            module.__dict__.pop("forward", None)
        return str(error).splitlines()[0]
    hooked = [name for name, module in model.model.named_modules() for hooks in HOOKS if getattr(module, hooks, None)]
    if hooked:
        return f"hooks on {hooked[0]}"
    registered = [*model.wrappers.values(), model.injections, model.additional_models, model.attachments, model.patches]
    return "something registered on the base" if any(registered) else ""
