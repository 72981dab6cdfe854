"""GlanceScheduler, PhaseSplitSampler and GlanceReferenceSampler: which sigmas are walked, and one run of the host's sampler on them."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ..glance_core import schedule as core
from ..glance_core import tiny
from ..glance_core.calibration import Settings
from ..glance_core.errors import GlanceError, ScheduleError
from ..glance_core.sampling import reference_ladders, walk
from ..glance_core.solver import Solver
from . import host
from .loader import CATEGORY
from .pair import log, pair_of, tagged_sigmas, trained_of
from .solver import sampler as solver_sampler

_MANY = 10_000
SETTINGS = io.Custom("GLANCE_SETTINGS")


def schedule_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "schedule", options=host.SCHEDULES, tooltip="The teacher's ladder. auto: what the pair was trained on, else by the model."
        ),
        *(
            io.Int.Input(
                f"{phase}_steps",
                default=5,
                min=1,
                max=_MANY,
                tooltip=f"Steps in the {phase.title()} phase (the paper: {paper}). Not used where teacher_steps is filled.",
            )
            for phase, paper in (("slow", "5, or 3"), ("fast", "5"))
        ),
    ]


def settings_input(tooltip: str) -> Any:
    return SETTINGS.Input("settings", optional=True, tooltip=tooltip)


def _denoise_input() -> Any:
    return io.Float.Input(
        "denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip="Below 1: image to image, from this noise level down."
    )


def teacher_steps_input() -> Any:
    return io.String.Input(
        "teacher_steps", default="", optional=True, advanced=True,
        placeholder="teacher steps, e.g. 1,3,5,7,9|11,21,31,41,50",
        tooltip="Explicit teacher steps instead of slow_steps and fast_steps, Slow before the bar: 1,3,5,7,9|11,21,31,41,50",
    )  # fmt: skip


def validate_teacher_steps(teacher_steps: str | None) -> bool | str:
    """True, or the sentence that says what is wrong with the text."""
    if not teacher_steps or not teacher_steps.strip():
        return True
    try:
        core.parse_steps(teacher_steps, _MANY)
    except GlanceError as error:
        return str(error)
    return True


def _walked(
    model: Any, latent: Any, schedule: str, slow_steps: int, fast_steps: int, teacher_steps: str, denoise: float, settings: Settings | None
) -> tuple[core.PhaseSchedule, core.Split]:
    trained = trained_of(model)
    shape = host.latent_shape(model, latent)
    if settings is not None:
        split, schedule = settings.split, settings.kind
    else:
        split = host.split(trained, slow_steps, fast_steps, teacher_steps or "")
    kind, ladder = host.teacher_ladder(model, shape, schedule, trained)
    if host.architecture(model) == tiny.BASE and shape[-2:] != tiny.LATENT[-2:]:
        log.warning("Glance: the embedded model paints pictures of 128x128; at %dx%d it paints rubbish", 8 * shape[-1], 8 * shape[-2])
    if trained.split and not teacher_steps and split != trained.split:
        log.warning("Glance: the pair was trained on teacher steps %s, this run walks %s", trained.split, split)
    if trained.split and (split.slow[-1] >= trained.split.fast[0] or split.fast[0] <= trained.split.slow[-1]):
        log.warning("Glance: teacher steps %s put steps into the other phase than the pair was trained for (%s)", split, trained.split)
    walked = core.build_schedule(ladder, split, denoise)
    log.info("Glance: %s ladder, teacher steps %s, %d steps", kind, split, walked.steps)
    return walked, split


def _own_solver(model: Any, split: core.Split, denoise: float, settings: Settings | None) -> Solver | None:
    """The solver fitted for these very steps, of the settings or of the pair; None, and said why, where it does not fit."""
    if settings is not None:
        solver, fitted_for = settings.solver, settings.split
    else:
        trained = trained_of(model)
        if trained.solver is None or trained.split is None:
            return None
        solver, fitted_for = Solver.loads(trained.solver), trained.split
    if denoise < 1 or split != fitted_for:
        why = f"teacher steps {split} instead of {fitted_for}" if split != fitted_for else f"denoise {denoise:g}"
        log.warning("Glance: the solver that was fitted for this pair or model does not fit this run (%s): euler is used", why)
        return None
    return solver


def run_of(
    model: Any, latent: Any, schedule: str, slow_steps: int, fast_steps: int, teacher_steps: str, denoise: float, settings: Settings | None,
    sampler_name: str = "auto",
) -> tuple[core.PhaseSchedule, Any, Solver | None]:  # fmt: skip
    """What is walked, the SAMPLER that walks it, and the fitted solver that this is, if it is one; auto: that solver, else euler."""
    walked, split = _walked(model, latent, schedule, slow_steps, fast_steps, teacher_steps, denoise, settings)
    solver = _own_solver(model, split, denoise, settings) if sampler_name == "auto" else None
    if solver is not None:
        return walked, solver_sampler(solver), solver
    return walked, comfy.samplers.sampler_object("euler" if sampler_name == "auto" else sampler_name), None


class GlanceScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceScheduler",
            display_name="Glance Scheduler",
            category=CATEGORY,
            description="The sigmas a Glance pair walks at this latent's size, for any sampler of ComfyUI (SamplerCustom and its kin).",
            inputs=[
                io.Model.Input("model", tooltip="The model, best with its pair: the pair says which ladder it was trained on."),
                io.Latent.Input("latent_image", tooltip="Its size decides the ladder's shift."),
                *schedule_inputs(),
                teacher_steps_input(),
                _denoise_input(),
                settings_input("From Calibrate Glance: its ladder and steps instead of those chosen here."),
            ],
            outputs=[
                io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustom; they carry the boundary."),
                io.Sampler.Output(
                    display_name="sampler", tooltip="The solver fitted for these steps, of the settings or of the pair; euler without one."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, teacher_steps: str | None = None) -> bool | str:
        return validate_teacher_steps(teacher_steps)

    @classmethod
    def execute(
        cls, model: Any, latent_image: Any, schedule: str, slow_steps: int, fast_steps: int, denoise: float, teacher_steps: str = "",
        settings: Settings | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        walked, sampler, _ = run_of(model, latent_image, schedule, slow_steps, fast_steps, teacher_steps, denoise, settings)
        return io.NodeOutput(tagged_sigmas(walked), sampler)


class PhaseSplitSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PhaseSplitSampler",
            display_name="Phase Split Sampler",
            category=CATEGORY,
            description="One run of ComfyUI's own sampler on Glance's ladder, Slow first, then Fast. Without a pair on the model: the bare base "
            "on the same ladder, to compare with.",
            search_aliases=["glance sampler", "ksampler"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Glance LoRA; a bare model gives the honest control."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not; used where cfg is not 1."),
                io.Latent.Input("latent_image", tooltip="Size and batch of the picture, or the picture to start from."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="The noise's seed."),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="As the pair was trained, which Load Glance LoRA's report says; the bare Qwen-Image 4, FLUX.1-dev 1. Other than 1, each "
                    "step costs two forwards. A solver fitted for the pair or the model has its own guidance instead.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=["auto", *comfy.samplers.SAMPLER_NAMES],
                    default="auto",
                    tooltip="auto: the solver fitted for the pair, or wired as settings; where there is none euler, which pairs are trained for.",
                ),
                *schedule_inputs(),
                _denoise_input(),
                teacher_steps_input(),
                settings_input("From Calibrate Glance: ladder, steps and solver instead of those chosen here."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def validate_inputs(cls, teacher_steps: str | None = None) -> bool | str:
        return validate_teacher_steps(teacher_steps)

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, latent_image: Any, seed: int, cfg: float, sampler_name: str,
        schedule: str, slow_steps: int, fast_steps: int, denoise: float, teacher_steps: str = "", settings: Settings | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        walked, sampler, solver = run_of(
            model, latent_image, schedule, slow_steps, fast_steps, teacher_steps, denoise, settings, sampler_name
        )
        if solver is not None:
            cfg = 1.0  # of the preview; the solver mixes by itself
            log.info("Glance: the fitted solver, %d forwards", solver.forwards)
        return io.NodeOutput(host.sample(model, positive, negative, latent_image, seed, cfg, sampler, tagged_sigmas(walked)))


class GlanceReferenceSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceReferenceSampler",
            display_name="Glance Reference Sampler",
            category=CATEGORY,
            description="Not for pictures: the walk of the published reference code: the model is told Glance's sigmas while the sample moves along other ladders, "
            "1.05 times the way in all for Qwen-Image. For comparing published weights like for like; feed it Glance Scheduler's sigmas.",
            inputs=[
                io.Combo.Input("schedule", options=["auto", *core.DYNAMIC_SHIFTS], optional=True, advanced=True,
                               tooltip="The ladders moved along. auto: by the pair or the model."),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustom.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, schedule: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(_reference_walk, {"schedule": schedule}))


def _reference_walk(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any] | None = None, callback: Any = None,
    disable: bool | None = None, schedule: str = "auto",
) -> torch.Tensor:  # fmt: skip
    """The reference code's walk as a sampler of the host (k-diffusion's calling convention). Source: facts of CSU-JPG/Glance at 88bac37."""
    patcher = model.inner_model.model_patcher
    told = sigmas.tolist()[:-1]
    trained, pair = trained_of(patcher), pair_of(patcher)
    kind, teacher = host.teacher_ladder(patcher, tuple(x.shape), schedule, trained)
    if kind not in core.DYNAMIC_SHIFTS:
        raise ScheduleError(
            f"the reference walk exists for {' and '.join(core.DYNAMIC_SHIFTS)}, not for the {kind} ladder; use PhaseSplitSampler"
        )
    if any(min(abs(sigma - step) for step in teacher) > 1e-4 for sigma in told):
        raise ScheduleError(f"the reference walk needs sigmas of the {kind} ladder at this size; wire Glance Scheduler's")
    threshold = pair.threshold if pair is not None else None
    if threshold is None:  # a bare model: the paper's boundary
        threshold = core.threshold_at(teacher, core.default_boundary(len(teacher) - 1))
    slow = sum(sigma > threshold for sigma in told)
    if not 0 < slow < len(told):
        raise ScheduleError(
            f"the reference walk needs sigmas of both phases, got {slow} Slow of {len(told)}; wire Glance Scheduler's sigmas, denoise 1"
        )
    fast = core.teacher_ladder(kind, len(told) - slow, tokens=host.latent_tokens(tuple(x.shape)))

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised = model(x, x.new_full((x.shape[0],), sigma), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": told.index(sigma), "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        return (x - denoised) / sigma

    return walk(velocity, x, told, reference_ladders(teacher, fast, slow))
