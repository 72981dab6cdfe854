"""Train, test and write a pair for the embedded model: what the pipeline in training/distill.py needs from it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluation.comparison import PairedComparison
from ..evaluation.metrics import psnr
from ..lora.metadata import PairMetadata
from ..lora.pair_writer import make_folder
from ..lora.slots import Slot
from ..progress import Progress
from ..sampling.cheap_teacher import EVERY, CheapTeacher
from ..sampling.solver import Solver, guided_solver
from ..sampling.velocity import RowVelocity
from ..schedule.phase_schedule import build_schedule
from ..schedule.sigmas import TEACHER_STEPS
from ..schedule.split import FAST, Split, split_steps
from ..training import distill
from ..training.distill_plan import DistillPlan
from ..training.lora_layers import LoraSettings
from ..training.objectives import Learn, Objective, check_objective
from ..training.part_trainer import TrainedStep
from ..training.run.run_dir import RunDir
from ..training.settings import TrainingSettings
from ..training.student import Student
from ..training.targets import target_modules
from ..training.trainer import Outcome
from . import GUIDANCE, ROW, tiny_sigmas
from .examples import Examples
from .methods import Method, model_hash, pixel_psnr, searched_control
from .painting import BATCH, Painter, draw_prompts, load_references, reference_prompts, tiny_slots
from .world import RESOLUTION

# On 24 prompts this one reaches 44.6 ± 1.2 dB to all steps, with 40 model calls instead of 100. A pair reaches 29 dB.
CHEAP_TEACHER = CheapTeacher(tuple(range(0, TEACHER_STEPS, EVERY)), 44.6)
_HELD_OUT_SEED = 40_000
_TEACHER_FORCED_EXTRA_CFG = 0.5  # a teacher-forced pair is best with more guidance than the base, see `steps_for`


@dataclass(frozen=True)
class StudentSteps:
    """The steps of a student and how it is trained on them.

    cfg: to sample the pair with. base_cfg: what the base alone is best with on these steps. start: the solver that a
    rollout objective begins with.
    """

    split: Split
    cfg: float
    base_cfg: float
    learning_rate: float = 2e-3
    batch: int = 8
    start: Solver | None = None


def steps_for(objective: Objective, fold_guidance: bool, nfe: int) -> StudentSteps:
    """Return the steps that are the base's best at this many model calls.

    Raises:
        GlanceError: for a number that was not searched.
    """
    if objective is Objective.FLOW_MATCHING:  # the paper's split, and the plain conditional velocity
        return StudentSteps(split_steps(5, 5), GUIDANCE, GUIDANCE, 5e-4, 4)
    if fold_guidance:  # the steps of twice as many guided calls, which is what the student learns to do
        best, cfg = searched_control(2 * nfe, guided=True), 1.0
    elif objective.is_rollout:
        best = searched_control(nfe)
        cfg = best.guidance
    else:  # 2.5, 3, 3.5, 4 gain 0.63, 0.92, 0.82, 0.50 dB over the base at its best, 2.5 (192 prompts)
        best = searched_control(nfe, guided=True)
        cfg = best.guidance + _TEACHER_FORCED_EXTRA_CFG
    base_cfg = cfg if fold_guidance or objective.is_rollout else best.guidance
    if not objective.is_rollout:
        return StudentSteps(best.split, cfg, base_cfg)
    sigmas = build_schedule(tiny_sigmas(), best.split).sigmas
    start = best.solver or guided_solver(sigmas, cfg, 0.0 if cfg == 1 else best.coefficient)
    return StudentSteps(best.split, cfg, base_cfg, 3e-3, start=start)


@dataclass(frozen=True)
class PairSettings:
    """How to train a pair for the embedded model.

    steps: of each phase, or of both at once on a rollout objective. alpha: None for the rank. learning_rate, batch:
    None for the objective's own. nfe: model calls per picture, 0 for 10, or 5 if guidance is folded; flow_matching has
    the paper's 20. learn: for rollout objectives. checks: held-out prompts for the ablation, 0 to keep everything.
    """

    objective: str = Objective.TEACHER_FORCED
    fold_guidance: bool = False
    steps: int = 120
    rank: int = 16
    alpha: float | None = None
    learning_rate: float | None = None
    batch: int | None = None
    caption_dropout: float = 0.0
    seed: int = 0
    save_every: int = 0
    nfe: int = 0
    learn: str = Learn.BOTH
    checks: int = 48

    def __post_init__(self) -> None:
        check_objective(self.objective, self.learn, self.fold_guidance)

    @property
    def student_steps(self) -> StudentSteps:
        """The steps of the student."""
        return steps_for(Objective(self.objective), self.fold_guidance, self.nfe or (5 if self.fold_guidance else 10))

    def training(self) -> TrainingSettings:
        """Return the settings of the trainer. Raises TrainingError for what cannot be trained with."""
        own = self.student_steps
        rollout: dict[str, Any] = {"betas": (0.9, 0.99), "warmup": 0.02} if own.start else {}
        return TrainingSettings(
            LoraSettings(self.rank, self.rank if self.alpha is None else self.alpha),
            steps=self.steps,
            batch=own.batch if self.batch is None else self.batch,
            learning_rate=own.learning_rate if self.learning_rate is None else self.learning_rate,
            caption_dropout=self.caption_dropout,
            seed=self.seed,
            save_every=self.save_every,
            **rollout,
        )

    def plan(self, runs: int) -> DistillPlan:
        """Return what the pipeline is to do with this many teacher runs."""
        own = self.student_steps
        assert ROW.sigma_rule is not None
        return DistillPlan(
            objective=Objective(self.objective),
            fold_guidance=self.fold_guidance,
            rule=ROW.sigma_rule.name,
            sigmas=tiny_sigmas(),
            split=own.split,
            runs=runs,
            teacher_cfg=GUIDANCE,
            student_cfg=own.cfg,
            base_cfg=own.base_cfg,
            settings=self.training(),
            start=own.start,
            learn=self.learn,
            checks=self.checks,
            cheap_teacher=CHEAP_TEACHER,
        )


class EmbeddedModel:
    """The embedded model and its examples, as the pipeline takes them."""

    device, dtype, is_flow, noise_scale, batch = torch.device("cpu"), torch.float32, True, 1.0, BATCH

    def __init__(self, painter: Painter, settings: PairSettings, examples: Examples):
        self.painter, self.examples = painter, examples
        self.module = painter.model
        self.slots = trained_slots(painter)
        self.pictures = examples.latents
        self.held_out_text = f"{settings.checks} held-out prompts"
        self._held_out = (
            draw_prompts(settings.checks, _HELD_OUT_SEED + settings.seed, "seen") if settings.checks else None
        )

    def velocity(self, guidance: float, held_out: bool = False) -> RowVelocity:
        prompts = self._held_out if held_out and self._held_out else self.examples
        return self.painter.velocity(prompts.slots, guidance)

    def noise(self, held_out: bool = False) -> Tensor:
        return self._held_out.noise if held_out and self._held_out else self.examples.latents

    def student(self, guidance: float) -> Student:
        return Student(self.module, self.velocity(guidance), self.slots, "the embedded model")

    def closeness(self, results: Tensor, teacher: Tensor) -> Tensor:
        return pixel_psnr(results, teacher)

    def identity(self) -> dict[str, Any]:
        return {"model": model_hash(), "data": self.examples.digest()}


def trained_slots(painter: Painter) -> dict[str, Slot]:
    """Return what a pair trains, by diffusers' names, so that its files load there too."""
    slots = tiny_slots(painter.model)
    return {name: slots[name] for name in target_modules(slots, ROW.recipe.targets, ROW.name)}


