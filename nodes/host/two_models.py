"""One sampling run of two models: the late one answers from a noise level down.

Each model has an ordinary session of ComfyUI's CFGGuider: it is loaded, its prompts are encoded, its wrappers, hooks
and injections come and go as in a run of its own. Between them the sampler waits, with its whole history, in a thread.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch

from ...glance_core.errors import GlanceError
from ...glance_core.schedule.phase_schedule import threshold_between
from .log import log
from .patcher import pair_of
from .sampler_thread import ModelCall, Report, SamplerThread
from .sampling_run import cfg_guider, schedule_of, tagged_sigmas
from .two_models_check import check_models

SIGMA, STEPS = "sigma", "steps"
BOUNDARY_UNITS = [SIGMA, STEPS]
_EARLY, _LATE = 0, 1
_ROUNDING = 1e-6  # of float32 sigmas, relative


@dataclass(frozen=True)
class ModelBoundary:
    """Where the late model begins to answer.

    value: a sigma, below which it answers; or how many steps of the run it does not answer. unit: which.
    """

    value: float
    unit: str = STEPS

    def __post_init__(self) -> None:
        if self.unit == STEPS and (self.value < 0 or self.value != int(self.value)):
            raise GlanceError(
                f"a boundary of {self.value:g} steps does not exist; write a whole number, or choose the unit sigma"
            )

    def threshold(self, sigmas: list[float]) -> float:
        """Return the sigma above which the early model answers in a run on these sigmas."""
        if self.unit == SIGMA:
            return self.value * (1 - _ROUNDING)
        step, steps = int(self.value), len(sigmas) - 1
        if step > steps:
            raise GlanceError(f"the boundary is after step {step}, and the run has {steps}; choose at most {steps}")
        if step == steps:
            return -math.inf
        before = sigmas[step - 1] if step else math.inf
        if before <= sigmas[step]:
            raise GlanceError(
                f"the sigmas rise from {before:g} to {sigmas[step]:g} at the boundary; choose the unit sigma for them"
            )
        return threshold_between(before, sigmas[step])


class TwoModelGuider(comfy.samplers.CFGGuider):  # type: ignore[misc]
    """A guider whose early model answers above the boundary, and its late model from there down."""

    def __init__(self, model: Any, late_model: Any, boundary: ModelBoundary):
        super().__init__(model)
        check_models(model, late_model)
        self.boundary = boundary
        self.sides = comfy.samplers.CFGGuider(model), comfy.samplers.CFGGuider(late_model)

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        """Give both models the same prompts."""
        super().inner_set_conds(conds)
        for side in self.sides:
            side.inner_set_conds(conds)

    def set_cfg(self, cfg: float, late_cfg: float | None = None) -> None:
        """Set the guidance of both models. late_cfg: None for the same."""
        super().set_cfg(cfg)
        for side, value in zip(self.sides, (cfg, cfg if late_cfg is None else late_cfg), strict=True):
            side.set_cfg(value)

    def sample(
        self,
        noise: Any,
        latent_image: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Sample as ComfyUI's CFGGuider does, with the same arguments."""
        if sigmas.shape[-1] == 0:
            return latent_image
        _check_sampler(sampler)
        schedule = schedule_of(sigmas)
        if schedule is not None:  # each model sees only its part of the run
            sigmas = tagged_sigmas(dataclasses.replace(schedule, partial=True))
        run = _Run(self.sides, sampler, self.boundary.threshold(sigmas.tolist()))
        return run.sample(lambda side, stage: side.sample(noise, latent_image, stage, sigmas, *args, **kwargs), sigmas)


def guider_of(model: Any, late_model: Any | None, cfg: float, late_cfg: float, slow_steps: int) -> Any:
    """Return the guider of a run whose steps after the first `slow_steps` have a model or a cfg of their own.

    Args:
        late_model: None for the same model.
        late_cfg: 0 for the same cfg.
    """
    if late_model is None and (not late_cfg or late_cfg == cfg):
        return cfg_guider(model, cfg)
    if late_model is not None and (pair_of(model) is None) != (pair_of(late_model) is None):
        log.warning(
            "Glance: only %s carries a pair, so the base answers in the steps of the other one; load a pair on both",
            "late_model" if pair_of(model) is None else "model",
        )
    guider = TwoModelGuider(model, late_model or model, ModelBoundary(slow_steps))
    guider.set_cfg(cfg, late_cfg or cfg)
    return guider


