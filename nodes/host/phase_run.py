"""What one few-step run does: its schedule, and the SAMPLER that takes its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch

from ...glance_core.calibration.calibrate import Settings
from ...glance_core.errors import ScheduleError
from ...glance_core.sampling.solver import Solver
from ...glance_core.schedule.phase_schedule import PhaseSchedule, build_schedule
from ...glance_core.schedule.sigmas import HOST, LISTED
from ...glance_core.schedule.split import Split
from .base_model import base_of, latent_shape, picture_size
from .log import log
from .model_sigmas import AUTO, SETTINGS, ModelSigmas, differs_from_training, model_sigmas, split_for
from .patcher import metadata_of
from .solver_sampler import solver_sampler


@dataclass(frozen=True)
class StepChoice:
    """The steps that a user chose.

    settings: of Calibrate Glance; they replace schedule, counts and teacher steps. sigmas: the teacher's whole list, in
    place of schedule.
    """

    slow_steps: int = 5
    fast_steps: int = 5
    schedule: str = AUTO
    teacher_steps: str = ""
    denoise: float = 1.0
    settings: Settings | None = None
    sigmas: torch.Tensor | None = None


@dataclass(frozen=True)
class PhaseRun:
    """The schedule, its SAMPLER, and the fitted solver that this is, if it is one."""

    schedule: PhaseSchedule
    sampler: Any
    solver: Solver | None


def phase_run(model: Any, latent: Mapping[str, Any], choice: StepChoice, sampler_name: str = AUTO) -> PhaseRun:
    """Return what a run with these choices does.

    Args:
        sampler_name: `auto` takes the fitted solver, else Euler.

    Raises:
        ScheduleError: for choices that cannot be sampled.
    """
    metadata, shape = metadata_of(model), latent_shape(model, latent)
    found = choice.settings
    rule, wired, source = chosen_sigmas(found, choice.schedule, choice.sigmas)
    teacher = model_sigmas(model, shape, rule, metadata, wired, source)
    if found is not None:
        split = found.split
    else:
        split = split_for(metadata, choice.slow_steps, choice.fast_steps, choice.teacher_steps or "", teacher.steps)
    _warn(model, shape, split, typed=bool(choice.teacher_steps))
    schedule = build_schedule(teacher.values, split, choice.denoise)
    _warn_of_levels(model, shape, teacher, split, schedule)
    log.info("Glance: %s sigmas, teacher steps %s, %d steps", teacher.rule, split, schedule.steps)
    solver = _own_solver(model, split, choice) if sampler_name == AUTO else None
    if solver is not None:
        return PhaseRun(schedule, solver_sampler(solver), solver)
    name = "euler" if sampler_name == AUTO else sampler_name
    return PhaseRun(schedule, comfy.samplers.sampler_object(name), None)


def chosen_sigmas(
    settings: Settings | None, schedule: str, sigmas: torch.Tensor | None
) -> tuple[str, torch.Tensor | Sequence[float] | None, str]:
    """Return the sigma rule, the list in its place, and the input that they come from: settings, or else the others."""
    if settings is None:
        return schedule, sigmas, "sigmas"
    if sigmas is not None:
        raise ScheduleError("settings bring their own noise levels; wire settings or sigmas, not both")
    return settings.rule, settings.sigmas, SETTINGS


def _warn_of_levels(
    model: Any, shape: tuple[int, ...], teacher: ModelSigmas, split: Split, schedule: PhaseSchedule
) -> None:
    """Warn if the noise levels may not be those that the pair was trained on, and nothing here can tell."""
    metadata, size = metadata_of(model), picture_size(model, shape)
    stored = metadata.sigma_rule == LISTED and teacher.values == metadata.teacher_sigmas
    if stored and metadata.resolution not in (None, size):
        log.warning(
            "Glance: the pair's noise levels are a list made at %s, and this run is %s; if the model's scheduler "
            "depends on the size, wire its sigmas",
            metadata.resolution,
            size,
        )
    as_trained = metadata.sigma_rule == HOST and split == metadata.split and not schedule.partial
    if as_trained and differs_from_training(schedule.sigmas, metadata):
        log.warning(
            "Glance: this MODEL has other noise levels than the one that the pair was trained on; wire the same "
            "ModelSampling node, or the same sigmas"
        )


def _warn(model: Any, shape: tuple[int, ...], split: Split, typed: bool) -> None:
    """Warn about choices that are possible but probably not meant."""
    base, trained = base_of(model), metadata_of(model).split
    if base.latent_size and tuple(shape[-2:]) != base.latent_size:
        own = picture_size(model, base.latent_size)
        log.warning(
            "Glance: %s was trained at %s only; %s will not look right", base.title, own, picture_size(model, shape)
        )
    if trained and not typed and split != trained:
        log.warning("Glance: the pair was trained on teacher steps %s, but this run takes %s", trained, split)
    if trained and (split.slow[-1] >= trained.fast[0] or split.fast[0] <= trained.slow[-1]):
        log.warning(
            "Glance: teacher steps %s put steps into another phase than they were trained in (%s)", split, trained
        )


def _own_solver(model: Any, split: Split, choice: StepChoice) -> Solver | None:
    """Return the solver fitted for these very steps, of the settings or of the pair; if it does not fit, log why."""
    if choice.settings is not None:
        solver, fitted_for = choice.settings.solver, choice.settings.split
    else:
        metadata = metadata_of(model)
        if metadata.solver is None or metadata.split is None:
            return None
        solver, fitted_for = Solver.loads(metadata.solver), metadata.split
    if choice.denoise < 1 or split != fitted_for:
        why = f"teacher steps {split} instead of {fitted_for}" if split != fitted_for else f"denoise {choice.denoise:g}"
        log.warning("Glance: the fitted solver does not fit this run (%s), so euler is used", why)
        return None
    return solver
