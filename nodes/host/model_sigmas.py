"""The teacher's sigmas for a MODEL at a latent's size, and the steps that a pair takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch

from ...glance_core.errors import ScheduleError
from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.models import DYNAMIC_SHIFTS
from ...glance_core.schedule.sigmas import HOST, TEACHER_STEPS, teacher_sigmas
from ...glance_core.schedule.split import Split, parse_steps, split_steps
from .base_model import base_of, check_flow

AUTO = "auto"
SCHEDULES = [AUTO, *DYNAMIC_SHIFTS, HOST]


@dataclass(frozen=True)
class ModelSigmas:
    """The rule's name, and the teacher's T + 1 sigmas."""

    rule: str
    values: tuple[float, ...]


def rule_of(patcher: Any) -> str:
    """Return the sigma rule of this model: its base's, or the host's own sigmas."""
    rule = base_of(patcher).sigma_rule
    return rule.name if rule else HOST


def model_sigmas(patcher: Any, latent_shape: tuple[int, ...], rule: str, pair: PairMetadata) -> ModelSigmas:
    """Return the teacher's sigmas for this model at this latent size.

    Args:
        rule: `auto` takes what the pair was trained on, else the model's own.

    Raises:
        ScheduleError: for a rule that the pair was not trained on.
    """
    if rule == AUTO:
        rule = pair.sigma_rule or rule_of(patcher)
    elif pair.sigma_rule not in (None, rule):
        raise ScheduleError(f"schedule is {rule}, but the pair was trained on {pair.sigma_rule}; choose auto")
    if rule != HOST:
        check_flow(patcher, f"the {rule} sigmas")
    steps = pair.teacher_steps or TEACHER_STEPS
    own = None
    if rule == HOST:
        sampling = patcher.get_model_object("model_sampling")
        own = comfy.samplers.calculate_sigmas(sampling, "simple", steps).tolist()
    tokens = latent_tokens(latent_shape, base_of(patcher).latents_per_token)
    return ModelSigmas(rule, teacher_sigmas(rule, steps, tokens=tokens, shift=pair.shift, sigmas=own))


def latent_tokens(shape: tuple[int, ...], latents_per_token: int = 2) -> int:
    """Return the tokens of a latent (..., H, W): squares of latents, padded up as the model does."""
    height, width = (-(-side // latents_per_token) for side in shape[-2:])
    return height * width


def split_for(pair: PairMetadata, slow_steps: int, fast_steps: int, teacher_steps: str) -> Split:
    """Return the teacher steps to take.

    They are the typed ones; else the trained ones if the counts agree; else the paper's rule at the trained boundary.
    """
    total = pair.teacher_steps or TEACHER_STEPS
    if teacher_steps.strip():
        return parse_steps(teacher_steps, total)
    trained = pair.split
    if trained and (len(trained.slow), len(trained.fast)) == (slow_steps, fast_steps):
        return trained
    return split_steps(slow_steps, fast_steps, total, trained.fast[0] if trained else None)


def starting_noise(patcher: Any, sigmas: Sequence[float], shape: Sequence[int], count: int, seed: int) -> torch.Tensor:
    """Return noise (count, ...) at the first sigma, for latents of this shape (B, ...); drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    noise = torch.randn((count, *shape[1:]), generator=generator).to(patcher.load_device)
    sigma = torch.tensor([sigmas[0]], device=noise.device)
    sampling = patcher.get_model_object("model_sampling")
    started: torch.Tensor = sampling.noise_scaling(sigma, noise, torch.zeros_like(noise), True)
    return started