class TerminalProgress:
    """A progress bar for each stage of a distillation."""

    def __init__(self) -> None:
        self.bar: Progress | None = None

    def stage(self, name: str, total: int) -> None:
        self.close()
        self.bar = Progress(name, total).__enter__()

    def tick(self, count: int) -> None:
        if self.bar:
            self.bar.step(count=count)

    def pause(self, count: int) -> None:
        """Do nothing: no stage counts this work."""

    def trained(self, step: TrainedStep) -> None:
        assert self.bar is not None
        done = step.step + (step.steps if step.part == FAST else 0)
        if not self.bar.done:
            self.bar.done = self.bar.first = done - 1  # a resumed run does not start at 0
        self.bar.step(f"{step.part} loss {step.loss:.4f}", done - self.bar.done)

    def close(self) -> None:
        """End the bar's line."""
        if self.bar:
            self.bar.__exit__(None, None, None)
            self.bar = None


def distill_pair(
    painter: Painter, settings: PairSettings, examples: Examples, run_dir: RunDir | None = None
) -> distill.Distilled:
    """Run the teacher, train both adapters, and test what helps.

    The test is on prompts of the training world that nothing was trained or is judged on.

    Raises:
        TrainingError: as `distill.train` does.
    """
    model = EmbeddedModel(painter, settings, examples)
    with closing(TerminalProgress()) as progress:
        return distill.distill(settings.plan(len(examples)), model, progress, run_dir)


