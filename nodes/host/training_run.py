"""One training run in ComfyUI: the pipeline of training/distill.py, with ComfyUI's model, progress and previews."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...glance_core.errors import AdapterError, TrainingError
from ...glance_core.evaluation.metrics import latent_psnr
from ...glance_core.lora.pair_writer import write_preview
from ...glance_core.lora.slots import Slot
from ...glance_core.sampling.trial import try_model
from ...glance_core.sampling.velocity import RowVelocity
from ...glance_core.schedule.split import FAST
from ...glance_core.training import distill
from ...glance_core.training.called import Call, reachable_slots
from ...glance_core.training.history import History
from ...glance_core.training.part_trainer import TrainedStep
from ...glance_core.training.preflight import preflight
from ...glance_core.training.student import Student
from ...glance_core.training.trainer import Outcome
from .base_model import compute_dtype, is_flow, noise_scale
from .conditioned import Conditioned
from .log import log
from .model_sigmas import starting_noise
from .nested import first_part, packed
from .node_progress import NodeProgress
from .previews import Preview, preview
from .training_model import TrainingInputs, student_of, with_loaded_model
from .training_plan import TrainingPlan

# Added to the seed, so that no noise repeats: training rows come from one generator of the seed itself.
_CHECK_SEED, _PREVIEW_SEED = 7919, 104_729


@dataclass(frozen=True)
class TrainingResult:
    """What a run wrote and gave.

    files: of the pair. everything: files with all that was trained, if not all was kept. pictures: what became of the
    previews beside the files, as text. left_out: layers of the chosen group that no gradient reaches.
    """

    files: tuple[Path, Path]
    everything: tuple[Path, ...]
    found: distill.Distilled
    seconds: float
    steps_per_second: float
    pictures: tuple[str, ...]
    left_out: tuple[str, ...] = ()


class HostModel:
    """A loaded model of ComfyUI and its examples, as the pipeline takes them."""

    def __init__(self, training: TrainingPlan, conditioned: Conditioned, latents: torch.Tensor):
        self.training, self.conditioned = training, conditioned
        self.module, self.device = training.model.model, training.model.load_device
        self.dtype, self.is_flow = compute_dtype(training.model), is_flow(training.model)
        self.noise_scale = noise_scale(training.model)
        self.batch, self.pictures = training.plan.settings.batch, latents.float()
        self.slots: Mapping[str, Slot] = training.slots
        checks, held_out = training.plan.checks, training.held_out
        what = "unseen prompts" if held_out else "unseen noises of the training prompts"
        self.held_out_text = f"{checks} {what}, in latents"

    def velocity(self, guidance: float, held_out: bool = False) -> RowVelocity:
        prompts = self.training.held_out if held_out and self.training.held_out else range(self.training.prompts)
        return self.conditioned.velocity(guidance, prompts)

    def noise(self, held_out: bool = False) -> torch.Tensor:
        plan = self.training.plan
        if held_out:
            return self.noise_of(plan.checks, plan.settings.seed + _CHECK_SEED)
        return self.noise_of(plan.runs, plan.settings.seed)

    def noise_of(self, count: int, seed: int) -> torch.Tensor:
        """Return noise (count, ...) at the first sigma."""
        plan, shape = self.training.plan, tuple(packed(self.training.latents).shape)
        return starting_noise(self.training.model, plan.sigmas, shape, count, seed)

    def student(self, guidance: float) -> Student:
        training = self.training
        return student_of(training.model, self.velocity(guidance), training.slots, training.gradient_checkpointing)

    def closeness(self, results: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return latent_psnr(results, teacher)

    def identity(self) -> dict[str, Any]:
        return self.training.identity


class TrainingObserver:
    """Shows a run on its node, with a picture through the pair now and then."""

    def __init__(self, training: TrainingPlan, model: HostModel, progress: NodeProgress):
        self.training, self.model, self.progress = training, model, progress
        self.noise = model.noise_of(1, training.plan.settings.seed + _PREVIEW_SEED)
        self.painted_at = self.steps_trained = 0
        self.training_began = self.training_seconds = 0.0

    def stage(self, name: str, total: int) -> None:
        self.progress.stage(name, total)
        if name == "training":
            self.training_began = time.monotonic()

    def tick(self, count: int) -> None:
        self.progress.tick(count)

    def pause(self, count: int) -> None:
        self.progress.pause(count)

    def trained(self, step: TrainedStep) -> None:
        done = step.step + (step.steps if step.part == FAST else 0)
        picture, every = None, self.training.preview_every
        if every and done - self.painted_at >= every:
            self.painted_at = done
            picture = self.paint(Outcome(step.factors(), History(), step.solver()))
        self.steps_trained += 1
        self.training_seconds = time.monotonic() - self.training_began
        self.progress.show(done, f"{step.part} {step.step}/{step.steps}, loss {step.loss:.4g}", picture)

    def paint(self, outcome: Outcome) -> Preview | None:
        """Return a picture through the pair as it is."""
        start = distill.StartNoise(self.noise)
        latent = distill.sample_pair(self.training.plan, self.model, outcome, start, self.progress.pause)
        return preview(self.training.model, first_part(latent, self.training.latents))


def train(training: TrainingPlan, progress: NodeProgress) -> TrainingResult:
    """Train both adapters and write the pair. An interrupt keeps what is needed to continue."""
    started, plan = time.monotonic(), training.plan

    def work(conditioned: Conditioned, latents: torch.Tensor) -> _Worked:
        left_out = _unreached(training, HostModel(training, conditioned, latents))
        reached = training.without(left_out)
        model = HostModel(reached, conditioned, latents)
        observer = TrainingObserver(reached, model, progress)
        found = distill.distill(plan, model, observer, training.run_dir)
        speed = observer.steps_trained / max(observer.training_seconds, 1e-9)
        return _Worked(reached, found, speed, _last_picture(reached, observer, found.kept), left_out)

    with training.run_dir.alone():
        worked = with_loaded_model(_inputs(training), work)
        found, reached = worked.found, worked.training
        kept_in = reached.files(training.run_dir.folder, training.name)
        everything = distill.write_all(plan, found, kept_in)
        comparison = found.ablation.comparison if found.ablation else None
        files = distill.write_kept(plan, found, reached.files(training.folder, training.name), comparison)
        training.run_dir.remove()  # before the pictures: a kill from here on costs no more than them
    pictures = _write_previews(files, worked.picture)
    seconds = time.monotonic() - started
    return TrainingResult(files, everything, found, seconds, worked.speed, pictures, worked.left_out)


@dataclass(frozen=True)
class _Worked:
    """What a run made while the model was loaded.

    training: what was trained. speed: training steps per second. left_out: chosen layers that were not trained.
    """

    training: TrainingPlan
    found: distill.Distilled
    speed: float
    picture: Image.Image | None
    left_out: tuple[str, ...]


def _unreached(training: TrainingPlan, model: HostModel) -> tuple[str, ...]:
    """Try the teacher and one step of training. Return the layers to leave out: those that no gradient reaches.

    Raises:
        TrainingError: if the user's own pattern chose them.
    """
    plan = training.plan
    noise, student = model.noise_of(1, plan.settings.seed), model.student(plan.train_cfg)
    try_model(model.velocity, plan.teacher_cfg, noise, plan.sigmas)
    unreached = preflight(student, noise, plan.sigmas[0], torch.tensor([0]))
    if unreached:
        reachable = reachable_slots(student, unreached, noise, _calls(training))
        unreached = tuple(name for name in unreached if name not in reachable)
    if not unreached:
        return ()
    count, total, first = len(unreached), len(training.slots), unreached[0]
    if training.pattern is not None:
        raise TrainingError(
            f"targets {training.pattern[:60]!r} finds {total} layers, but no gradient reaches {count} of them, for "
            f"example {first}; write a pattern without them, or choose attention"
        )
    log.warning(
        "Glance: no gradient reaches %d of the %d chosen layers, for example %s; they are left out", count, total, first
    )
    return unreached


def _calls(training: TrainingPlan) -> list[Call]:
    """Return noise levels and prompts with which a model may call other layers; first those of the trial step."""
    plan, of_kind = training.plan, dict[tuple[str, ...], int]()
    for row, (_, values) in enumerate(training.positive[: training.prompts]):
        of_kind.setdefault(tuple(sorted(values)), row)  # some prompts have a reference picture, some have none
    sigmas = plan.schedule.sigmas
    others = [(sigma, 0) for sigma in (sigmas[plan.schedule.slow_steps], sigmas[-2])]
    return [(plan.sigmas[0], row) for row in of_kind.values()] + others


def _inputs(training: TrainingPlan) -> TrainingInputs:
    return TrainingInputs(
        training.model,
        training.positive,
        training.negative,
        training.latents,
        training.plan.settings.seed,
        training.offload,
        training.room(),
        training.mask,
    )


def _last_picture(training: TrainingPlan, observer: TrainingObserver, outcome: Outcome) -> Image.Image | None:
    """Show and return a picture through the pair as it will be written."""
    picture = observer.paint(outcome) if training.preview_every else None
    if picture is None:
        return None
    observer.progress.show(observer.progress.done, "", picture)
    return picture[1]


def _write_previews(files: tuple[Path, Path], picture: Image.Image | None) -> tuple[str, ...]:
    """Write the picture beside each file, where managers look for it. A failure here does not cost the pair."""
    if picture is None:
        return ()
    content = io.BytesIO()
    picture.convert("RGB").save(content, "PNG")
    lines = []
    for file in files:
        try:
            lines.append(str(write_preview(file, content.getvalue())))
        except AdapterError as error:
            lines.append(f"no preview picture beside {file.name}: {error}")
    return tuple(lines)
