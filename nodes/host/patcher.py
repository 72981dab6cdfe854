"""A Glance pair on a ModelPatcher: installed for one sampling run, switched by sigma, gone afterwards.

The branches are on the model only from ComfyUI's PREPARE_SAMPLING to the end of its SAMPLER_SAMPLE. So the base needs
no ejecting, and every other clone of it is the base model. Their tensors are an additional model of the patcher, which
ComfyUI places and counts.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP

from ...glance_core.errors import GlanceError
from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.low_rank import LowRank
from ...glance_core.schedule.phase_schedule import threshold_at
from ...glance_core.schedule.sigmas import TEACHER_STEPS
from ...glance_core.schedule.split import FAST, SLOW, default_boundary
from ...glance_core.switch import PhaseSwitch, PhaseWeights, phase_index
from .base_model import compute_dtype
from .fused_layers import layers_with_branches_are_called
from .host_caches import clear_caches, note_caches
from .log import log
from .model_sigmas import AUTO, model_sigmas
from .sampling_run import schedule_of

ATTACHMENT = "glance_pair"
PHASES = (SLOW, FAST)


@dataclass
class _Run:
    """One sampling run: which patcher samples, below which sigma Fast answers, and how often each phase did."""

    patcher: Any
    threshold: float
    partial: bool
    calls: Counter[str] = field(default_factory=Counter)


class GlancePair:
    """The pair on one clone of a model, and on that clone's clones. Create it with `attach`."""

    def __init__(self, weights: PhaseWeights, metadata: PairMetadata):
        self.metadata = metadata
        self.switch = PhaseSwitch(weights)
        self._run: _Run | None = None
        self._sampling = False
        self._encode_prompts: Callable[[], None] | None = None  # in runs where the prompts pass through a target
        self._suspended: tuple[int | None] | None = None  # the phase when ComfyUI ejected us in mid-run

    @property
    def boundary_step(self) -> int:
        """0-based teacher step where Fast takes over, unless the sigmas of a run say otherwise."""
        if self.metadata.split:
            return self.metadata.split.fast[0]
        return default_boundary(self.metadata.teacher_steps or TEACHER_STEPS)

    @property
    def threshold(self) -> float | None:
        """The sigma above which Slow answers in the current run; None outside of a run."""
        return self._run.threshold if self._run else None

    def outer_sample(
        self,
        executor: Any,
        noise: torch.Tensor,
        latent_image: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """OUTER_SAMPLE: decide where this run switches, before ComfyUI moves anything."""
        _check_guider(executor.class_obj)
        shape = (kwargs.get("latent_shapes") or [noise.shape])[0]  # nested latents arrive packed into one row
        run = self._new_run(executor.class_obj.model_patcher, sigmas, tuple(shape))
        outer, outermost = self._run, not self.switch.installed
        try:
            self._run, self._suspended = run, None
            with layers_with_branches_are_called():
                result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self._run, self._suspended = outer, None
            if outermost:
                self.switch.remove()  # nothing to do, unless an interrupt came in the middle of the removal below
        if len(sigmas) > 1:
            _report(run)
        return result

    def _new_run(self, patcher: Any, sigmas: torch.Tensor, shape: tuple[int, ...]) -> _Run:
        schedule = schedule_of(sigmas)
        if schedule is not None:
            return _Run(patcher, schedule.threshold, schedule.partial)
        teacher = model_sigmas(patcher, shape, AUTO, self.metadata)
        return _Run(patcher, threshold_at(teacher.values, self.boundary_step), partial=True)

    def prepare_sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """PREPARE_SAMPLING: the model is loaded, and ComfyUI encodes the prompts next, some through our targets."""
        prepared = executor(*args, **kwargs)
        if self._run is not None and not self.switch.installed:
            patcher = self._run.patcher
            _inject_last(patcher, self)
            clear_caches(patcher)
            self.switch.install(patcher.model, patcher.load_device)
        return prepared

    def sampler_sample(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """SAMPLER_SAMPLE: the branches answer while the sampler runs, whatever ends the run."""
        patcher = guider.model_patcher
        if self._sampling:  # a sampler that runs a sampler: the outer run owns the branches
            return executor(guider, *args, **kwargs)
        try:
            self._sampling = True
            if self.switch.called:  # by ComfyUI's encoding of the prompts, with no phase selected
                self._encode_prompts = partial(_encode_prompts, guider, args)
            result = executor(guider, *args, **kwargs)
            if self._run is not None and self._run.calls:  # a run without any call gets its own warning
                _report_unused(self.switch.never_called, len(self.switch.weights.targets))
            return result
        finally:
            self._sampling, self._encode_prompts = False, None
            self.switch.remove()
            clear_caches(patcher)

    def predict_noise(self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """PREDICT_NOISE: one call per evaluation of the model; timestep is sigma."""
        if self._run is not None:
            phase = phase_index(float(timestep.reshape(-1)[0]), (self._run.threshold,))
            self._run.calls[PHASES[phase]] += 1
            if not self.switch.installed:  # ComfyUI unloaded the model in mid-run
                self.switch.install(executor.class_obj.inner_model, self._run.patcher.load_device, again=True)
                self._suspended = None
            if phase != self.switch.phase:
                clear_caches(self._run.patcher)
                self.switch.select(phase)
                if self._encode_prompts is not None:
                    self._encode_prompts()
        return executor(x, timestep, *args, **kwargs)

    def inject(self, patcher: Any) -> None:
        """Put the branches back when ComfyUI puts its injections back in mid-run."""
        if self._run is not None and patcher is self._run.patcher and self._suspended is not None:
            self.switch.install(patcher.model, patcher.load_device, again=True)
            self.switch.select(self._suspended[0])
            self._suspended = None

    def eject(self, patcher: Any) -> None:
        """Remove the branches when ComfyUI removes its injections in mid-run; not when another clone ends."""
        if self._run is not None and patcher is self._run.patcher and self.switch.installed:
            self._suspended = (self.switch.phase,)
            self.switch.remove()


def attach(model: Any, phases: Sequence[Mapping[str, Sequence[LowRank]]], metadata: PairMetadata) -> Any:
    """Return a clone of the MODEL that carries the pair; the model itself stays as it is."""
    patcher = model.clone()
    note_caches(patcher)
    weights = PhaseWeights(phases, compute_dtype(patcher))
    pair = GlancePair(weights, metadata)
    key = f"glance_{uuid.uuid4().hex}"  # ComfyUI would take two pairs under one key for the same one
    patcher.set_attachments(ATTACHMENT, pair)
    if weights.targets:
        tensors = comfy.model_patcher.CoreModelPatcher(weights, patcher.load_device, patcher.offload_device)
        patcher.set_additional_models(key, [tensors])
        patcher.set_injections(key, [PatcherInjection(inject=pair.inject, eject=pair.eject)])
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, pair.outer_sample)
        patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, key, pair.prepare_sampling)
        patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, pair.sampler_sample)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, pair.predict_noise)
    return patcher


