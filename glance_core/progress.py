"""A progress bar on the terminal."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

_REDRAW = {True: 0.2, False: 10}  # seconds, on a terminal and elsewhere


class Progress:
    """with Progress("sampling", 40) as bar: bar.step("loss 0.1").

    Drawn on stderr: in place on a terminal, else a line every ten seconds.
    """

    def __init__(self, what: str, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self.what, self.total, self.done = what, total, done
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.started = self.drawn = time.monotonic()
        self.first = done

    def __enter__(self) -> Progress:
        if self.live:
            self._draw(0.0, "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.stream.write("\n")
            self.stream.flush()

    def step(self, note: str = "", count: int = 1) -> None:
        """Count `count` more, and draw the bar if it is due."""
        self.done += count
        now = time.monotonic()
        if now - self.drawn >= _REDRAW[self.live] or self.done >= self.total:
            self.drawn = now
            self._draw(now - self.started, note)

    def _draw(self, seconds: float, note: str) -> None:
        speed = (self.done - self.first) / max(seconds, 1e-9)
        left = (self.total - self.done) / speed if speed else 0
        bar = "#" * round(24 * self.done / max(self.total, 1))
        line = f"{self.what:<16.16} [{bar:<24}] {self.done}/{self.total}  {speed:.1f}/s  {_clock(left)} left  {note}"
        width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be drawn over
        self.stream.write(f"\r{line[:width]:<{width}}" if self.live else line.rstrip() + "\n")
        self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
