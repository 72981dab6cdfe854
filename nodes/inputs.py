"""Inputs that nodes share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..glance_core.errors import GlanceError
from ..glance_core.models import cfg_hint
from ..glance_core.schedule.sigmas import MOST_TEACHER_STEPS
from ..glance_core.schedule.split import parse_steps
from .host.model_sigmas import SCHEDULES

CATEGORY = "Glance"
SETTINGS = io.Custom("GLANCE_SETTINGS")
OPTIONS = io.Custom("GLANCE_TRAINING_OPTIONS")
_PAPER_STEPS = {"slow": "5, or 3", "fast": "5"}


def schedule_input() -> Any:
    """Return the choice of the teacher's sigmas."""
    return io.Combo.Input(
        "schedule",
        options=SCHEDULES,
        tooltip="Noise levels of the full-step model. auto: those that the pair was trained on, else the model's own.",
    )


def sigmas_input() -> Any:
    """Return the input for the teacher's whole list of sigmas."""
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="From the scheduler node that you use with all steps, with all of its steps. Replaces schedule.",
    )


def step_inputs() -> list[Any]:
    """Return the numbers of steps of both phases."""
    return [
        io.Int.Input(
            f"{phase}_steps",
            display_name=f"{phase} steps",
            default=5,
            min=1,
            max=MOST_TEACHER_STEPS,
            tooltip=f"Steps of the {phase.title()} phase (the paper: {paper}). Ignored if teacher_steps is filled in.",
        )
        for phase, paper in _PAPER_STEPS.items()
    ]


def teacher_steps_input() -> Any:
    """Return the explicit teacher steps."""
    return io.String.Input(
        "teacher_steps",
        display_name="exact steps",
        default="",
        optional=True,
        advanced=True,
        placeholder="teacher steps, e.g. 1,3,5,7,9|11,21,31,41,50",
        tooltip="Exact steps instead of slow_steps and fast_steps, Slow before the bar: 1,3,5,7,9|11,21,31,41,50",
    )


def check_teacher_steps(teacher_steps: str | None) -> bool | str:
    """Return True, or the sentence that says what is wrong with the text."""
    if not teacher_steps or not teacher_steps.strip():
        return True
    try:
        parse_steps(teacher_steps, MOST_TEACHER_STEPS)
    except GlanceError as error:
        return str(error)
    return True


def settings_input(tooltip: str) -> Any:
    """Return the input for Calibrate Glance's settings."""
    return SETTINGS.Input("settings", optional=True, tooltip=tooltip)


def denoise_input() -> Any:
    """Return the choice of denoise."""
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="Below 1: image to image. Lower keeps more of the image.",
    )


def seed_input(tooltip: str = "Random seed for the noise.") -> Any:
    """Return the choice of a seed."""
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def cfg_input(tooltip: str) -> Any:
    """Return the choice of guidance."""
    return io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def late_cfg_input() -> Any:
    """Return the guidance of the run's second part."""
    return io.Float.Input(
        "late_cfg",
        display_name="late cfg",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        optional=True,
        advanced=True,
        tooltip="The cfg from the boundary on. 0: the same as cfg. At 1 a step takes one model call.",
    )


def teacher_cfg_input() -> Any:
    """Return the guidance of the full-step model."""
    return cfg_input(f"The cfg that you use with all steps: {cfg_hint()}.")


def negative_input() -> Any:
    """Return the negative prompt of the full-step model."""
    return io.Conditioning.Input(
        "negative", optional=True, tooltip="Your usual negative prompt. Required unless cfg is 1."
    )


def teacher_inputs(positive: str) -> list[Any]:
    """Return the inputs of nodes that run the full-step model.

    Args:
        positive: the tooltip of the prompts.
    """
    return [
        io.Model.Input("model", tooltip="The base model, without a Glance pair."),
        io.Conditioning.Input("positive", tooltip=positive),
        negative_input(),
        io.Latent.Input("latent_image", tooltip="An empty latent of the size that you use."),
        teacher_cfg_input(),
    ]


def batch_input() -> Any:
    """Return how many pictures are sampled at a time."""
    return io.Int.Input(
        "batch_size",
        display_name="batch size",
        optional=True,
        advanced=True,
        default=4,
        min=1,
        max=1024,
        tooltip="Pictures at a time.",
    )


def teacher_runs_input(tooltip: str) -> Any:
    """Return how often the full-step model runs."""
    return io.Int.Input("teacher_runs", optional=True, advanced=True, default=0, min=0, max=1024, tooltip=tooltip)
