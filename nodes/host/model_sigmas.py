"""The teacher's sigmas for a MODEL at a latent's size, and the steps that a pair takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch

from ...glance_core.errors import ScheduleError
from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.model_row import BaseModel
from ...glance_core.models import RULES
from ...glance_core.schedule.sigmas import HOST, LISTED, TEACHER_STEPS, check_falling, teacher_sigmas
from ...glance_core.schedule.split import Split, parse_steps, split_steps
from .base_model import base_of, check_flow, class_name, is_flow, is_known, known_parent
from .log import log

AUTO = "auto"
SETTINGS = "settings"  # the input of that name
_PAIRS_LIST = "the noise levels in the pair's files"
_OTHER_SETTINGS = "calibrate this model again, or leave settings unwired"
SCHEDULES = [AUTO, *RULES, HOST]

_unknown_models: set[str] = set()  # that were named in the log

_SAME = 1e-5  # two lists of one rule: schedulers compute in float32
_SAME_TRAINING = 1e-3  # noise levels that a pair cannot tell apart
_LOWEST_START = {True: 0.98, False: 0.85}  # of the highest sigma, for flow models and others; some schedulers leave it


@dataclass(frozen=True)
class ModelSigmas:
    """The rule's name, and the teacher's T + 1 sigmas."""

    rule: str
    values: tuple[float, ...]

    @property
    def steps(self) -> int:
        """How many steps the teacher takes."""
        return len(self.values) - 1

    @property
    def listed(self) -> tuple[float, ...] | None:
        """The sigmas, if no rule gives them again."""
        return self.values if self.rule == LISTED else None


def rule_of(patcher: Any) -> str:
    """Return the sigma rule of this model: its base's, or the host's own sigmas."""
    rule = base_of(patcher).sigma_rule
    return rule.name if rule else HOST


def model_sigmas(
    patcher: Any,
    latent_shape: tuple[int, ...],
    rule: str,
    pair: PairMetadata,
    wired: torch.Tensor | Sequence[float] | None = None,
    source: str = "sigmas",
) -> ModelSigmas:
    """Return the teacher's sigmas for this model at this latent size.

    Args:
        rule: `auto` takes what the pair was trained on, else the model's own.
        wired: the teacher's whole list, from a scheduler node. It replaces the rule.
        source: the input that rule or list come from, for errors: sigmas or settings.

    Raises:
        ScheduleError: for a rule or a list that the pair was not trained on.
    """
    if wired is not None:
        return _wired_sigmas(patcher, latent_shape, pair, wired, source)
    if rule == AUTO:
        rule = pair.sigma_rule or rule_of(patcher)
        if pair.sigma_rule is None:
            _say_if_unknown(patcher)
    elif pair.sigma_rule not in (None, rule):
        if source == SETTINGS:
            raise ScheduleError(
                f"settings are for {rule} sigmas, but the pair was trained on {pair.sigma_rule}; {_OTHER_SETTINGS}"
            )
        raise ScheduleError(f"schedule is {rule}, but the pair was trained on {pair.sigma_rule}; choose auto")
    if rule not in (HOST, LISTED):
        check_flow(patcher, f"the {rule} sigmas")
    steps = pair.teacher_steps or TEACHER_STEPS
    own: Sequence[float] | None = pair.teacher_sigmas
    if rule == LISTED and own:
        _check_whole_run(patcher, own, _PAIRS_LIST)
    if rule == HOST:
        sampling = patcher.get_model_object("model_sampling")
        own = comfy.samplers.calculate_sigmas(sampling, "simple", steps).tolist()
    tokens = rule_tokens(latent_shape, base_of(patcher))
    return ModelSigmas(rule, teacher_sigmas(rule, steps, tokens=tokens, shift=pair.shift, sigmas=own))


def _say_if_unknown(patcher: Any) -> None:
    """Log, once for each class of models, that no rule is known for it."""
    name, parent = class_name(patcher), known_parent(patcher)
    if is_known(patcher) or name in _unknown_models:
        return
    _unknown_models.add(name)
    unlike = f" ({parent}, from which it derives, may have others)" if parent else ""
    log.log(
        logging.WARNING if parent else logging.INFO,
        "Glance: no rule is known for the noise levels of %s, so auto takes the model's own%s; if its workflow has a "
        "scheduler node, wire that node's sigmas",
        name,
        unlike,
    )


def _wired_sigmas(
    patcher: Any, shape: tuple[int, ...], pair: PairMetadata, wired: torch.Tensor | Sequence[float], source: str
) -> ModelSigmas:
    """Return a list of sigmas, under the name of the model's own rule if that gives the same list."""
    values = check_falling(wired.tolist() if isinstance(wired, torch.Tensor) else wired)
    _check_whole_run(patcher, values, source)
    steps = len(values) - 1
    if pair.sigma_rule is not None:
        trained = model_sigmas(patcher, shape, AUTO, pair)
        if trained.steps != steps:
            way_out = _OTHER_SETTINGS if source == SETTINGS else "wire as many, or none"
            raise ScheduleError(
                f"{source} have {steps} teacher steps, but the pair was trained on {trained.steps}; {way_out}"
            )
        depends_on_wiring = pair.sigma_rule in (HOST, LISTED)
        if not depends_on_wiring and _difference(values, trained.values) > _SAME_TRAINING:
            way_out = _OTHER_SETTINGS if source == SETTINGS else "leave sigmas unwired"
            raise ScheduleError(
                f"the noise levels of {source} differ by {_difference(values, trained.values):.3f} from the "
                f"{trained.rule} sigmas that the pair was trained on; {way_out}"
            )
        return trained if _difference(values, trained.values) <= _SAME else ModelSigmas(LISTED, values)
    rule = rule_of(patcher)
    if rule != HOST:
        ruled = teacher_sigmas(rule, steps, tokens=rule_tokens(shape, base_of(patcher)))
        if _difference(values, ruled) <= _SAME:
            return ModelSigmas(rule, ruled)
    return ModelSigmas(LISTED, values)


