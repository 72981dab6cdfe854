"""A guider for bases of two models: one answers at high noise, the other from a boundary down.

The sampler runs once, in a thread of its own, and asks for predictions. Here, in the thread that ComfyUI called, each
model answers inside a run of its own guider: ComfyUI loads it, encodes its prompts, applies its patches and wrappers,
and cleans up, before the other one is loaded. So samplers keep their history over the boundary.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...glance_core.errors import GlanceError
from ...glance_core.schedule.phase_schedule import threshold_between
from .base_model import describe
from .log import log
from .sampling_run import schedule_of, tagged_sigmas

_PROBES = (0.999, 0.9, 0.5, 0.1)  # shares of the highest sigma, at which two models must agree
_POST, _CFG1 = "sampler_post_cfg_function", "disable_cfg1_optimization"
_NAMES = ("model", "late_model")
Boundary = Callable[[torch.Tensor], float]  # a run's sigmas -> the sigma above which the first model answers


def after_steps(steps: int) -> Boundary:
    """Return the boundary after this many steps of a run."""

    def threshold(sigmas: torch.Tensor) -> float:
        levels = sigmas.tolist()
        if any(after >= before for before, after in itertools.pairwise(levels)):
            raise GlanceError("steps cannot be counted if the run's sigmas do not fall; set unit to sigma")
        if steps <= 0 or steps >= len(levels) - 1:
            return float("inf") if steps <= 0 else -1.0
        return threshold_between(levels[steps - 1], levels[steps])

    return threshold


def below_sigma(sigma: float) -> Boundary:
    """Return the boundary just below a noise level, which the first model still answers."""
    return lambda sigmas: sigma * (1 - 1e-6)


class TwoModelGuider(comfy.samplers.CFGGuider):  # type: ignore[misc]
    """Samples with `early` above the boundary and with `late` below it, each with its own cfg."""

    def __init__(self, early: Any, late: Any, boundary: Boundary):
        super().__init__(early)
        _check_kin(early, late)
        self.guiders = tuple(comfy.samplers.CFGGuider(patcher) for patcher in (early, late))
        self.boundary = boundary

    def inner_set_conds(self, conds: Any) -> None:
        """Set the prompts of both."""
        super().inner_set_conds(conds)
        for guider in self.guiders:
            guider.inner_set_conds(conds)

    def set_cfgs(self, early: float, late: float) -> None:
        """Set the guidance of each."""
        self.cfg = early
        for guider, cfg in zip(self.guiders, (early, late), strict=True):
            guider.set_cfg(cfg)

    def sample(
        self, noise: Any, latent_image: Any, sampler: Any, sigmas: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Run the sampler once; args, kwargs: mask, callback and more, as CFGGuider takes them."""
        if sigmas.shape[-1] < 2:
            return latent_image
        run = _SamplerRun(sampler, self.boundary(sigmas))
        shown, schedule = sigmas, schedule_of(sigmas)
        if schedule is not None:  # each model sees one part of the run
            shown = tagged_sigmas(replace(schedule, partial=True))
        side = run.side(float(sigmas[0]))
        try:
            while True:
                turn = _Turn(run, side)
                result = self.guiders[side].sample(noise, latent_image, turn, shown, *args, **kwargs)
                if run.finished:
                    break
                side = 1 - side
        finally:
            run.close()
        counts = ", ".join(f"{run.calls[at]} of {name}" for at, name in enumerate(_NAMES))
        log.info("Glance: model calls %s, changed at sigma %.4f", counts, run.threshold)
        return result


@dataclass(frozen=True)
class _Request:
    """What the sampler's thread wants: a prediction, or that the callback is called. Or it tells how it ended."""

    kind: str
    args: tuple[Any, ...] = ()
    options: Any = None


class _Asking:
    """Stands for the guider in the sampler's thread. Beside predictions, all is that of the guider whose turn it is."""

    def __init__(self, run: _SamplerRun):
        self._run = run
        self._shown_cfg: float | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, model_options: Any = None, seed: Any = None) -> Any:
        return self._run.ask(_Request("predict", (x, sigma, seed, self._run.own_cfg), model_options))

    @property
    def cfg(self) -> float:
        """The guidance of the model whose turn it is; a sampler may set another one for a while."""
        self._shown_cfg = self._run.turn.guider.cfg
        return self._shown_cfg

    @cfg.setter
    def cfg(self, value: float) -> None:
        self._run.own_cfg = None if value == self._shown_cfg else value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run.turn.guider, name)


