"""TrainGlanceAdapter: from prompts, or one picture with its caption, to a saved pair and a MODEL with it."""

from __future__ import annotations

import re
from typing import Any

import torch
from comfy_api.latest import io

from ..glance_core.plots.loss_plot import LossPlot, plot_losses
from ..glance_core.training.objectives import OBJECTIVES, Objective
from .host.nested import parts
from .host.node_progress import NodeProgress, as_image
from .host.pair_loading import load_pair
from .host.training_choices import TrainingChoices, TrainingOptions, training_plan
from .host.training_plan import TrainingPlan
from .host.training_run import TrainingResult, train
from .inputs import (
    CATEGORY,
    OPTIONS,
    negative_input,
    seed_input,
    settings_input,
    sigmas_input,
    step_inputs,
    teacher_cfg_input,
)

_NAME = re.compile(r"[\w][\w .()+-]{0,99}")
_LISTS = ("negative", "check_prompts")


class TrainGlanceAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainGlanceAdapter",
            display_name="Train Glance Adapter",
            category=CATEGORY,
            description="Trains a Slow and a Fast LoRA for this model, from prompts or from one picture with its "
            "caption, and saves them in models/loras. The base model does not change.",
            search_aliases=["train glance", "train lora", "distill", "accelerator"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to accelerate, without a Glance pair."),
                io.Latent.Input(
                    "latent",
                    tooltip="An empty latent of the size that you use. For flow_matching: your picture through VAE "
                    "Encode.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompts to learn from, or the picture's caption. Conditioning (Combine) joins "
                    "several.",
                ),
                negative_input(),
                io.Conditioning.Input(
                    "check_prompts",
                    display_name="test prompts",
                    optional=True,
                    tooltip="Prompts to test the pair on, kept out of training. Without: new noise of the same "
                    "prompts.",
                ),
                io.String.Input(
                    "name",
                    display_name="file name",
                    default="my_glance",
                    tooltip="The files are NAME_slow and NAME_fast in models/loras. Existing files stay; the name "
                    "gets a number.",
                ),
                io.Combo.Input(
                    "objective",
                    display_name="how to train",
                    options=list(OBJECTIVES),
                    default=str(Objective.ON_POLICY),
                    tooltip="on_policy: learns from prompts, each step from where its own steps lead. end_to_end: all "
                    "steps at once, for small models. teacher_forced: single steps of the full run. flow_matching: the "
                    "paper's loss on your picture.",
                ),
                io.Boolean.Input(
                    "fold_guidance",
                    display_name="build guidance in",
                    default=False,
                    tooltip="Build the guidance into the pair. It then samples at cfg 1, at half the cost per step.",
                ),
                *step_inputs(),
                teacher_cfg_input(),
                io.Int.Input(
                    "steps",
                    display_name="training steps",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Training steps. 0: the paper's for this model, else a default.",
                ),
                io.Int.Input(
                    "rank",
                    display_name="LoRA rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Rank of the LoRAs: more can learn more, in larger files. 0: the paper's, else a default.",
                ),
                io.Int.Input(
                    "teacher_runs",
                    display_name="full runs to learn from",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Full runs to learn from, one prompt after the other. 0: one for each prompt, at least 4.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    display_name="save memory",
                    default=True,
                    tooltip="Save memory: far less of it, for a third more time. Switch it off for end_to_end.",
                ),
                seed_input("Random seed for LoRA init, noise and data order."),
                io.Boolean.Input(
                    "resume",
                    display_name="continue unfinished run",
                    default=True,
                    tooltip="Continue an unfinished run of this name. Off: start again.",
                ),
                settings_input("From Calibrate Glance: the steps to train, and the solver to start from."),
                OPTIONS.Input("options", optional=True, tooltip="From Glance Training Options."),
                sigmas_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the pair, for Phase Split Sampler."),
                io.String.Output(display_name="slow_file", tooltip="Its name in Load Glance LoRA."),
                io.String.Output(display_name="fast_file", tooltip="Its name in Load Glance LoRA."),
                io.Image.Output(display_name="losses", tooltip="Losses by step, and at each noise level."),
                io.String.Output(
                    display_name="report", tooltip="What was trained, and whether it is better than the base."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: Any = None) -> bool | str:
        name = name[0] if isinstance(name, list) and name else name
        if name is not None and not _NAME.fullmatch(str(name)):
            return (
                f"{str(name)[:60]!r} is not a file name. Use letters, digits, spaces and . ( ) + - _, and begin with a "
                "letter or digit."
            )
        return True

    @classmethod
    def execute(cls, model: list[Any], latent: list[Any], positive: list[Any], **inputs: Any) -> io.NodeOutput:
        lists = {key: inputs.pop(key, None) for key in _LISTS}
        single = {key: value[0] for key, value in inputs.items()}
        options = single.pop("options", None) or TrainingOptions()
        choices = TrainingChoices(model[0], latent, positive, lists["negative"], lists["check_prompts"], **single)
        training = training_plan(choices, options)
        progress = NodeProgress(getattr(cls.hidden, "unique_id", None), training.plan.work)
        result = train(training, progress)
        carrying, loaded = load_pair(training.model, *map(str, result.files))
        names = [str(file.relative_to(training.folder)) for file in result.files]
        return io.NodeOutput(carrying, *names, _picture(training, result), _report(training, result, loaded))


def _per_phase(training: TrainingPlan) -> str:
    return "" if training.plan.objective.is_rollout else " per phase"


def _picture(training: TrainingPlan, result: TrainingResult) -> torch.Tensor:
    plan, settings = training.plan, training.plan.settings
    title = f"{training.name}: {plan.objective}, {settings.steps} steps{_per_phase(training)}"
    plot = LossPlot(
        result.found.outcome.history,
        plan.schedule.sigmas[:-1],
        plan.schedule.slow_steps,
        settings.batch * settings.accumulation,
        title,
    )
    return as_image(plot_losses(plot))


def _report(training: TrainingPlan, result: TrainingResult, loaded: str) -> str:
    plan, settings = training.plan, training.plan.settings
    if plan.objective is Objective.FLOW_MATCHING:
        learnt_from = f"{len(parts(training.latents)[0])} pictures"
    else:
        learnt_from = (
            f"{plan.runs} teacher runs on {training.prompts} prompts, cfg {plan.teacher_cfg:g}; {result.found.teacher}"
        )
    objective = f"{plan.objective}, guidance folded in" if plan.fold_guidance else str(plan.objective)
    lines = [
        str(result.found.ablation),
        f"trained in {result.seconds:.0f} s ({result.steps_per_second:.2f} steps per second): {objective}, "
        f"{learnt_from}",
        f"{settings.steps} steps{_per_phase(training)} of {settings.batch * settings.accumulation}, "
        f"{settings.optimizer}, learning rate {settings.learning_rate:g}, rank {settings.lora.rank}, alpha "
        f"{settings.lora.alpha:g}, {len(training.slots) - len(result.left_out)} layers, seed {settings.seed}",
        f"sample with cfg {plan.student_cfg:g} on teacher steps {plan.split}",
        *map(str, result.files),
    ]
    if result.left_out:
        count, first = len(result.left_out), result.left_out[0]
        lines.append(f"{count} chosen layers are left out, because no gradient reaches them; the first is {first}")
    if result.everything:
        lines += [
            "everything that was trained (move both files to models/loras to try it):",
            *map(str, result.everything),
        ]
    return "\n".join([*lines, *result.pictures, loaded])