def pair_method(settings: PairSettings, outcome: Outcome, name: str = "pair") -> Method:
    """Return how a trained pair paints; one without effect as the base does at its best."""
    cfg = settings.plan(1).sample_cfg(outcome)
    return Method(name, settings.student_steps.split, cfg, has_pair=True, solver=outcome.solver)


def compare_to_base(painter: Painter, settings: PairSettings, outcome: Outcome, count: int) -> PairedComparison:
    """Compare pair and base on `count` unseen prompts and the pair's own sigmas, by the teacher's pictures."""
    prompts, teacher, own = reference_prompts(count), load_references(count), settings.student_steps
    base = Method("base", own.split, own.base_cfg, solver=own.start)
    pair = pair_method(settings, outcome)
    with Progress("before and after", (base.nfe + pair.nfe) * count) as bar:

        def to_teacher(method: Method) -> Tensor:
            pictures = method.paint(painter, prompts, outcome.factors, lambda calls: bar.step(method.name, calls))
            return psnr(pictures, teacher)

        base_psnr, pair_psnr = to_teacher(base), to_teacher(pair)
    return PairedComparison(pair_psnr, base_psnr, f"{count} unseen prompts")


@dataclass(frozen=True)
class Destination:
    """Where a pair goes. examples: what it was trained on; with them, a pair that is there already stays."""

    folder: Path
    name: str = "glance_tiny"
    examples: Examples | None = None

    def files(self) -> distill.PairFiles:
        """Return the folder, made if needed, and what the files say. Raises AdapterError."""
        make_folder(self.folder)
        about = PairMetadata(
            base=ROW.name,
            image_sha256=self.examples.image_sha256 if self.examples else None,
            resolution=f"{RESOLUTION}x{RESOLUTION}",
        )
        identity: Mapping[str, Any] = {
            "model": model_hash(),
            "data": self.examples.digest() if self.examples else None,
        }
        return distill.PairFiles(self.folder, self.name, about, identity)


def write_pair(
    settings: PairSettings,
    found: distill.Distilled,
    destination: Destination,
    comparison: PairedComparison | None = None,
) -> tuple[Path, Path]:
    """Write the pair of what is kept as two new files. Raises AdapterError."""
    plan, once = settings.plan(1), destination.examples is not None
    return distill.write_kept(plan, found, destination.files(), comparison, once)


def write_everything(settings: PairSettings, found: distill.Distilled, destination: Destination) -> tuple[Path, ...]:
    """Write all that was trained, if not all is kept. Raises AdapterError."""
    return distill.write_all(settings.plan(1), found, destination.files())
