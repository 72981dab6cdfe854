"""A model of the host as its own teacher: what the nodes that let it walk all of its steps ask of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ..glance_core.adapter_metadata import Trained
from ..glance_core.errors import ScheduleError
from . import host, pair
from . import student as glue


def teacher_inputs(positive: str) -> list[Any]:
    """What every node asks that lets the model walk all of its steps; positive: the tooltip of the prompts."""
    return [
        io.Model.Input("model", tooltip="The model as it is before Load Glance LoRA."),
        io.Conditioning.Input("positive", tooltip=positive),
        io.Conditioning.Input("negative", optional=True, tooltip="As you sample with; needed where cfg is not 1."),
        io.Latent.Input("latent_image", tooltip="An empty latent; its size decides the ladder."),
        io.Float.Input(
            "cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01,
            tooltip="The guidance the teacher samples with: Qwen-Image 4, FLUX.1-dev 1, the embedded model 4.",
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Teacher:
    """prompts, against: entries of conditionings; samples (1, ...): a latent of the size that is sampled; ladder (T + 1): sigmas."""

    patcher: Any
    prompts: list[Any]
    against: list[Any]
    samples: torch.Tensor
    kind: str
    ladder: tuple[float, ...]

    def noise(self, runs: int, seed: int) -> torch.Tensor:
        """Where its ladder starts (runs, ...)."""
        return host.starting_noise(self.patcher, self.ladder, self.samples.shape, runs, seed)

    def run(self, seed: int, work: Callable[[glue.Conditioned, torch.Tensor], None]) -> None:
        """work(conditioned, samples) with the model loaded."""
        glue.run(self.patcher, self.prompts, self.against, self.samples, seed, "auto", 0, work)


def taught_by(patcher: Any, positive: list[Any], negative: list[Any] | None, latent: Any, cfg: float, schedule: str) -> Teacher:
    """Raises ScheduleError for what no teacher can be made of."""
    prompts, against = glue.entries(positive), glue.entries(negative)
    if cfg != 1 and not against:
        raise ScheduleError(f"cfg is {cfg:g} but no negative prompt is wired; wire one, empty if need be, or set cfg to 1")
    if pair.pair_of(patcher) is not None:
        raise ScheduleError(
            "the model carries a Glance pair, so its own steps are no teacher; wire the model as it is before Load Glance LoRA"
        )
    samples = host.fixed_latent(patcher, latent)[:1]
    if samples.is_nested:
        raise ScheduleError("a latent of several parts (video with sound) cannot be walked here; use a picture's or a silent video's")
    return Teacher(patcher, prompts, against, samples, *host.teacher_ladder(patcher, tuple(samples.shape), schedule, Trained()))
