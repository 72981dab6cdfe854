"""A Glance pair that lives on a ModelPatcher: installed for one sampling run, switched by sigma, gone afterwards.

The branches are on the model only between the start and the end of the host's SAMPLER_SAMPLE, so the base needs no ejecting, and every
other clone of it is the bare model. Their tensors are an additional model of the patcher: the host places and counts them.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP

from ..glance_core.adapter_metadata import Trained
from ..glance_core.errors import GlanceError
from ..glance_core.phase_switch import LowRank, PhaseSwitch, PhaseWeights, phase_index
from ..glance_core.schedule import FAST, SLOW, TEACHER_STEPS, PhaseSchedule, default_boundary, threshold_at
from . import host

log = logging.getLogger("glance")
ATTACHMENT = "glance_pair"
PHASES = (SLOW, FAST)


_TAG = "glance_schedule"


def tagged_sigmas(walked: PhaseSchedule) -> torch.Tensor:
    """SIGMAS (N + 1 float32) that carry their PhaseSchedule as an attribute, from the node that made them to the run."""
    sigmas = torch.tensor(walked.sigmas, dtype=torch.float32)
    setattr(sigmas, _TAG, walked)
    return sigmas


def schedule_of(sigmas: torch.Tensor) -> PhaseSchedule | None:
    """The schedule SIGMAS carry; None where they come from elsewhere or were cut up on their way."""
    return getattr(sigmas, _TAG, None)


@dataclass
class _Run:
    """One sampling run: which patcher samples, below which sigma Fast answers, and how often each phase did."""

    patcher: Any
    threshold: float
    partial: bool
    forwards: Counter[str]


class GlancePair:
    """The pair on one clone of a model (and on that clone's clones). Create it with `attach`."""

    def __init__(self, weights: PhaseWeights, trained: Trained):
        self.trained = trained
        self.switch = PhaseSwitch(weights)
        self._run: _Run | None = None
        self._suspended: tuple[int | None] | None = None  # the phase that was on when the host ejected us in mid-run

    @property
    def boundary_step(self) -> int:
        """0-based teacher step where Fast takes over, unless the sigmas of a run say otherwise."""
        if self.trained.split:
            return self.trained.split.fast[0]
        return default_boundary(self.trained.teacher_steps or TEACHER_STEPS)

    @property
    def threshold(self) -> float | None:
        """Below which sigma Fast answers in the run that is under way; None outside of one."""
        return self._run.threshold if self._run else None

    def outer_sample(
        self, executor: Any, noise: torch.Tensor, latent_image: Any, sampler: Any, sigmas: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """OUTER_SAMPLE: fix where this run switches, before the host moves anything."""
        guider = executor.class_obj
        patcher = guider.model_patcher
        _refuse_second_model(guider)
        walked = schedule_of(sigmas)
        if walked is not None:
            run = _Run(patcher, walked.threshold, walked.partial, Counter())
        else:
            shape = (kwargs.get("latent_shapes") or [noise.shape])[0]  # nested latents arrive packed into one row
            _, ladder = host.teacher_ladder(patcher, tuple(shape), "auto", self.trained)
            run = _Run(patcher, threshold_at(ladder, self.boundary_step), True, Counter())
        outer, outermost = self._run, not self.switch.installed
        try:
            self._run, self._suspended = run, None
            result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self._run, self._suspended = outer, None
            if outermost:
                self.switch.remove()  # nothing to do, unless an interrupt fell into the removal below
        if len(sigmas) > 1:
            _report(run)
        return result

    def sampler_sample(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """SAMPLER_SAMPLE: the branches are on the model while the sampler runs, and off it whatever ends the run."""
        patcher = guider.model_patcher
        if self.switch.installed:  # a sampler that runs a sampler: the outer run owns the branches
            return executor(guider, *args, **kwargs)
        _inject_last(patcher, self)
        try:
            self.switch.install(guider.inner_model, patcher.load_device)
            result = executor(guider, *args, **kwargs)
            if self._run is not None and self._run.forwards:  # where there was none at all, that is told
                _report_unused(self.switch.never_called, len(self.switch.weights.targets))
            return result
        finally:
            self.switch.remove()

    def predict_noise(self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """PREDICT_NOISE: one call per evaluation of the model; timestep is sigma."""
        if self._run is not None:
            phase = phase_index(float(timestep.reshape(-1)[0]), (self._run.threshold,))
            self._run.forwards[PHASES[phase]] += 1
            if not self.switch.installed:  # the host unloaded the model in mid-run
                self.switch.install(executor.class_obj.inner_model, self._run.patcher.load_device, again=True)
                self._suspended = None
            if phase != self.switch.phase:
                self.switch.select(phase)
        return executor(x, timestep, *args, **kwargs)

    def inject(self, patcher: Any) -> None:
        """The host puts its injections back in the middle of a run: so do we."""
        if self._run is not None and patcher is self._run.patcher and self._suspended is not None:
            self.switch.install(patcher.model, patcher.load_device, again=True)
            self.switch.select(self._suspended[0])
            self._suspended = None

    def eject(self, patcher: Any) -> None:
        """The host takes its injections off in the middle of a run. Clones that die meanwhile eject too; they are none of ours."""
        if self._run is not None and patcher is self._run.patcher and self.switch.installed:
            self._suspended = (self.switch.phase,)
            self.switch.remove()


def _report(run: _Run) -> None:
    counts = ", ".join(f"{run.forwards[phase]} {phase}" for phase in PHASES)
    if not run.forwards:
        log.warning("Glance: the sampler never asked the host for a forward in the usual way: the pair had no effect")
    elif not run.partial and len(run.forwards) < len(PHASES):
        log.warning("Glance: all forwards fell into one phase (%s): the sigmas of this run never cross the boundary", counts)
    else:
        log.info("Glance: forwards %s, switch at sigma %.4f", counts, run.threshold)


def _report_unused(names: Sequence[str], targets: int) -> None:
    if names:
        log.warning(
            "Glance: %d of the pair's %d layers were never called in this run, the first %s: there it had no effect",
            len(names),
            targets,
            names[0],
        )


def _refuse_second_model(guider: Any) -> None:
    """Guiders that sample a second MODEL on the same weights (DualModelGuider): the branches would act on both."""
    own = guider.model_patcher
    if own.get_additional_models_with_key("multigpu"):
        raise GlanceError("a Glance pair works on one GPU at a time; remove the multi-GPU node from this model")
    for name, other in vars(guider).items():
        if other is not own and isinstance(other, comfy.model_patcher.ModelPatcher) and other.model is own.model:
            raise GlanceError(
                f"{type(guider).__name__} samples a second model ({name}) on the same weights, where the pair would act on both; load it from a file of its own"
            )


def attach(model: Any, phases: Sequence[Mapping[str, Sequence[LowRank]]], trained: Trained) -> Any:
    """A clone of the MODEL that carries the pair; the model handed in stays as it is."""
    patcher = model.clone()
    weights = PhaseWeights(phases, host.compute_dtype(patcher))
    pair = GlancePair(weights, trained)
    key = f"glance_{uuid.uuid4().hex}"  # two pairs under one key would count as one and the same to the host
    patcher.set_attachments(ATTACHMENT, pair)
    if weights.targets:
        patcher.set_additional_models(key, [comfy.model_patcher.CoreModelPatcher(weights, patcher.load_device, patcher.offload_device)])
        patcher.set_injections(key, [PatcherInjection(inject=pair.inject, eject=pair.eject)])
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, pair.outer_sample)
        patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, pair.sampler_sample)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, pair.predict_noise)
    return patcher


def pair_of(model: Any) -> GlancePair | None:
    """The pair a MODEL carries (the last one loaded), if any."""
    return model.get_attachment(ATTACHMENT)


def trained_of(model: Any) -> Trained:
    pair = pair_of(model)
    return pair.trained if pair is not None else Trained()


def _inject_last(patcher: Any, pair: GlancePair) -> None:
    """Let the host's other injections go on before ours whenever it renews them, as they are now."""
    for key, injections in list(patcher.injections.items()):
        if any(getattr(injection.inject, "__self__", None) is pair for injection in injections):
            patcher.injections[key] = patcher.injections.pop(key)
