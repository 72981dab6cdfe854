"""What a long run shows on its node: bar, text, picture."""

from __future__ import annotations

import time
from typing import Any

import comfy.model_management
import comfy.utils
import numpy
import torch
from PIL import Image
from server import PromptServer

_SECONDS_BETWEEN_TEXTS = 0.5


class NodeProgress:
    """Progress on a node. Every call ends the run, by raising, if the user interrupted it."""

    def __init__(self, node_id: str | None, total: int):
        self.node_id, self.bar = node_id, comfy.utils.ProgressBar(max(1, total), node_id=node_id)
        self.offset = self.total = self.done = 0
        self.name, self.began, self.texted, self.first = "", time.monotonic(), 0.0, 0

    def stage(self, name: str, total: int) -> None:
        """Begin the next stage of the run."""
        self.offset += self.total
        self.name, self.total, self.done, self.began, self.first = name, total, 0, time.monotonic(), -1

    def tick(self, count: int) -> None:
        """Count `count` more of the stage."""
        self.show(self.done + count, "")

    def pause(self, count: int) -> None:
        """Move nothing, for work that no stage counts."""
        comfy.model_management.throw_exception_if_processing_interrupted()

    def show(self, done: int, note: str, picture: Any = None) -> None:
        """Set how much of the stage is done."""
        self.pause(0)
        now = time.monotonic()
        if self.first < 0:  # a resumed run does not start at 0
            self.first, self.began = done, now
        self.done = done
        self.bar.update_absolute(min(self.offset + done, self.bar.total), self.bar.total, picture)
        if now - self.texted > _SECONDS_BETWEEN_TEXTS or done == self.total:
            self.texted = now
            self._send(self._text(now, note))

    def _text(self, now: float, note: str) -> str:
        speed = (self.done - self.first) / max(now - self.began, 1e-9)
        left = f"{(self.total - self.done) / speed:.0f} s left" if speed else ""
        parts = (f"{self.name} {self.done}/{self.total}", note, f"{speed:.2f}/s", left)
        return ", ".join(part for part in parts if part)

    def _send(self, text: str) -> None:
        if self.node_id is not None and getattr(PromptServer, "instance", None) is not None:
            PromptServer.instance.send_progress_text(text, self.node_id)


def as_image(drawn: Image.Image) -> torch.Tensor:
    """Return a picture as ComfyUI's IMAGE (1, H, W, 3), 0 to 1."""
    return torch.from_numpy(numpy.array(drawn)).float()[None] / 255
