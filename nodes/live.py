"""What a long run shows on its node: bar, text, picture."""

from __future__ import annotations

import time
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import latent_preview
import numpy
import torch
from PIL import Image
from server import PromptServer

from ..glance_core import tiny
from ..glance_core.tiny import packing
from . import host


class Live:
    """Progress on the node: bar, text with speed and remaining time, picture. Every call ends the run where the user interrupted it."""

    def __init__(self, node_id: str | None, total: int):
        self.node_id, self.bar = node_id, comfy.utils.ProgressBar(max(1, total), node_id=node_id)
        self.offset = self.total = self.done = 0
        self.what, self.began, self.said, self.first = "", time.monotonic(), 0.0, 0

    def stage(self, what: str, total: int) -> None:
        self.offset += self.total
        self.what, self.total, self.done, self.began, self.first = what, total, 0, time.monotonic(), -1

    def step(self, count: int) -> None:
        self.at(self.done + count, "")

    def still(self, count: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def at(self, done: int, note: str, picture: Any = None) -> None:
        self.still(0)
        now = time.monotonic()
        if self.first < 0:  # a run that was taken up again does not start at 0
            self.first, self.began = done, now
        self.done = done
        self.bar.update_absolute(min(self.offset + done, self.bar.total), self.bar.total, picture)
        if now - self.said > 0.5 or done == self.total:
            self.said = now
            speed = (done - self.first) / max(now - self.began, 1e-9)
            left = f"{(self.total - done) / speed:.0f} s left" if speed else ""
            text = ", ".join(part for part in (f"{self.what} {done}/{self.total}", note, f"{speed:.2f}/s", left) if part)
            if self.node_id is not None and getattr(PromptServer, "instance", None) is not None:
                PromptServer.instance.send_progress_text(text, self.node_id)


def as_image(drawn: Image.Image) -> torch.Tensor:
    """A picture as ComfyUI's IMAGE (1, H, W, 3), 0 to 1."""
    return torch.from_numpy(numpy.array(drawn)).float()[None] / 255


def preview(model: Any, latent: torch.Tensor) -> tuple[str, Image.Image, int] | None:
    """A small picture of a latent (1, ...), as the host's samplers show it."""
    if host.architecture(model) == tiny.BASE:
        pixels = packing.unpack(latent[:1].float().cpu())[0].movedim(0, -1)
        return "JPEG", latent_preview.preview_to_image(pixels).resize((256, 256), Image.Resampling.NEAREST), 512
    known: comfy.latent_formats.LatentFormat = model.model.latent_format
    if known.latent_rgb_factors is None:
        return None
    maker = latent_preview.Latent2RGBPreviewer(known.latent_rgb_factors, known.latent_rgb_factors_bias, known.latent_rgb_factors_reshape)
    return maker.decode_latent_to_preview_image("JPEG", latent.float())