def _check_whole_run(patcher: Any, values: Sequence[float], source: str) -> None:
    highest = float(patcher.get_model_object("model_sampling").sigma_max)
    if values[0] < highest * _LOWEST_START[is_flow(patcher)]:
        way_out = {SETTINGS: _OTHER_SETTINGS, _PAIRS_LIST: "load the pair on the model that it was trained for"}.get(
            source, "wire those of a whole run, with denoise 1"
        )
        raise ScheduleError(
            f"{source} begin at {values[0]:.3g}, but the model's highest noise level is {highest:.3g}; {way_out}"
        )


def _difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def differs_from_training(sigmas: Sequence[float], pair: PairMetadata) -> bool:
    """Return whether Slow would see other noise levels than it was trained on.

    Args:
        sigmas: of a run that takes the trained steps.
    """
    return any(abs(a - b) > _SAME_TRAINING for a, b in zip(sigmas, pair.sigmas or (), strict=False))


def rule_tokens(shape: tuple[int, ...], base: BaseModel) -> int:
    """Return the tokens of a latent (..., H, W) or (B, C, T, H, W) that the base's sigma rule counts."""
    frames = shape[2] if base.frames_per_latent and len(shape) == 5 else 1
    return frames * latent_tokens(shape, base.latents_per_token)


def latent_tokens(shape: tuple[int, ...], latents_per_token: int = 2) -> int:
    """Return the tokens of a latent (..., H, W): squares of latents, padded up as the model does."""
    height, width = (-(-side // latents_per_token) for side in shape[-2:])
    return height * width


def split_for(pair: PairMetadata, slow_steps: int, fast_steps: int, teacher_steps: str, total: int) -> Split:
    """Return the teacher steps to take, out of `total`.

    They are the typed ones; else the trained ones if the counts agree; else the paper's rule at the trained boundary.
    """
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
