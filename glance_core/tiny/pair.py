"""Train a Slow and a Fast adapter for the tiny model, say whether they are worth it, and write them as a pair."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter_metadata import Trained
from ..checkpoint import kept
from ..flux_names import diffusers_slots
from ..lora_layers import Lora, Slot
from ..lora_write import new_folder, write_pair
from ..metrics import psnr
from ..objectives import BOTH, END_TO_END, FLOW, FOLD, TRAJECTORY, WALKED, FlowMatching, Objective, Trajectories, refuse_learning, rollout
from ..parts import Choice, what_helps
from ..progress import Progress
from ..run_files import RunFiles
from ..schedule import FAST, SLOW, TEACHER_STEPS, Split, build_schedule, split_steps
from ..solver import Solver, guided
from ..student import Student
from ..targets import TINY, chosen
from ..teacher import EVERY
from ..trainees import Walks
from ..training import Outcome, Step, TrainingSettings, train_pair
from ..verdict import Verdict
from . import BASE, GUIDANCE, LADDER, teacher_sigmas
from .examples import Examples
from .methods import Method, model_hash, searched_control
from .packing import unpack
from .painting import BATCH, Painter, draw_prompts, load_references, reference_prompts
from .world import RESOLUTION


@dataclass(frozen=True)
class Way:
    """The teacher steps that are walked; the student's guidance in training, and the one to sample with; learning rate and batch; start: the
    solver that the student's walks begin with, where they are what is trained; more: guidance that a pair takes above what is best for the
    bare base."""

    split: Split
    taught: float
    guidance: float
    learning_rate: float = 2e-3
    batch: int = 8
    start: Solver | None = None
    more: float = 0.0

    @property
    def bare(self) -> float:
        """The guidance the bare base is best with on these steps."""
        return self.guidance - self.more


# The teacher that is learnt from walks every third of its steps, and those of the split, in second order: 44.6 ± 1.2 dB to the real one on 24
# prompts, where a pair comes to 29, for 40 forwards instead of 100.
VISITED = range(0, TEACHER_STEPS, EVERY)
_HELD_OUT_SEED = 40_000


def way_of(objective: str, forwards: int = 10) -> Way:
    """On the steps that are the bare base's best at so many forwards; walks begin with its guidance and second-order share. Raises GlanceError
    for a number of forwards that was not searched."""
    if objective == FLOW:  # as the paper has it: its split, and the plain conditional velocity
        return Way(split_steps(5, 5), 1.0, GUIDANCE, 5e-4, 4)
    more = 0.0
    if objective.endswith(FOLD):  # the steps of twice as many guided forwards, which is what the student learns to do
        best, guidance = searched_control(2 * forwards, guided=True), 1.0
    elif objective in WALKED:
        best = searched_control(forwards)
        guidance = best.guidance
    else:  # 2.5, 3, 3.5, 4 gain 0.63, 0.92, 0.82, 0.50 dB over the bare base at its best, 2.5 (192 prompts)
        best = searched_control(forwards, guided=True)
        more = 0.5
        guidance = best.guidance + more
    if objective not in WALKED:
        return Way(best.split, guidance, guidance, more=more)
    sigmas = build_schedule(teacher_sigmas(), best.split).sigmas
    start = best.solver or guided(sigmas, guidance, 0.0 if guidance == 1 else best.coefficient)
    return Way(best.split, 1.0, guidance, 3e-3, start=start)


@dataclass(frozen=True)
class PairSettings:
    """steps: of each phase, or of both at once where whole walks are trained; alpha, learning_rate and batch default to the rank and to the
    objective's own; forwards: the pair is sampled with, 0 for 10, or 5 where guidance is folded; flow_matching has the paper's 20; learn:
    adapters, solver or both, on whole walks."""

    objective: str = TRAJECTORY
    steps: int = 120
    rank: int = 16
    alpha: float | None = None
    learning_rate: float | None = None
    batch: int | None = None
    caption_dropout: float = 0.0
    seed: int = 0
    save_every: int = 0
    forwards: int = 0
    learn: str = BOTH

    def __post_init__(self) -> None:
        refuse_learning(self.objective, self.learn)

    @property
    def way(self) -> Way:
        return way_of(self.objective, self.forwards or (5 if self.objective.endswith(FOLD) else 10))

    def training(self) -> TrainingSettings:
        """Raises TrainingError for what cannot be trained with."""
        way = self.way
        walking: dict[str, Any] = {"betas": (0.9, 0.99), "warmup": 0.02} if way.start else {}
        return TrainingSettings(
            Lora(self.rank, self.rank if self.alpha is None else self.alpha), self.steps, self.batch if self.batch is not None else way.batch,
            learning_rate=self.learning_rate if self.learning_rate is not None else way.learning_rate,
            caption_dropout=self.caption_dropout, seed=self.seed, save_every=self.save_every, **walking,
        )  # fmt: skip


def train(painter: Painter, settings: PairSettings, examples: Examples, files: RunFiles | None = None) -> Outcome:
    """The teacher walks its 50 steps for each example, or the picture is taken as it is; then each phase learns its part of the split.

    files: where the run is kept, to be taken up again after a stop. Raises TrainingError.
    """
    training, way = settings.training(), settings.way
    data: Objective | Walks
    if settings.objective == FLOW:
        ladder = teacher_sigmas()
        data = FlowMatching(examples.latents, tuple(ladder[step] for step in way.split.steps))
    else:
        data = taught = _teacher_runs(painter, examples, way.split, files)
        if way.start is not None:
            walked = build_schedule(teacher_sigmas(), way.split).sigmas
            data = Walks(taught.states[0], taught.states[1:], walked, way.start, settings.objective.startswith(END_TO_END),
                         settings.learn).begun(painter.velocity(examples.slots, 1.0), BATCH)  # fmt: skip
    student = Student(painter.model, painter.velocity(examples.slots, way.taught), slots(painter), "the embedded model")
    with Progress("training", training.steps * (1 if way.start else 2)) as bar:

        def report(step: Step) -> None:
            done = step.step + (training.steps if step.phase == FAST else 0)
            if not bar.done:
                bar.done = bar.first = done - 1  # of a run that was taken up again
            bar.step(f"{step.phase} loss {step.loss:.4f}", done - bar.done)

        return train_pair(
            student, data, len(way.split.slow), training, report, files.run if files else None, identity_of(settings, examples)
        )  # fmt: skip


def slots(painter: Painter) -> dict[str, Slot]:
    """What a pair trains, by the names that diffusers has for it, so that its files load there too."""
    parts = diffusers_slots(painter.model)
    return {name: parts[name] for name in chosen(parts, TINY, BASE)}


def _teacher_runs(painter: Painter, examples: Examples, split: Split, files: RunFiles | None) -> Trajectories:
    """The teacher's states at the split's steps from the examples' noise; kept in `files`, and read from there if they are these very ones."""
    ladder = teacher_sigmas()
    visited = sorted({*VISITED, *split.steps})
    bound = {
        "data": examples.digest(), "model": model_hash(), "split": str(split), "guidance": GUIDANCE, "ladder": [LADDER, ladder[1]],
        "visited": visited,
    }  # fmt: skip

    def walk() -> dict[str, Tensor]:
        with Progress("teacher", len(examples) * len(visited)) as bar:
            velocity = painter.velocity(examples.slots, GUIDANCE)
            walked = rollout(velocity, examples.latents, ladder, split.steps, tick=lambda count: bar.step(count=count), visited=visited)
            return {"states": walked.states}

    states = (kept(files.teacher, bound, files.run, walk) if files else walk())["states"]
    return Trajectories(states, torch.tensor([*(ladder[step] for step in split.steps), 0.0]))


