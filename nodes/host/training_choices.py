"""From what a user chose to a TrainingPlan: every choice made and every input checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ...glance_core.calibration.calibrate import Settings
from ...glance_core.errors import TrainingError
from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.lora.pair_writer import make_folder
from ...glance_core.model_row import BaseModel
from ...glance_core.sampling.solver import Solver, guided_solver
from ...glance_core.schedule.phase_schedule import build_schedule
from ...glance_core.training.distill_plan import DistillPlan
from ...glance_core.training.lora_layers import LoraSettings
from ...glance_core.training.objectives import Learn, Objective, check_activations, check_objective
from ...glance_core.training.optimizers import has_bitsandbytes
from ...glance_core.training.run.run_dir import RunDir, find_run_dir
from ...glance_core.training.settings import TrainingSettings
from ...glance_core.training.targets import PRESETS
from .base_model import base_of, first_mask, fixed_latent
from .conditioned import entries
from .model_sigmas import AUTO, model_sigmas, split_for
from .nested import joined, mapped, parts
from .patcher import check_no_steps, pair_of
from .phase_run import chosen_sigmas
from .training_model import trained_slots
from .training_plan import TrainingPlan

_FEWEST_RUNS = 4
_RUN_FOLDER = "glance_training"
_MOST_SEED = 2**62


WHAT_HELPS, EVERYTHING = "what helps", "everything"


@dataclass(frozen=True)
class TrainingOptions:
    """The defaults of Glance Training Options. 0, -1 and auto: the paper's value for this model, else a default."""

    schedule: str = AUTO
    teacher_steps: str = ""
    learning_rate: float = 0.0
    alpha: float = 0.0
    targets: str = AUTO
    optimizer: str = AUTO
    batch_size: int = 0
    accumulation: int = 1
    warmup: float = 0.1
    decay: str = "linear"
    clip: float = 1.0
    weight_decay: float = -1.0
    caption_dropout: float = -1.0
    rslora: bool = False
    learn: str = str(Learn.BOTH)
    keep: str = WHAT_HELPS
    checks: int = 8
    preview_every: int = 20
    save_every: int = 10
    offload: str = AUTO


@dataclass(frozen=True)
class TrainingChoices:
    """The inputs of Train Glance Adapter. latent, positive, negative, check_prompts are input lists."""

    model: Any
    latent: list[Any]
    positive: list[Any]
    negative: list[Any] | None
    check_prompts: list[Any] | None
    objective: str
    slow_steps: int
    fast_steps: int
    cfg: float
    name: str
    fold_guidance: bool = False
    steps: int = 0
    rank: int = 0
    teacher_runs: int = 0
    gradient_checkpointing: bool = True
    seed: int = 0
    resume: bool = True
    settings: Settings | None = None
    sigmas: torch.Tensor | None = None


def training_plan(choices: TrainingChoices, options: TrainingOptions) -> TrainingPlan:
    """Return what the run is to do. Raises GlanceError for choices that cannot work, before anything runs."""
    model = choices.model
    if pair_of(model) is not None:
        raise TrainingError("the model carries a Glance pair already; wire the model from before Load Glance LoRA")
    check_no_steps(model)
    positive, negative = entries(choices.positive), entries(choices.negative)
    if not positive:
        raise TrainingError("positive is empty; wire the caption or the prompts to train on")
    objective = check_objective(choices.objective, options.learn, choices.fold_guidance)
    latents = _latents(choices, objective, len(positive))
    _check(choices, objective, bool(negative))
    base = base_of(model)
    wanted = options.targets.strip()
    slots = trained_slots(model, base.recipe.targets if wanted == AUTO else wanted)
    plan = _distill_plan(choices, options, objective, tuple(parts(latents)[0].shape), len(positive))
    folder, run_dir = _folders(choices)
    return TrainingPlan(
        plan=plan,
        model=model,
        positive=positive + entries(choices.check_prompts),
        negative=negative,
        prompts=len(positive),
        latents=latents,
        slots=slots,
        gradient_checkpointing=choices.gradient_checkpointing,
        offload=options.offload,
        preview_every=options.preview_every,
        folder=folder,
        name=choices.name,
        run_dir=run_dir,
        mask=_mask(choices, objective),
        pattern=None if wanted in (AUTO, *PRESETS) else wanted,
    )


def _distill_plan(
    choices: TrainingChoices, options: TrainingOptions, objective: Objective, shape: tuple[int, ...], prompts: int
) -> DistillPlan:
    found, untrained = choices.settings, PairMetadata()
    rule, wired, source = chosen_sigmas(found, options.schedule, choices.sigmas)
    sigmas = model_sigmas(choices.model, shape, rule, untrained, wired, source)
    typed, counts = options.teacher_steps or "", (choices.slow_steps, choices.fast_steps)
    split = found.split if found else split_for(untrained, *counts, typed, sigmas.steps)
    student_cfg = 1.0 if choices.fold_guidance else choices.cfg
    return DistillPlan(
        objective=objective,
        fold_guidance=choices.fold_guidance,
        rule=sigmas.rule,
        sigmas=sigmas.values,
        split=split,
        runs=choices.teacher_runs or max(_FEWEST_RUNS, prompts),
        teacher_cfg=choices.cfg,
        student_cfg=student_cfg,
        base_cfg=student_cfg,
        settings=_training_settings(choices, options, base_of(choices.model), objective),
        start=_start(found, build_schedule(sigmas.values, split).sigmas, student_cfg) if objective.is_rollout else None,
        learn=options.learn,
        checks=options.checks,
        keep_all=options.keep == EVERYTHING,
    )


