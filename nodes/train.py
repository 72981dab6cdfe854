"""TrainGlanceAdapter: from one picture with its caption, or from prompts alone, to a saved pair and a MODEL that carries it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..glance_core import optimizers, targets
from ..glance_core.adapter_metadata import Trained
from ..glance_core.errors import TrainingError
from ..glance_core.lora_layers import Lora
from ..glance_core.lora_write import new_folder
from ..glance_core.loss_plot import plot_losses
from ..glance_core.objectives import AIMED, BOTH, END_TO_END, FLOW, LEARN, OBJECTIVES, refuse_learning
from ..glance_core.run_files import RunFiles, run_files
from ..glance_core.schedule import build_schedule
from ..glance_core.training import TrainingSettings
from . import host, pair
from . import student as glue
from .live import Live, as_image
from .loader import CATEGORY, load_pair
from .samplers import schedule_inputs, settings_input, teacher_steps_input, validate_teacher_steps
from .training_plan import Plan
from .training_run import Result, train

AUTO = "auto"
WHAT_HELPS, EVERYTHING = "what helps", "everything"
_NAME = re.compile(r"[\w][\w .()+-]{0,99}")


class TrainGlanceAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def auto(what: str) -> str:
            return f"{what} 0: as the paper has it for this model (Qwen-Image, FLUX), else a default."

        def advanced(kind: Any, name: str, tooltip: str, **more: Any) -> Any:
            return kind.Input(name, optional=True, advanced=True, tooltip=tooltip, **more)

        return io.Schema(
            node_id="TrainGlanceAdapter",
            display_name="Train Glance Adapter",
            category=CATEGORY,
            description="Trains a Slow and a Fast LoRA on this model, from prompts or from one picture with its caption, and saves them as a pair "
            "in models/loras. The model itself is not changed.",
            search_aliases=["train glance", "train lora", "distill", "accelerator"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to accelerate, without a Glance pair on it."),
                io.Latent.Input("latent", tooltip="flow_matching: the encoded picture or pictures. all others: an empty latent; only its size counts."),
                io.Conditioning.Input("positive", tooltip="The caption of the picture, or the prompts (each entry of a combined conditioning is one)."),
                io.Conditioning.Input("negative", optional=True, tooltip="As you sample with; needed where cfg is not 1. Dropped captions see it."),
                io.Conditioning.Input("check_prompts", optional=True, tooltip="Prompts to judge the pair on, kept out of training. Without: the training prompts from unseen noise."),
                io.Combo.Input("objective", options=list(OBJECTIVES), default=AIMED, tooltip="aimed: each step from where the student's own steps lead towards the teacher, from prompts alone, with a solver of its own. "
                               "end to end: the same through all steps at once, for small models. trajectory: single steps of the teacher's path. fold guidance: the pair then samples at cfg 1. "
                               "flow_matching: the paper's loss on your picture; on the embedded model it makes things worse, see the README."),
                *schedule_inputs(),
                io.Int.Input("steps", default=0, min=0, max=100_000, tooltip=auto("Training steps of each phase; of both at once for aimed and end to end.")),
                io.Float.Input("learning_rate", default=0.0, min=0.0, max=1.0, step=0.00001, round=False, tooltip=auto("Highest learning rate.")),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip=auto("Rank of the LoRAs.")),
                io.Float.Input("alpha", default=0.0, min=0.0, max=10_000.0, step=1.0, tooltip=auto("The LoRAs' scale is alpha / rank.")),
                io.String.Input("targets", default=AUTO, tooltip="Layers to train: auto, paper, attention, all linear, or a regular expression on the layers' names."),
                io.Combo.Input("optimizer", options=[AUTO, *optimizers.OPTIMIZERS], tooltip="auto: as the paper has it, with 8-bit states where bitsandbytes is installed and the GPU is CUDA."),
                io.Boolean.Input("gradient_checkpointing", default=True, tooltip="Keep each block's inputs alone and run it again in the backward pass: far less memory, a third more time."),
                io.Combo.Input("offload", options=glue.OFFLOADS, tooltip="Weights that the GPU streams from main memory. auto: those that do not fit beside the training."),
                io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="The guidance the teacher samples with: Qwen-Image 4, FLUX.1-dev 1, the embedded model 4."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="Of initialisation, noise and order."),
                io.Int.Input("save_every", default=10, min=0, max=100_000, tooltip="Training steps between checkpoints; a crash loses no more. 0: only an interrupt saves."),
                io.Boolean.Input("resume", default=True, tooltip="Go on with an unfinished run of this name. Off: start anew beside it."),
                io.String.Input("name", default="my_glance", tooltip="The files are NAME_slow and NAME_fast in models/loras; an existing file is never overwritten, the name then gets a number."),
                teacher_steps_input(),
                settings_input("From Calibrate Glance: its ladder and steps; aimed and end to end begin with its solver."),
                advanced(io.Int, "teacher_runs", "Runs of the teacher to learn from, each on a prompt in turn with its own noise. 0: one for each prompt, at least 4.", default=0, min=0, max=100_000),
                advanced(io.Int, "batch_size", "Examples per step. 0: the default of the model.", default=0, min=0, max=1024),
                advanced(io.Int, "accumulation", "Batches added up for one step.", default=1, min=1, max=1024),
                advanced(io.Float, "warmup", "Share of the steps over which the learning rate rises.", default=0.1, min=0.0, max=1.0, step=0.01),
                advanced(io.Combo, "decay", "How the learning rate falls to the end.", options=list(optimizers.DECAYS)),
                advanced(io.Float, "clip", "Largest norm of the gradient. 0: none.", default=1.0, min=0.0, max=1000.0, step=0.1),
                advanced(io.Float, "weight_decay", "Of AdamW. -1: as the paper has it.", default=-1.0, min=-1.0, max=10.0, step=0.001),
                advanced(io.Float, "caption_dropout", "Share of examples that see the negative prompt instead. -1: as the paper has it, where a negative is wired.", default=-1.0, min=-1.0, max=1.0, step=0.01),
                advanced(io.Boolean, "rslora", "Scale by alpha / sqrt(rank).", default=False),
                advanced(io.Int, "checks", "Teacher runs for the comparison with the bare base at the end; a gain has to be clear on them, so few of them keep only what helps much.", default=8, min=1, max=1024),
                advanced(io.Combo, "learn", "aimed and end to end: the LoRAs, the solver, or both.", options=list(LEARN)),
                advanced(io.Combo, "keep", "what helps: of Slow, Fast and solver those that bring the check's pictures nearer to the teacher; what is not kept does nothing. everything: all of them, whatever they do.", options=[WHAT_HELPS, EVERYTHING]),
                advanced(io.Int, "preview_every", "Training steps between pictures through the pair. 0: none.", default=20, min=0, max=100_000),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the pair, for Phase Split Sampler."),
                io.String.Output(display_name="slow_file", tooltip="As Load Glance LoRA lists it."),
                io.String.Output(display_name="fast_file", tooltip="As Load Glance LoRA lists it."),
                io.Image.Output(display_name="losses", tooltip="By step, and at each sigma."),
                io.String.Output(display_name="report", tooltip="What was trained, how long it took, and whether it is better than the bare base."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name: Any = None, teacher_steps: Any = None, targets: Any = None) -> bool | str:
        name, teacher_steps, targets = (
            value[0] if isinstance(value, list) and value else value for value in (name, teacher_steps, targets)
        )
        if name is not None and not _NAME.fullmatch(str(name)):
            return f"name {str(name)[:60]!r} is no file name; use letters, digits, spaces and . ( ) + - _, beginning with a letter or digit"
        if targets is not None and not str(targets).strip():
            return "targets is empty; write auto, paper, attention, all linear or a regular expression"
        return validate_teacher_steps(teacher_steps)

    @classmethod
    def execute(cls, model: list[Any], latent: list[Any], positive: list[Any], **inputs: Any) -> io.NodeOutput:
        lists = {key: inputs.pop(key, None) for key in ("negative", "check_prompts")}
        chosen = {key: value[0] for key, value in inputs.items()}
        plan = _plan(
            model[0], latent, glue.entries(positive), glue.entries(lists["negative"]), glue.entries(lists["check_prompts"]), chosen
        )
        live = Live(getattr(cls.hidden, "unique_id", None), plan.work)
        result = train(plan, live)
        carrying, loaded = load_pair(plan.model, *map(str, result.files))
        listed = [str(file.relative_to(plan.folder)) for file in result.files]
        return io.NodeOutput(carrying, *listed, _picture(plan, result), _report(plan, result, loaded))


def _plan(model: Any, latent: list[Any], positive: list[Any], negative: list[Any], check: list[Any], inputs: dict[str, Any]) -> Plan:
    """Every choice made, every input looked at. Raises GlanceError before anything runs."""
    objective = inputs["objective"]
    if pair.pair_of(model) is not None:
        raise TrainingError("the model carries a Glance pair already; wire the model from before Load Glance LoRA")
    if not positive:
        raise TrainingError("positive is empty; wire the caption or the prompts to train on")
    latents = _latents(model, latent)
    if objective == FLOW:
        if not torch.count_nonzero(latents):
            raise TrainingError(
                "flow_matching needs a picture, and latent is empty; wire VAE Encode, or choose aimed, which needs prompts alone"
            )
        if len(positive) not in (1, len(latents)):
            raise TrainingError(
                f"latent holds {len(latents)} pictures and positive {len(positive)} captions; give one caption each, or one for all"
            )
    else:
        latents = latents[:1]
    if inputs["cfg"] != 1 and not negative:
        raise TrainingError(f"cfg is {inputs['cfg']:g}, which needs a negative prompt; wire negative, or set cfg to 1")
    if objective.startswith(END_TO_END) and inputs["gradient_checkpointing"]:
        raise TrainingError("objective end to end keeps the activations of all steps; set gradient_checkpointing to false, or choose aimed")
    refuse_learning(objective, inputs.get("learn", BOTH))
    settings = _settings(model, inputs, bool(negative))
    found, trained = inputs.get("settings"), Trained()
    if found is not None and found.guidance != inputs["cfg"]:
        raise TrainingError(f"cfg is {inputs['cfg']:g}, but settings were found for a teacher at {found.guidance:g}; set cfg to it")
    split = found.split if found else host.split(trained, inputs["slow_steps"], inputs["fast_steps"], inputs.get("teacher_steps") or "")
    kind, ladder = host.teacher_ladder(model, tuple(latents.shape), found.kind if found else inputs["schedule"], trained)
    wanted = inputs["targets"].strip()
    slots = glue.slots(model, targets.recipe(host.architecture(model)).targets if wanted == AUTO else wanted)
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    runs = Path(folder_paths.get_output_directory()) / "glance_training"
    for each in (folder, runs):
        new_folder(each)
    name = inputs["name"]
    keep = run_files(runs, name, inputs["resume"])
    keep.sweep()
    RunFiles(folder, name).sweep()  # what kills left of pairs of this name
    return Plan(
        model, positive + check, negative, latents, len(positive), objective, slots, split, kind, ladder, build_schedule(ladder, split),
        inputs["cfg"], inputs.get("teacher_runs") or max(4, len(positive)), inputs.get("checks", 8), inputs["gradient_checkpointing"],
        inputs["offload"], inputs.get("preview_every", 20), settings, folder, name, keep, found.solver if found else None,
        inputs.get("keep") == EVERYTHING, inputs.get("learn", BOTH),
    )  # fmt: skip


def _latents(model: Any, latent: list[Any]) -> torch.Tensor:
    samples = [host.fixed_latent(model, one) for one in latent]
    if any(one.is_nested for one in samples):
        raise TrainingError("latent holds video with sound, which cannot be trained yet; give pictures or plain video")
    sizes = list(dict.fromkeys(tuple(one.shape[1:]) for one in samples))
    if len(sizes) > 1:
        raise TrainingError(f"latents differ in size, {sizes[0]} and {sizes[1]}; resize the pictures to one size before VAE Encode")
    return torch.cat(samples)


def _settings(model: Any, inputs: dict[str, Any], has_negative: bool) -> TrainingSettings:
    recipe = targets.recipe(host.architecture(model))
    rank = inputs["rank"] or recipe.rank
    dropout = inputs.get("caption_dropout", -1.0)
    if dropout > 0 and not has_negative:
        raise TrainingError(f"caption_dropout is {dropout:g}, which needs a negative prompt to show instead; wire negative, or set it to 0")
    if dropout < 0:  # dropping captions belongs to the paper's loss; a trajectory has guidance in it
        dropout = recipe.caption_dropout if has_negative and inputs["objective"] == FLOW else 0.0
    decay = inputs.get("weight_decay", -1.0)
    optimizer = inputs["optimizer"]
    if optimizer == AUTO:
        optimizer = recipe.optimizer if model.load_device.type == "cuda" and optimizers.has_bitsandbytes() else "adamw"
    return TrainingSettings(
        Lora(rank, inputs["alpha"] or recipe.alpha * rank / recipe.rank, recipe.init, inputs.get("rslora", False)),
        inputs["steps"] or recipe.steps, inputs.get("batch_size") or recipe.batch, inputs.get("accumulation", 1),
        inputs["learning_rate"] or recipe.learning_rate, optimizer, weight_decay=recipe.weight_decay if decay < 0 else decay,
        warmup=inputs.get("warmup", 0.1), decay=inputs.get("decay", "linear"), clip=inputs.get("clip", 1.0), caption_dropout=dropout,
        seed=inputs["seed"] % 2**62, save_every=inputs["save_every"],
    )  # fmt: skip


def _picture(plan: Plan, result: Result) -> torch.Tensor:
    per_step = plan.settings.batch * plan.settings.accumulation
    drawn = plot_losses(
        result.history,
        plan.walked.sigmas[:-1],
        plan.walked.slow_steps,
        per_step,
        f"{plan.name}: {plan.objective}, {plan.settings.steps} steps{'' if plan.walks else ' a phase'}",
    )
    return as_image(drawn)


def _kept_whole(result: Result) -> list[str]:
    if not result.whole:
        return []
    return ["all of it, as it was trained (move both files to models/loras to try it):", *map(str, result.whole)]


def _report(plan: Plan, result: Result, loaded: str) -> str:
    settings = plan.settings
    lora = settings.lora
    taught = (
        f"{plan.latents.shape[0]} pictures"
        if plan.objective == "flow_matching"
        else f"{plan.runs} runs of the teacher on {plan.prompts} prompts, cfg {plan.cfg:g}, by {result.teacher}"
    )
    return "\n".join([
        str(result.choice),
        f"trained in {result.seconds:.0f} s ({result.steps_per_second:.2f} steps a second): {plan.objective}, {taught}",
        f"{settings.steps} steps{'' if plan.walks else ' a phase'} of {settings.batch * settings.accumulation}, {settings.optimizer}, learning rate {settings.learning_rate:g}, "
        f"rank {lora.rank}, alpha {lora.alpha:g}, {len(plan.slots)} layers, seed {settings.seed}",
        f"sample with cfg {plan.student_cfg:g} on teacher steps {plan.split}",
        *map(str, result.files),
        *_kept_whole(result),
        *result.pictures,
        loaded,
    ])  # fmt: skip
