"""A MODEL as its own teacher: what nodes need that run it with all of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ...glance_core.errors import ScheduleError
from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.sampling.trial import try_model
from .base_model import first_mask, fixed_latent, latent_shape
from .conditioned import Conditioned, entries
from .model_sigmas import ModelSigmas, model_sigmas, starting_noise
from .nested import mapped, packed
from .patcher import check_no_steps, pair_of
from .training_model import TrainingInputs, with_loaded_model

T = TypeVar("T")


@dataclass(frozen=True)
class HostTeacher:
    """prompts, negative: entries of conditionings. samples (1, ...): a latent of the size that is sampled.

    cfg: its guidance. mask: its noise_mask.
    """

    patcher: Any
    prompts: list[Any]
    negative: list[Any]
    samples: Any
    sigmas: ModelSigmas
    cfg: float
    mask: torch.Tensor | None = None

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return self.sigmas.steps

    def noise(self, runs: int, seed: int) -> torch.Tensor:
        """Return the start of its runs (runs, ...)."""
        return starting_noise(self.patcher, self.sigmas.values, packed(self.samples).shape, runs, seed)

    def run(self, seed: int, work: Callable[[Conditioned], T]) -> T:
        """Return work(model on these prompts), with the model loaded. Raises ModelError if it cannot be a teacher."""
        inputs = TrainingInputs(self.patcher, self.prompts, self.negative, self.samples, seed, mask=self.mask)

        def tried(conditioned: Conditioned, _: Any) -> T:
            try_model(conditioned.velocity, self.cfg, self.noise(1, seed), self.sigmas.values)
            return work(conditioned)

        return with_loaded_model(inputs, tried)


@dataclass(frozen=True)
class TeacherChoices:
    """What a user chose for the full run. sigmas: its whole list, in place of schedule."""

    latent: Any
    cfg: float
    schedule: str
    sigmas: torch.Tensor | None = None


def host_teacher(patcher: Any, positive: list[Any], negative: list[Any] | None, choices: TeacherChoices) -> HostTeacher:
    """Return the teacher of these inputs. Raises ScheduleError for what cannot be one."""
    prompts, negatives, cfg = entries(positive), entries(negative), choices.cfg
    if cfg != 1 and not negatives:
        raise ScheduleError(
            f"cfg is {cfg:g} but no negative prompt is wired; wire one, even an empty one, or set cfg to 1"
        )
    if pair_of(patcher) is not None:
        raise ScheduleError(
            "the model carries a Glance pair, but its own steps are needed; wire the model from before Load Glance LoRA"
        )
    check_no_steps(patcher)
    samples = mapped(fixed_latent(patcher, choices.latent), lambda part: part[:1])
    sigmas = model_sigmas(
        patcher, latent_shape(patcher, choices.latent), choices.schedule, PairMetadata(), choices.sigmas
    )
    return HostTeacher(patcher, prompts, negatives, samples, sigmas, cfg, first_mask(choices.latent))