def _start(found: Settings | None, sigmas: tuple[float, ...], student_cfg: float) -> Solver:
    """Return the solver to start from: the calibration's if it has the same kind of guidance, else Euler."""
    if found is not None and bool(found.solver.uncond_coef) == (student_cfg != 1):
        return found.solver
    return guided_solver(sigmas, student_cfg)


def _check(choices: TrainingChoices, objective: Objective, has_negative: bool) -> None:
    if choices.cfg != 1 and not has_negative:
        raise TrainingError(f"cfg is {choices.cfg:g}, which needs a negative prompt; wire negative, or set cfg to 1")
    check_activations(objective is Objective.END_TO_END, choices.gradient_checkpointing)
    found = choices.settings
    if found is not None and found.guidance != choices.cfg:
        raise TrainingError(
            f"cfg is {choices.cfg:g}, but the settings were found at cfg {found.guidance:g}; set cfg to that"
        )


def _latents(choices: TrainingChoices, objective: Objective, captions: int) -> Any:
    """Return the pictures, or for other objectives one latent of the size to train at."""
    samples = [fixed_latent(choices.model, one) for one in choices.latent]
    sizes = list(dict.fromkeys(" and ".join(str(tuple(part.shape[1:])) for part in parts(one)) for one in samples))
    if len(sizes) > 1:
        raise TrainingError(
            f"latents differ in size, {sizes[0]} and {sizes[1]}; resize the pictures to one size before VAE Encode"
        )
    latents = joined(samples)
    if objective is not Objective.FLOW_MATCHING:
        return mapped(latents, lambda part: part[:1])
    count = len(parts(latents)[0])
    if not all(torch.count_nonzero(part) for part in parts(latents)):
        raise TrainingError(
            "flow_matching needs a picture, but latent is empty; wire VAE Encode, or choose on_policy, which needs "
            "only prompts"
        )
    if captions not in (1, count):
        raise TrainingError(
            f"latent holds {count} pictures and positive {captions} captions; give one caption each, or one for all"
        )
    return latents


def _mask(choices: TrainingChoices, objective: Objective) -> torch.Tensor | None:
    """Return the mask of the latent, which teacher and student both keep to."""
    masks = [first_mask(latent) for latent in choices.latent]
    if len(masks) > 1 and any(mask is not None for mask in masks):
        raise TrainingError(f"latent holds {len(masks)} latents, some with a mask; give one, or remove the masks")
    if masks[0] is not None and objective is Objective.FLOW_MATCHING:
        raise TrainingError("flow_matching learns whole pictures; remove the mask of latent, or choose on_policy")
    return masks[0]


def _training_settings(
    choices: TrainingChoices, options: TrainingOptions, base: BaseModel, objective: Objective
) -> TrainingSettings:
    recipe, has_negative = base.recipe, bool(entries(choices.negative))
    rank, dropout = choices.rank or recipe.rank, options.caption_dropout
    if dropout > 0 and not has_negative:
        raise TrainingError(
            f"caption_dropout is {dropout:g}, which needs a negative prompt to show instead; wire negative, or set it "
            "to 0"
        )
    if dropout < 0:  # it belongs to the paper's loss; other objectives learn guidance from the teacher
        dropout = recipe.caption_dropout if has_negative and objective is Objective.FLOW_MATCHING else 0.0
    optimizer = options.optimizer
    if optimizer == AUTO:
        eight_bit = choices.model.load_device.type == "cuda" and has_bitsandbytes()
        optimizer = recipe.optimizer if eight_bit else "adamw"
    alpha = options.alpha or recipe.alpha * rank / recipe.rank
    return TrainingSettings(
        LoraSettings(rank, alpha, recipe.init, options.rslora),
        steps=choices.steps or recipe.steps,
        batch=options.batch_size or recipe.batch,
        accumulation=options.accumulation,
        learning_rate=options.learning_rate or recipe.learning_rate,
        optimizer=optimizer,
        weight_decay=recipe.weight_decay if options.weight_decay < 0 else options.weight_decay,
        warmup=options.warmup,
        decay=options.decay,
        clip=options.clip,
        caption_dropout=dropout,
        seed=choices.seed % _MOST_SEED,
        save_every=options.save_every,
    )


def _folders(choices: TrainingChoices) -> tuple[Path, RunDir]:
    """Return the folder of the pair and the files of the run, without what killed runs left half-written."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    runs = Path(folder_paths.get_output_directory()) / _RUN_FOLDER
    for each in (folder, runs):
        make_folder(each)
    run_dir = find_run_dir(runs, choices.name, choices.resume)
    run_dir.sweep()
    RunDir(folder, choices.name).sweep()
    return folder, run_dir
