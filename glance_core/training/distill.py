"""The pipeline: teacher runs -> training data -> trainer -> ablation -> the two files of a pair.

The nodes and the command both call it. They give a model that is loaded and ready, and storage.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..evaluation.comparison import PairedComparison
from ..lora.metadata import PairMetadata
from ..lora.pair_writer import ALL_PARTS, TrainedPair, write_pair
from ..lora.slots import Slot, low_rank_updates
from ..sampling.cheap_teacher import CheapTeacher, find_cheap_teacher
from ..sampling.rollout import Teacher, TeacherTrajectory, rollout
from ..sampling.solver import guided_solver, solve
from ..sampling.velocity import RowVelocity, Tick, in_batches
from ..schedule.phase_schedule import phase_index
from ..schedule.sigmas import LISTED
from ..schedule.split import FAST, SLOW
from ..switch import PhaseSwitch, PhaseWeights
from .ablation import AblationResult, select_components
from .distill_plan import DistillPlan
from .objectives import FlowMatching, Objective, TeacherForced
from .part_trainer import TrainedStep
from .rollout_task import RolloutData
from .run.checkpoint import cached
from .run.run_dir import RunDir
from .run.run_state import Checkpoint
from .student import Student
from .trainer import Outcome, TrainingData, train_pair


class DistillModel(Protocol):
    """A loaded model, and the examples that it learns from and is tested on.

    module: the root below which slots and adapters lie. batch: pictures at a time outside of training.
    pictures: latents (n, ...) for flow_matching. is_flow: it predicts noise - data. noise_scale: the standard
    deviation of that noise.
    held_out_text: what the held-out examples are, for a sentence.
    """

    @property
    def module(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def slots(self) -> Mapping[str, Slot]: ...
    @property
    def batch(self) -> int: ...
    @property
    def pictures(self) -> Tensor: ...
    @property
    def is_flow(self) -> bool: ...
    @property
    def noise_scale(self) -> float: ...
    @property
    def held_out_text(self) -> str: ...

    def velocity(self, guidance: float, held_out: bool = False) -> RowVelocity:
        """Return the model's velocity on the training prompts, or on the held-out ones."""
        ...

    def noise(self, held_out: bool = False) -> Tensor:
        """Return the start of every training run (runs, ...), or of every held-out example (checks, ...)."""
        ...

    def student(self, guidance: float) -> Student: ...

    def closeness(self, results: Tensor, teacher: Tensor) -> Tensor:
        """Return the PSNR (n,) in dB."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what tells this model and its training data from others."""
        ...


class Observer(Protocol):
    """Hears how far a distillation is. tick(n) also ends it, by raising, if the user asked for that."""

    def stage(self, name: str, total: int) -> None: ...

    def tick(self, count: int) -> None: ...

    def pause(self, count: int) -> None:
        """Hear of work that no stage counts."""
        ...

    def trained(self, step: TrainedStep) -> None: ...


@dataclass(frozen=True)
class Distilled:
    """What a distillation gave. ablation: None if nothing was held out."""

    outcome: Outcome
    ablation: AblationResult | None
    teacher: CheapTeacher

    @property
    def kept(self) -> Outcome:
        """What is worth keeping."""
        return self.ablation.outcome if self.ablation else self.outcome


def distill(plan: DistillPlan, model: DistillModel, observer: Observer, run_dir: RunDir | None = None) -> Distilled:
    """Run the teacher, train both adapters, and test what helps. See `train` and `ablate`."""
    outcome, cheap = train(plan, model, observer, run_dir)
    return Distilled(outcome, ablate(plan, model, outcome, observer) if plan.checks else None, cheap)