def pair_of(model: Any) -> GlancePair | None:
    """Return the pair that a MODEL carries (the last one loaded), if any."""
    return model.get_attachment(ATTACHMENT)


def metadata_of(model: Any) -> PairMetadata:
    """Return what the MODEL's pair says about itself; empty without a pair."""
    pair = pair_of(model)
    return pair.metadata if pair is not None else PairMetadata()


def _report(run: _Run) -> None:
    counts = ", ".join(f"{run.calls[phase]} {phase}" for phase in PHASES)
    if not run.calls:
        log.warning("Glance: the sampler never called the model in the usual way, so the pair had no effect")
    elif not run.partial and len(run.calls) < len(PHASES):
        log.warning(
            "Glance: all model calls were in one phase (%s); this run's sigmas never cross the boundary", counts
        )
    else:
        log.info("Glance: model calls %s, switched at sigma %.4f", counts, run.threshold)


def _report_unused(names: Sequence[str], targets: int) -> None:
    if names:
        log.warning(
            "Glance: %d of the pair's %d layers were never called in this run, so they had no effect; the first is %s",
            len(names),
            targets,
            names[0],
        )


def _check_guider(guider: Any) -> None:
    """Raise GlanceError for guiders that sample a second MODEL on the same weights, where the branches act on both."""
    own = guider.model_patcher
    if own.get_additional_models_with_key("multigpu"):
        raise GlanceError("a Glance pair works on one GPU at a time; remove the multi-GPU node from this model")
    for name, other in vars(guider).items():
        if other is not own and isinstance(other, comfy.model_patcher.ModelPatcher) and other.model is own.model:
            raise GlanceError(
                f"{type(guider).__name__} samples a second model ({name}) on the same weights, where the pair would "
                "act on both; load that one from a file of its own"
            )


def _encode_prompts(guider: Any, run: Sequence[Any]) -> None:
    """Encode the prompts again, as ComfyUI did before the run, through the branches of the phase that answers now.

    Args:
        run: what ComfyUI gave to SAMPLER_SAMPLE after the guider.
    """
    _, extra_args, _, noise, latent_image, denoise_mask, *_ = run
    model, seed = guider.inner_model, extra_args["seed"]
    shapes = {"latent_image": latent_image, "denoise_mask": denoise_mask, "latent_shapes": model.latent_shapes}
    for kind, entries in guider.conds.items():
        guider.conds[kind] = comfy.samplers.encode_model_conds(
            model.extra_conds, list(entries), noise, noise.device, kind, seed=seed, **shapes
        )


def _inject_last(patcher: Any, pair: GlancePair) -> None:
    """Let ComfyUI's other injections go before ours whenever it renews them, as they do now."""
    for key, injections in list(patcher.injections.items()):
        if any(getattr(injection.inject, "__self__", None) is pair for injection in injections):
            patcher.injections[key] = patcher.injections.pop(key)
