"""Adapters on a ModelPatcher: installed for one sampling run, switched by sigma, gone afterwards.

The branches are on the model only from ComfyUI's PREPARE_SAMPLING to the end of its SAMPLER_SAMPLE. So the base needs
no ejecting, and every other clone of it is the base model. Their tensors are an additional model of the patcher, which
ComfyUI places and counts. All adapters of a MODEL share one switch, whichever nodes loaded them.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP

from ...glance_core.errors import GlanceError, ScheduleError
from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.schedule.phase_schedule import phase_index
from ...glance_core.schedule.strengths import RunPhases, StrengthCurve, run_phases
from ...glance_core.switch import PhaseSwitch, PhaseWeights, Strengths, Update
from .adapter_timing import GlancePair, LoraTiming, PairBoundary, PairPhase, RunStart
from .base_model import compute_dtype
from .fused_layers import layers_with_branches_are_called
from .host_caches import clear_caches, note_caches
from .run_report import report_run, report_unused

ATTACHMENT = "glance_adapters"


@dataclass(frozen=True)
class CarriedAdapter:
    """An adapter on a MODEL. name: its file's. updates: by module. timing: when it answers."""

    name: str
    updates: Mapping[str, Sequence[Update]]
    timing: PairPhase | LoraTiming

    @property
    def pair(self) -> GlancePair | None:
        """The pair that it is a half of, if it is."""
        return self.timing.pair if isinstance(self.timing, PairPhase) else None

    def curve(self, start: RunStart, boundaries: Mapping[GlancePair, PairBoundary]) -> StrengthCurve:
        """Return its strength by noise level in this run."""
        if isinstance(self.timing, PairPhase):
            return self.timing.curve(boundaries[self.timing.pair])
        return self.timing.curve(start)


@dataclass
class _Run:
    """One sampling run: which patcher samples, its phases, where its pairs switch, and the model calls by sigma."""

    patcher: Any
    phases: RunPhases
    boundaries: dict[GlancePair, PairBoundary]
    calls: Counter[float] = field(default_factory=Counter)


