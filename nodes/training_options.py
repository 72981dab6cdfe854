"""GlanceTrainingOptions: the settings of a training run that few people change."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..glance_core.training.objectives import LEARN
from ..glance_core.training.optimizers import DECAYS, OPTIMIZERS
from .host.model_sigmas import AUTO
from .host.training_choices import EVERYTHING, WHAT_HELPS, TrainingOptions
from .host.training_model import OFFLOADS
from .inputs import CATEGORY, OPTIONS, check_teacher_steps, schedule_input, teacher_steps_input

_DEFAULTS = TrainingOptions()


class GlanceTrainingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def paper(what: str) -> str:
            return f"{what} 0: the paper's value for this model, else a default."

        return io.Schema(
            node_id="GlanceTrainingOptions",
            display_name="Glance Training Options",
            category=CATEGORY,
            description="More settings for Train Glance Adapter. The defaults are right for most models.",
            search_aliases=["train glance", "advanced"],
            inputs=[
                io.Float.Input(
                    "learning_rate",
                    display_name="learning rate",
                    default=_DEFAULTS.learning_rate,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=False,
                    tooltip=paper("Highest learning rate."),
                ),
                io.Float.Input(
                    "alpha",
                    display_name="LoRA alpha",
                    default=_DEFAULTS.alpha,
                    min=0.0,
                    max=10_000.0,
                    step=1.0,
                    tooltip=paper("The LoRAs are scaled by alpha / rank."),
                ),
                io.String.Input(
                    "targets",
                    display_name="layers to train",
                    default=_DEFAULTS.targets,
                    tooltip="Layers to train: auto, paper, attention, all linear, or a regular expression on layer "
                    "names.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=[AUTO, *OPTIMIZERS],
                    tooltip="auto: the paper's; with 8-bit states if bitsandbytes is installed and the GPU is CUDA.",
                ),
                io.Int.Input(
                    "batch_size",
                    display_name="batch size",
                    default=_DEFAULTS.batch_size,
                    min=0,
                    max=1024,
                    tooltip="Examples per step. 0: the default for this model.",
                ),
                io.Int.Input(
                    "accumulation",
                    display_name="batches per step",
                    default=_DEFAULTS.accumulation,
                    min=1,
                    max=1024,
                    tooltip="Batches that add up to one step.",
                ),
                io.Float.Input(
                    "warmup",
                    display_name="warm-up",
                    default=_DEFAULTS.warmup,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps over which the learning rate rises.",
                ),
                io.Combo.Input(
                    "decay",
                    display_name="learning rate decay",
                    options=list(DECAYS),
                    tooltip="How the learning rate falls to the end.",
                ),
                io.Float.Input(
                    "clip",
                    display_name="gradient limit",
                    default=_DEFAULTS.clip,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Largest norm of the gradient. 0: no limit.",
                ),
                io.Float.Input(
                    "weight_decay",
                    display_name="weight decay",
                    default=_DEFAULTS.weight_decay,
                    min=-1.0,
                    max=10.0,
                    step=0.001,
                    tooltip="Weight decay of AdamW. -1: the paper's.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    display_name="caption dropout",
                    default=_DEFAULTS.caption_dropout,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of examples that see the negative prompt instead. -1: the paper's, if one is wired.",
                ),
                io.Boolean.Input(
                    "rslora",
                    display_name="rank-stabilised",
                    default=_DEFAULTS.rslora,
                    tooltip="Scale the LoRAs by alpha / sqrt(rank) instead.",
                ),
                io.Combo.Input(
                    "learn",
                    display_name="what to train",
                    options=list(LEARN),
                    tooltip="For on_policy and end_to_end: train the LoRAs (adapters), the solver, or both.",
                ),
                io.Combo.Input(
                    "keep",
                    display_name="what to keep",
                    options=[WHAT_HELPS, EVERYTHING],
                    tooltip="what helps: of Slow, Fast and solver only those that clearly help; the others have no "
                    "effect. everything: keep all.",
                ),
                io.Int.Input(
                    "checks",
                    display_name="test pictures",
                    default=_DEFAULTS.checks,
                    min=1,
                    max=1024,
                    tooltip="Pictures that decide what helps. With few, only large gains are kept.",
                ),
                io.Int.Input(
                    "preview_every",
                    display_name="preview every",
                    default=_DEFAULTS.preview_every,
                    min=0,
                    max=100_000,
                    tooltip="Training steps between preview pictures. 0: no previews.",
                ),
                io.Int.Input(
                    "save_every",
                    display_name="save every",
                    default=_DEFAULTS.save_every,
                    min=0,
                    max=100_000,
                    tooltip="Training steps between checkpoints; a crash loses no more. 0: save only if you stop it.",
                ),
                io.Combo.Input(
                    "offload",
                    display_name="stream weights",
                    options=OFFLOADS,
                    tooltip="Weights that stream from main memory. auto: those that do not fit beside the training.",
                ),
                schedule_input(),
                teacher_steps_input(),
            ],
            outputs=[OPTIONS.Output(display_name="options", tooltip="For Train Glance Adapter.")],
        )

    @classmethod
    def validate_inputs(cls, teacher_steps: str | None = None, targets: str | None = None) -> bool | str:
        if targets is not None and not targets.strip():
            return "targets is empty. Write auto, paper, attention, all linear or a regular expression."
        return check_teacher_steps(teacher_steps)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(TrainingOptions(**inputs))