class _SamplerRun:
    """One run of a sampler in its own thread, which waits whenever it has asked for something."""

    def __init__(self, sampler: Any, threshold: float):
        self.sampler, self.threshold = sampler, threshold
        self.turn: _Turn = _Turn(self, 0)
        self.own_cfg: float | None = None
        self.calls: Counter[int] = Counter()
        self.finished = False
        self.options: Mapping[str, Any] = {}  # model_options that the sampler was given
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._replies: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._waiting: _Request | None = None  # a prediction that the other model has to make
        self._thread: threading.Thread | None = None

    def side(self, sigma: float) -> int:
        """Return which model answers at this noise level."""
        return 0 if sigma > self.threshold else 1

    def start(self, device: torch.device, given: tuple[Any, ...]) -> None:
        """Start the sampler's thread. given: what ComfyUI gives a sampler after the guider, without the callback."""
        if self._thread is not None:
            return
        sigmas, extra_args, *rest = given
        self.options = extra_args.get("model_options", {})
        inference = torch.is_inference_mode_enabled()

        def work() -> None:
            try:
                with torch.inference_mode(inference), comfy.model_management.cuda_device_context(device):
                    result = self.sampler.sample(_Asking(self), sigmas, extra_args, self._callback, *rest)
                self._requests.put(_Request("finished", (result,)))
            except BaseException as error:  # of any kind: it goes on in the thread that waits
                self._requests.put(_Request("failed", (error,)))

        self._thread = threading.Thread(target=work, name="glance sampler", daemon=True)
        self._thread.start()

    def _callback(self, *args: Any) -> Any:
        return self.ask(_Request("callback", args))

    def ask(self, request: _Request) -> Any:
        """Ask from the sampler's thread, and wait for the answer."""
        self._requests.put(request)
        value, error = self._replies.get()
        if error is not None:
            raise error
        return value

    def serve(self, turn: _Turn, predict: Callable[[_Request], Any], callback: Any) -> Any:
        """Answer until the run ends or the other model's turn comes. Return the result, None if there is none yet."""
        self.turn = turn
        while True:
            request = self._waiting or self._requests.get()
            self._waiting = None
            if request.kind == "finished":
                self.finished = True
                return request.args[0]
            if request.kind == "failed":
                self.finished = True
                raise request.args[0]
            if request.kind == "predict" and self.side(float(request.args[1].reshape(-1)[0])) != turn.side:
                self._waiting = request
                return None
            if request.kind == "predict":
                self.calls[turn.side] += 1
                answer = predict(request)
            else:
                answer = callback(*request.args) if callback is not None else None
            self._replies.put((answer, None))

    def close(self) -> None:
        """End the thread, wherever it is. It is waiting for an answer, unless it has ended."""
        if self._thread is None:
            return
        while self._thread.is_alive():
            self._replies.put((None, _Stopped()))
            self._thread.join(0.05)


class _Stopped(BaseException):
    """Ends a sampler whose run has ended otherwise."""


class _Turn(comfy.samplers.Sampler):  # type: ignore[misc]
    """The sampler of one model's own run: it serves the real sampler as long as that asks for this model."""

    def __init__(self, run: _SamplerRun, side: int):
        self.run, self.side = run, side
        self.guider: Any = None

    def sample(self, model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, *rest: Any) -> Any:
        """Answer. Return what the sampler returned, or something of its shape that nobody reads."""
        self.guider, own = model_wrap, extra_args.get("model_options", {})
        self.run.turn = self
        self.run.start(noise.device, (sigmas, extra_args, noise, *rest))

        def predict(request: _Request) -> Any:
            x, sigma, seed, cfg = request.args
            options = _with_additions(own, self.run.options, request.options or {})
            before = model_wrap.cfg
            model_wrap.cfg = before if cfg is None else cfg
            try:
                return model_wrap(x, sigma, model_options=options, seed=seed)
            finally:
                model_wrap.cfg = before

        result = self.run.serve(self, predict, callback)
        return torch.zeros_like(noise) if result is None else result


def _with_additions(own: Mapping[str, Any], base: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a model's own options with what the sampler added to those that it was given."""
    if own is base:
        return given
    found = dict(own)
    added = list(given.get(_POST, []))[len(base.get(_POST, [])) :]
    if added:
        found[_POST] = [*found.get(_POST, []), *added]
    if given.get(_CFG1) and not base.get(_CFG1):
        found[_CFG1] = True
    return found


def _check_kin(early: Any, late: Any) -> None:
    """Raise GlanceError for two models that cannot share one run."""
    if type(early.model) is not type(late.model) or type(early.model.latent_format) is not type(
        late.model.latent_format
    ):
        raise GlanceError(
            f"model is a {describe(early)} and late_model a {describe(late)}; both must be of one kind to share a run"
        )
    first, second = (patcher.get_model_object("model_sampling") for patcher in (early, late))
    levels = [share * float(first.sigma_max) for share in _PROBES]
    if not all(_same(first, second, torch.tensor([level])) for level in levels):
        raise GlanceError(
            "model and late_model mean different noise by the same sigma; wire the same ModelSampling node behind both"
        )


def _same(first: Any, second: Any, sigma: torch.Tensor) -> bool:
    """Return whether two models see the same time at a noise level, and predict the same kind of thing."""
    x, out = torch.tensor([[1.0]]), torch.tensor([[0.5]])
    times = [float(sampling.timestep(sigma)) for sampling in (first, second)]
    clean = [float(sampling.calculate_denoised(sigma, out, x)) for sampling in (first, second)]
    return abs(times[0] - times[1]) <= 1e-4 * abs(times[0]) and abs(clean[0] - clean[1]) <= 1e-5