def identity_of(settings: PairSettings, examples: Examples) -> dict[str, Any]:
    """What a run, besides its training settings, has to keep when it is taken up again."""
    way = settings.way
    return {
        "objective": settings.objective, "model": model_hash(), "data": examples.digest(), "split": str(way.split),
        "guidance": way.taught,
    }  # fmt: skip


def sampled(settings: PairSettings, done: Outcome, name: str = "pair") -> Method:
    """How the trained pair paints; one without effect as the bare base does at its best."""
    return Method(name, settings.way.split, guidance_of(settings, done), with_pair=True, solver=done.solver)


def guidance_of(settings: PairSettings, done: Outcome) -> float:
    """To sample with, where no solver has its own."""
    return settings.way.guidance if done.has_effect else settings.way.bare


def keep(painter: Painter, settings: PairSettings, done: Outcome, held_out: int) -> Choice:
    """What helps on so many prompts of the training world that nothing was trained on; they are none of those that `judged` takes."""
    prompts = draw_prompts(held_out, _HELD_OUT_SEED + settings.seed, "seen")
    way = settings.way
    teacher = unpack(_teacher_runs(painter, Examples(prompts.slots, prompts.noise), way.split, None).states[-1])

    def near(outcome: Outcome) -> Tensor:
        return psnr(sampled(settings, outcome).paint(painter, prompts, outcome.factors), teacher)

    return what_helps(done, way.start, near, f"{len(prompts)} held-out prompts")