class ModelAdapters:
    """The adapters on one clone of a model, and on that clone's clones. Create it with `attach`."""

    def __init__(self, adapters: Sequence[CarriedAdapter], patcher: Any):
        self.adapters = tuple(adapters)
        self.key = f"glance_{uuid.uuid4().hex}"  # ComfyUI would take two of these under one key for the same one
        self._updates = list({id(adapter.updates): adapter.updates for adapter in adapters}.values())
        self._dtype = compute_dtype(patcher)
        self._devices = patcher.load_device, patcher.offload_device
        self._run: _Run | None = None
        self._sampling = False
        self._encode_prompts: Callable[[], None] | None = None  # in runs where the prompts pass through a target
        self._suspended: tuple[int | None] | None = None  # the phase when ComfyUI ejected us in mid-run

    @cached_property
    def switch(self) -> PhaseSwitch:
        """The switch of all adapters, made for the first run: a MODEL that only others build on needs none."""
        return PhaseSwitch(PhaseWeights(self._updates, self._dtype))

    @cached_property
    def tensors(self) -> Any:
        """The switch's weights as ComfyUI places them."""
        return comfy.model_patcher.CoreModelPatcher(self.switch.weights, *self._devices)

    @property
    def pairs(self) -> tuple[GlancePair, ...]:
        """The pairs, the last loaded last."""
        return tuple(dict.fromkeys(adapter.pair for adapter in self.adapters if adapter.pair is not None))

    @property
    def threshold(self) -> float | None:
        """The sigma above which the last pair's Slow answers in the current run; None outside of a run."""
        return self._run.boundaries[self.pairs[-1]].threshold if self._run and self.pairs else None

    def put_on(self, patcher: Any) -> None:
        """Let the patcher's runs pass through here."""
        patcher.set_injections(self.key, [PatcherInjection(inject=self.inject, eject=self.eject)])
        for kind, wrapper in self._wrappers().items():
            patcher.add_wrapper_with_key(kind, self.key, wrapper)

    def take_off(self, patcher: Any) -> None:
        """Undo `put_on`, and what a run added."""
        patcher.remove_injections(self.key)
        patcher.remove_additional_models(self.key)
        for kind in self._wrappers():
            patcher.remove_wrappers_with_key(kind, self.key)

    def _wrappers(self) -> dict[str, Callable[..., Any]]:
        return {
            WrappersMP.OUTER_SAMPLE: self.outer_sample,
            WrappersMP.PREPARE_SAMPLING: self.prepare_sampling,
            WrappersMP.SAMPLER_SAMPLE: self.sampler_sample,
            WrappersMP.PREDICT_NOISE: self.predict_noise,
        }

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
        shape = (kwargs.get("latent_shapes") or [noise.shape])[0]  # nested latents arrive packed into one row
        start = RunStart(executor.class_obj.model_patcher, sigmas, tuple(shape))
        boundaries = {pair: pair.boundary(start) for pair in self.pairs}
        curves = [each.curve(start, boundaries) for each in self.adapters]
        phases = run_phases(curves)
        if not phases.has_effect:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        _check_guider(executor.class_obj)
        start.patcher.set_additional_models(self.key, [self.tensors])
        run = _Run(start.patcher, phases, boundaries)
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
            others = [(a.name, c) for a, c in zip(self.adapters, curves, strict=True) if a.pair is None]
            report_run(run.calls, run.boundaries.values(), others)
        return result

    def prepare_sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """PREPARE_SAMPLING: the model is loaded, and ComfyUI encodes the prompts next, some through our targets."""
        prepared = executor(*args, **kwargs)
        if self._run is not None and not self.switch.installed:
            patcher = self._run.patcher
            _inject_last(patcher, self)
            clear_caches(patcher)
            self.switch.install(patcher.model, patcher.load_device, self._strengths(self._run.phases))
        return prepared

    def _strengths(self, phases: RunPhases) -> Strengths:
        """Return the strength of each file's updates in each phase; a pair may use one file in both."""
        found = []
        for row in phases.strengths:
            own = list(zip(self.adapters, row, strict=True))
            found.append([sum(s for adapter, s in own if adapter.updates is each) for each in self._updates])
        return found

    def sampler_sample(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """SAMPLER_SAMPLE: the branches answer while the sampler runs, whatever ends the run."""
        patcher = guider.model_patcher
        if self._sampling or self._run is None:  # a sampler that runs a sampler: the outer run owns the branches
            return executor(guider, *args, **kwargs)
        try:
            self._sampling = True
            if self.switch.called:  # by ComfyUI's encoding of the prompts, with no phase selected
                self._encode_prompts = partial(_encode_prompts, guider, args)
            result = executor(guider, *args, **kwargs)
            if self._run.calls:  # a run without any call gets its own warning
                report_unused(self.switch.never_called, len(self.switch.weights.targets))
            return result
        finally:
            self._sampling, self._encode_prompts = False, None
            self.switch.remove()
            clear_caches(patcher)

    def predict_noise(self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """PREDICT_NOISE: one call per evaluation of the model; timestep is sigma."""
        if self._run is not None:
            sigma = float(timestep.reshape(-1)[0])
            phase = phase_index(sigma, self._run.phases.thresholds)
            self._run.calls[sigma] += 1
            if not self.switch.installed:  # ComfyUI unloaded the model in mid-run
                self.switch.install_again(executor.class_obj.inner_model, self._run.patcher.load_device)
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
            self.switch.install_again(patcher.model, patcher.load_device)
            self.switch.select(self._suspended[0])
            self._suspended = None

    def eject(self, patcher: Any) -> None:
        """Remove the branches when ComfyUI removes its injections in mid-run; not when another clone ends."""
        if self._run is not None and patcher is self._run.patcher and self.switch.installed:
            self._suspended = (self.switch.phase,)
            self.switch.remove()


def attach(model: Any, adapters: Sequence[CarriedAdapter]) -> Any:
    """Return a clone of the MODEL that carries these adapters too; the model itself stays as it is."""
    patcher, before = model.clone(), adapters_of(model)
    note_caches(patcher)
    if before is not None:
        before.take_off(patcher)
    carried = ModelAdapters([*(before.adapters if before else ()), *adapters], patcher)
    patcher.set_attachments(ATTACHMENT, carried)
    if any(adapter.updates for adapter in carried.adapters):
        carried.put_on(patcher)
    return patcher


def adapters_of(model: Any) -> ModelAdapters | None:
    """Return what a MODEL carries, if it carries anything."""
    return model.get_attachment(ATTACHMENT)


def pair_of(model: Any) -> GlancePair | None:
    """Return the pair that a MODEL carries (the last one loaded), if any."""
    carried = adapters_of(model)
    return carried.pairs[-1] if carried is not None and carried.pairs else None


def check_no_steps(model: Any) -> None:
    """Raise ScheduleError if a LoRA on the MODEL acts by steps, which mean something else in each number of steps."""
    carried = adapters_of(model)
    for adapter in carried.adapters if carried is not None else ():
        if not isinstance(adapter.timing, PairPhase) and adapter.timing.counts_steps:
            raise ScheduleError(
                f"{adapter.name} acts in some steps of a run, but all steps are needed here; set its unit to sigma or "
                "share"
            )


def metadata_of(model: Any) -> PairMetadata:
    """Return what the MODEL's pair says about itself; empty without a pair."""
    pair = pair_of(model)
    return pair.metadata if pair is not None else PairMetadata()


def _check_guider(guider: Any) -> None:
    """Raise GlanceError for guiders that sample a second MODEL on the same weights, where the branches act on both."""
    own = guider.model_patcher
    if own.get_additional_models_with_key("multigpu"):
        raise GlanceError("adapters of this pack work on one GPU at a time; remove the multi-GPU node from this model")
    for name, other in vars(guider).items():
        if other is not own and isinstance(other, comfy.model_patcher.ModelPatcher) and other.model is own.model:
            raise GlanceError(
                f"{type(guider).__name__} samples a second model ({name}) on the same weights, where the adapters "
                "would act on both; load that one from a file of its own"
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


def _inject_last(patcher: Any, adapters: ModelAdapters) -> None:
    """Let ComfyUI's other injections go before ours whenever it renews them, as they do now."""
    for key, injections in list(patcher.injections.items()):
        if any(getattr(injection.inject, "__self__", None) is adapters for injection in injections):
            patcher.injections[key] = patcher.injections.pop(key)