class _Run:
    """One run: the sampler's thread, and the session that is open.

    guider: whose session it is. options: the model_options of this session. base: those that the sampler began with.
    """

    def __init__(self, sides: tuple[Any, Any], sampler: Any, threshold: float):
        self.sides, self.sampler, self.threshold = sides, sampler, threshold
        self.thread = SamplerThread()
        self.calls: Counter[int] = Counter()
        self.waiting: ModelCall | None = None
        self.ended = False
        self.guider: Any = None
        self.options: Mapping[str, Any] = {}
        self.base: Mapping[str, Any] = {}

    def side(self, sigma: float) -> int:
        """Return which model answers at this noise level."""
        return _LATE if sigma <= self.threshold else _EARLY

    def sample(self, session: Callable[[Any, Any], Any], sigmas: torch.Tensor) -> Any:
        """Open one model's session after the other until the sampler has ended, and return the last one's result.

        Args:
            session: samples with a guider and a SAMPLER.
        """
        side = self.side(float(sigmas[0]))
        try:
            while True:
                result = session(self.sides[side], _Stage(self, side))
                if self.ended:
                    break
                side = 1 - side
        except BaseException as error:
            self.thread.close(error)
            raise
        finally:
            self.guider, self.waiting = None, None
        self._report()
        return result

    def _report(self) -> None:
        early, late = self.calls[_EARLY], self.calls[_LATE]
        if early and late:
            log.info("Glance: %d model calls of model, %d of late_model from sigma %.4f", early, late, self.threshold)
        elif early or late:
            log.info("Glance: %s answered all %d model calls", "model" if early else "late_model", early + late)


class _Stage(comfy.samplers.Sampler):  # type: ignore[misc]
    """The SAMPLER of one model's session: it answers the calls of the run's sampler that are its model's."""

    def __init__(self, run: _Run, side: int):
        self.run, self.side = run, side

    def __getattr__(self, name: str) -> Any:
        """Return what wrappers read from a SAMPLER, such as its function."""
        return getattr(self.run.sampler, name)

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Answer until the sampler ends or calls the other model.

        Returns:
            The samples; where the run goes on with the other model, what the sampler gave to that one.
        """
        run, thread = self.run, self.run.thread
        run.guider, run.options = model_wrap, extra_args["model_options"]
        if not thread.started:
            run.base = run.options
            report = None if callback is None else lambda *step: thread.ask(Report((callback, *step)))
            thread.start(
                lambda: run.sampler.sample(_Current(run), sigmas, extra_args, report, noise, *args, **kwargs),
                noise.device,
            )
        while True:
            wish, run.waiting = run.waiting or thread.wish(), None
            if wish is None:
                run.ended = True
                return thread.samples  # type: ignore[no-any-return]
            if isinstance(wish, Report):
                step, *rest = wish.arguments
                thread.answer(lambda step=step, rest=rest: step(*rest))
            elif run.side(wish.level) != self.side:
                run.waiting = wish
                return wish.x
            else:
                run.calls[self.side] += 1
                options = _with_changes(wish.options, run.base, run.options)
                thread.answer(lambda wish=wish, options=options: _predicted(model_wrap, wish, options))


def _predicted(guider: Any, wish: ModelCall, options: Any) -> Any:
    """Return the guider's answer, with the call's own guidance if it has one."""
    before = guider.cfg
    guider.cfg = before if wish.cfg is None else wish.cfg
    try:
        return guider(wish.x, wish.sigma, model_options=options, seed=wish.seed)
    finally:
        guider.cfg = before


class _Current:
    """Stands for the guider whose session is open, in the sampler's thread.

    A sampler may set another cfg for a call and then the one that it had found, as fitted solvers do.
    """

    _found_cfg: float | None = None
    _own_cfg: float | None = None

    def __init__(self, run: _Run):
        object.__setattr__(self, "_run", run)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run.guider, name)

    @property
    def cfg(self) -> float:
        """The guidance of the model whose session is open."""
        found: float = self._run.guider.cfg
        object.__setattr__(self, "_found_cfg", found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "cfg":
            object.__setattr__(self, "_own_cfg", None if value == self._found_cfg else value)
            return
        raise GlanceError(
            f"this sampler changes the guider's {name} while it runs, which two models cannot share; choose another "
            "sampler"
        )

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, model_options: Any = None, seed: Any = None) -> Any:
        return self._run.thread.ask(ModelCall(x, sigma, model_options or {}, seed, self._own_cfg))


def _with_changes(given: dict[str, Any], base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a session's own model_options with what the sampler changed in those that it began with."""
    if own is base:
        return given
    changed = {key: value for key, value in given.items() if value is not base.get(key)}
    if not changed:
        return own  # type: ignore[return-value]
    result = dict(own)
    for key, value in changed.items():
        if isinstance(value, list):  # functions that it added
            known = base.get(key) or []
            added = [each for each in value if not any(each is other for other in known)]
            result[key] = [*(own.get(key) or []), *added]
        elif isinstance(value, dict):
            result[key] = _with_changes(value, base.get(key) or {}, own.get(key) or {})
        else:
            result[key] = value
    return result


def _check_sampler(sampler: Any) -> None:
    """Raise GlanceError for samplers that are made for one model."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if name == "sample_ar_video":
        raise GlanceError("the sampler ar_video keeps one model's memory of the video; choose one model or euler")