def judged(painter: Painter, settings: PairSettings, done: Outcome, count: int) -> Verdict:
    """Pair and bare base on `count` unseen prompts, both on the pair's own ladder, beside the teacher's pictures."""
    prompts, teacher, factors = reference_prompts(count), load_references(count), done.factors
    methods = [Method("base", settings.way.split, settings.way.bare, solver=settings.way.start), sampled(settings, done)]
    with Progress("before and after", sum(method.forwards for method in methods) * count) as bar:

        def painted(method: Method) -> Tensor:
            return psnr(method.paint(painter, prompts, factors, lambda forwards: bar.step(method.name, forwards)), teacher)

        base, pair = map(painted, methods)
    return Verdict(pair, base, f"{count} unseen prompts")


def write(
    done: Outcome, settings: PairSettings, folder: Path, name: str = "glance_tiny",
    examples: Examples | None = None, verdict: Verdict | None = None, choice: Choice | None = None,
) -> tuple[Path, Path]:  # fmt: skip
    """The pair as two new files in the folder, made if need be; with examples, what is there of this very pair stays. Raises AdapterError."""
    new_folder(folder)
    way, training = settings.way, settings.training()
    walked = build_schedule(teacher_sigmas(), way.split)
    stated = {**asdict(replace(training, save_every=0)), "objective": settings.objective, "split": str(way.split), "guidance": way.taught,
              "learn": settings.learn, "kept": choice.names if choice else None, "model": model_hash(),
              "data": examples.digest() if examples else None}  # fmt: skip
    common = Trained(
        base=BASE, ladder=LADDER, teacher_steps=way.split.teacher_steps, steps=str(way.split), objective=settings.objective,
        guidance=guidance_of(settings, done), seed=settings.seed, pair=hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:16],
        image_sha256=examples.image_sha256 if examples else None, solver=done.solver.dumps() if done.solver else None,
        psnr_pair=round(float(verdict.pair.mean()), 4) if verdict else None,
        psnr_base=round(float(verdict.base.mean()), 4) if verdict else None,
        kept=choice.names if choice else None, verdict=str(choice) if choice else None, resolution=f"{RESOLUTION}x{RESOLUTION}",
    )  # fmt: skip
    sigmas = {SLOW: walked.sigmas[: walked.slow_steps], FAST: walked.sigmas[walked.slow_steps : -1]}
    return write_pair(folder, name, done.factors, common, sigmas, once=examples is not None)