def train(
    plan: DistillPlan, model: DistillModel, observer: Observer, run_dir: RunDir | None = None
) -> tuple[Outcome, CheapTeacher]:
    """Run the teacher and train both adapters.

    Args:
        run_dir: where the run is kept, to resume it after a stop.

    Raises:
        TrainingError: as `train_pair` does.
    """
    data, cheap = _training_data(plan, model, observer, run_dir)
    observer.stage("training", plan.training_work)
    checkpoint = Checkpoint(run_dir.run, {**model.identity(), **plan.identity()}) if run_dir else None
    student = model.student(plan.train_cfg)
    outcome = train_pair(student, data, plan.schedule.slow_steps, plan.settings, observer.trained, checkpoint)
    return outcome, cheap


def _training_data(
    plan: DistillPlan, model: DistillModel, observer: Observer, run_dir: RunDir | None
) -> tuple[TrainingData, CheapTeacher]:
    if plan.objective is Objective.FLOW_MATCHING:
        sigmas = plan.schedule.sigmas[:-1]
        return FlowMatching(model.pictures, sigmas, model.is_flow, model.noise_scale), CheapTeacher()
    trajectory, cheap = _teacher_runs(plan, model, observer, run_dir)
    if plan.start is None:
        return TeacherForced(trajectory), cheap
    end_to_end = plan.objective is Objective.END_TO_END
    data = RolloutData.of(trajectory, plan.schedule.sigmas, plan.start, end_to_end, plan.learn)
    return data.with_fitted_solver(model.velocity(1.0), model.batch, observer.pause), cheap


def _teacher_runs(
    plan: DistillPlan, model: DistillModel, observer: Observer, run_dir: RunDir | None
) -> tuple[TeacherTrajectory, CheapTeacher]:
    """Return the teacher's trajectories at the student's steps; from `run_dir` if they are there already."""
    noise = model.noise()

    def run() -> dict[str, Tensor]:
        observer.stage("teacher", plan.teacher_work)
        teacher = Teacher(model.velocity(plan.teacher_cfg), plan.sigmas, model.batch, observer.tick)
        cheap = plan.cheap_teacher
        if cheap is None:
            probing = Teacher(teacher.velocity, teacher.sigmas, teacher.batch, observer.pause)
            cheap = find_cheap_teacher(probing, noise, model.closeness, plan.split.steps)
        found = rollout(teacher, noise, plan.split.steps, cheap.with_steps(plan.split.steps))
        return {
            "states": found.states.cpu(),
            "sigmas": found.sigmas.cpu(),
            "psnr": torch.tensor(math.nan if cheap.psnr is None else cheap.psnr),
            "visited_steps": torch.tensor(cheap.visited_steps or (), dtype=torch.long),
        }

    key = {**model.identity(), **plan.teacher_key()}
    tensors = cached(run_dir.teacher, key, run_dir.run, run) if run_dir else run()
    trajectory = TeacherTrajectory(tensors["states"].to(noise), tensors["sigmas"].to(noise))
    psnr = float(tensors["psnr"])
    cheap = CheapTeacher(tuple(tensors["visited_steps"].tolist()) or None, None if math.isnan(psnr) else psnr)
    return trajectory, cheap


def ablate(plan: DistillPlan, model: DistillModel, outcome: Outcome, observer: Observer) -> AblationResult:
    """Return which trained components help on the held-out examples."""
    observer.stage("checking", plan.check_work)
    noise = model.noise(held_out=True)
    teacher = Teacher(model.velocity(plan.teacher_cfg, held_out=True), plan.sigmas, model.batch, observer.tick)
    cheap = plan.cheap_teacher or CheapTeacher()  # one that was only measured is not good enough to judge by
    results = rollout(teacher, noise, (0,), cheap.with_steps(plan.split.steps)).states[-1]

    def psnr(subset: Outcome) -> Tensor:
        found = sample_pair(plan, model, subset, StartNoise(noise, held_out=True), observer.tick)
        return model.closeness(found, results).cpu()

    return select_components(outcome, plan.start, psnr, model.held_out_text, plan.keep_all)


