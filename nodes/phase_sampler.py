"""PhaseSplitSampler, GlanceScheduler and GlanceReferenceSampler: one few-step run, or its parts."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ..glance_core.calibration.calibrate import Settings
from ..glance_core.models import PAPER_RULES, TWO_MODELS, cfg_hint
from .host.log import log
from .host.model_sigmas import AUTO
from .host.phase_run import StepChoice, phase_run
from .host.reference_sampler import reference_sampler
from .host.sampling_run import Scene, sample, tagged_sigmas
from .host.two_models import guider_of
from .inputs import (
    CATEGORY,
    cfg_input,
    check_teacher_steps,
    denoise_input,
    late_cfg_input,
    schedule_input,
    seed_input,
    settings_input,
    sigmas_input,
    step_inputs,
    teacher_steps_input,
)


class PhaseSplitSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PhaseSplitSampler",
            display_name="Phase Split Sampler",
            category=CATEGORY,
            description="Use it in place of KSampler. Samples in one run with Slow first, then Fast. Without a pair on "
            "the model it samples the base with the same steps, to compare.",
            search_aliases=["glance sampler", "ksampler"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Glance LoRA. A base model gives the comparison."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show. Used unless cfg is 1."),
                io.Latent.Input("latent_image", tooltip="Size and batch of the picture, or the picture to start from."),
                seed_input(),
                cfg_input(
                    f"Load Glance LoRA's report says what the pair was trained for. Base models: {cfg_hint()}. "
                    "Above 1 each step takes two model calls. A pair with its own solver ignores it."
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=[AUTO, *comfy.samplers.SAMPLER_NAMES],
                    default=AUTO,
                    tooltip="auto: the solver that comes with the pair or the settings, else euler, which pairs are "
                    "trained for.",
                ),
                schedule_input(),
                *step_inputs(),
                denoise_input(),
                teacher_steps_input(),
                settings_input("From Calibrate Glance. Replaces schedule, steps and sampler."),
                sigmas_input(),
                io.Model.Input(
                    "late_model",
                    optional=True,
                    tooltip=f"For bases of two models ({TWO_MODELS}): the low-noise one, which takes the Fast steps.",
                ),
                late_cfg_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def validate_inputs(cls, teacher_steps: str | None = None) -> bool | str:
        return check_teacher_steps(teacher_steps)

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int,
        cfg: float,
        sampler_name: str,
        schedule: str,
        slow_steps: int,
        fast_steps: int,
        denoise: float,
        teacher_steps: str = "",
        settings: Settings | None = None,
        sigmas: torch.Tensor | None = None,
        late_model: Any = None,
        late_cfg: float = 0.0,
    ) -> io.NodeOutput:
        choice = StepChoice(slow_steps, fast_steps, schedule, teacher_steps, denoise, settings, sigmas)
        run = phase_run(model, latent_image, choice, sampler_name)
        if run.solver is not None:
            cfg, late_cfg = 1.0, 0.0  # for the preview; the solver combines both predictions itself
            log.info("Glance: fitted solver, %d model calls", run.solver.nfe)
        guider = guider_of(model, late_model, cfg, late_cfg, run.schedule.slow_steps)
        scene = Scene(positive, negative, latent_image, seed)
        return io.NodeOutput(sample(guider, scene, run.sampler, tagged_sigmas(run.schedule)))


class GlanceScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceScheduler",
            display_name="Glance Scheduler",
            category=CATEGORY,
            description="The sigmas of a Glance pair at this latent's size, for SamplerCustom and other samplers.",
            inputs=[
                io.Model.Input("model", tooltip="The model with its pair, which says what it was trained on."),
                io.Latent.Input("latent_image", tooltip="Its size decides the sigmas."),
                schedule_input(),
                *step_inputs(),
                teacher_steps_input(),
                denoise_input(),
                settings_input("From Calibrate Glance. Replaces schedule and steps."),
                sigmas_input(),
            ],
            outputs=[
                io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustom. They carry the phase boundary."),
                io.Sampler.Output(
                    display_name="sampler", tooltip="The solver of the settings or of the pair, else euler."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, teacher_steps: str | None = None) -> bool | str:
        return check_teacher_steps(teacher_steps)

    @classmethod
    def execute(
        cls,
        model: Any,
        latent_image: Any,
        schedule: str,
        slow_steps: int,
        fast_steps: int,
        denoise: float,
        teacher_steps: str = "",
        settings: Settings | None = None,
        sigmas: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        choice = StepChoice(slow_steps, fast_steps, schedule, teacher_steps, denoise, settings, sigmas)
        run = phase_run(model, latent_image, choice)
        return io.NodeOutput(tagged_sigmas(run.schedule), run.sampler)


class GlanceReferenceSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceReferenceSampler",
            display_name="Glance Reference Sampler",
            category=CATEGORY,
            description="Not for pictures. Samples as the published code does: the model sees Glance's sigmas, but the "
            "sample moves along others and overshoots. Use it to compare published weights with Glance Scheduler's "
            "sigmas.",
            inputs=[
                io.Combo.Input(
                    "schedule",
                    options=[AUTO, *PAPER_RULES],
                    optional=True,
                    advanced=True,
                    tooltip="The sigmas that the sample moves along. auto: by the pair or the model.",
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustom.")],
        )

    @classmethod
    def execute(cls, schedule: str = AUTO) -> io.NodeOutput:
        return io.NodeOutput(reference_sampler(schedule))