@dataclass(frozen=True)
class StartNoise:
    """The start of sampling runs (n, ...), for the first n training prompts or held-out ones."""

    noise: Tensor
    held_out: bool = False


@torch.no_grad()
def sample_pair(plan: DistillPlan, model: DistillModel, outcome: Outcome, start: StartNoise, tick: Tick) -> Tensor:
    """Sample the student with what was trained, in one run that switches phases; return latents (n, ...).

    Phases that `outcome` lacks are the base alone. Without a solver it takes Euler steps under its guidance.
    """
    sigmas, threshold = plan.schedule.sigmas, plan.schedule.threshold
    solver = outcome.solver or guided_solver(sigmas, 1.0)  # guidance is then the velocity's own
    velocity = model.velocity(1.0 if outcome.solver else plan.sample_cfg(outcome), start.held_out)
    phases = [low_rank_updates(outcome.factors.get(phase, {}), model.slots) for phase in (SLOW, FAST)]
    switch = PhaseSwitch(PhaseWeights(phases, model.dtype))

    def switch_phase(step: int, x: Tensor, sigma: float) -> None:
        switch.select(phase_index(sigma, (threshold,)))

    results = []
    switch.install(model.module, model.device)
    try:
        for rows in torch.split(torch.arange(len(start.noise)), model.batch):
            velocities = in_batches(velocity, rows, len(rows), tick)
            results.append(solve(solver, sigmas, velocities, start.noise[rows], switch_phase))
    finally:
        switch.remove()
    return torch.cat(results)


@dataclass(frozen=True)
class PairFiles:
    """Where a pair is written, and what its files say beside the plan."""

    folder: Path
    name: str
    about: PairMetadata
    identity: Mapping[str, Any]


def write_kept(
    plan: DistillPlan, found: Distilled, files: PairFiles, comparison: PairedComparison | None, once: bool = False
) -> tuple[Path, Path]:
    """Write the pair of what is kept, and return its two files.

    Args:
        comparison: pair and base, as the files state it.
        once: write nothing if this very pair is there already.
    """
    return _write(plan, found.kept, found.ablation, files, comparison, once)


def write_all(plan: DistillPlan, found: Distilled, files: PairFiles) -> tuple[Path, ...]:
    """Write everything that was trained as a second pair, if not all of it was kept, and return its files."""
    if not found.ablation or not found.ablation.dropped:
        return ()
    everything = found.ablation.all_kept
    named = PairFiles(files.folder, f"{files.name}{ALL_PARTS}", files.about, files.identity)
    return _write(plan, everything.outcome, everything, named, everything.comparison, once=True)


def _write(
    plan: DistillPlan,
    outcome: Outcome,
    ablation: AblationResult | None,
    files: PairFiles,
    comparison: PairedComparison | None,
    once: bool,
) -> tuple[Path, Path]:
    kept = ablation.kept_text if ablation else None
    stated = {**files.identity, **plan.describe(), "kept": kept}
    pair = hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode()).hexdigest()[:16]
    about = replace(
        files.about,
        sigma_rule=plan.rule,
        teacher_sigmas=plan.sigmas if plan.rule == LISTED else None,
        teacher_steps=plan.split.teacher_steps,
        steps=str(plan.split),
        objective=str(plan.objective),
        fold_guidance=plan.fold_guidance,
        guidance=plan.sample_cfg(outcome),
        seed=plan.settings.seed,
        pair=pair,
        solver=outcome.solver.dumps() if outcome.solver else None,
        psnr_pair=_rounded_mean(comparison.pair) if comparison else None,
        psnr_base=_rounded_mean(comparison.base) if comparison else None,
        kept=kept,
        comparison=str(ablation) if ablation else None,
    )
    return write_pair(files.folder, files.name, TrainedPair(outcome.factors, about, plan.schedule), once)


def _rounded_mean(column: Tensor) -> float:
    return round(float(column.mean()), 4)
