"""Train a Slow and a Fast adapter for the tiny model, towards the teacher's own trajectories, and write them as a pair."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..adapter_metadata import Trained
from ..errors import AdapterError
from ..lora_file import Factor
from ..lora_write import write_adapter
from ..objectives import Trajectories, rollout
from ..progress import Progress
from ..schedule import FAST, SLOW, Split, build_schedule
from ..training import TrainingSettings, train_pair
from . import BASE, GUIDANCE, LADDER, teacher_sigmas
from .methods import GLANCE, GLANCE_GUIDANCE, model_hash
from .painting import Painter, draw_prompts

_ENDS = (f"_{SLOW}.safetensors", f"_{FAST}.safetensors")
TARGETS = r"(double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear[12])"


@dataclass(frozen=True)
class PairSettings:
    """prompts: how many of the training world the teacher paints; steps: of each phase; guidance: the student's own."""

    steps: int = 120
    prompts: int = 64
    noises: int = 1
    split: Split = GLANCE
    rank: int = 16
    learning_rate: float = 2e-3
    batch: int = 8
    guidance: float = GLANCE_GUIDANCE
    seed: int = 0


def train(painter: Painter, settings: PairSettings) -> dict[str, dict[str, Factor]]:
    """Factors by phase and module. The teacher walks its 50 steps for each prompt; then each phase learns its secants."""
    prompts = draw_prompts(settings.prompts, 10_000 + settings.seed, "seen")
    slots = prompts.slots.repeat(settings.noises, 1)
    generator = torch.Generator().manual_seed(20_000 + settings.seed)
    noise = torch.randn((len(slots), *prompts.noise.shape[1:]), generator=generator)
    ladder = teacher_sigmas()
    with Progress("teacher", len(slots) * (len(ladder) - 1)) as bar:
        data: Trajectories = rollout(
            painter.velocity(slots, GUIDANCE), noise, ladder, settings.split.steps, tick=lambda count: bar.step(count=count)
        )
    training = TrainingSettings(
        TARGETS, settings.steps, settings.batch, settings.rank, settings.rank, settings.learning_rate, seed=settings.seed
    )
    with Progress("training", 2 * settings.steps) as bar:
        return train_pair(
            painter.model, painter.velocity(slots, settings.guidance), data, len(settings.split.slow), training,
            lambda phase, step, loss: bar.step(f"{phase} loss {loss:.4f}"),
        )  # fmt: skip


def write(
    factors: Mapping[str, Mapping[str, Factor]], settings: PairSettings, folder: Path, name: str = "glance_tiny"
) -> tuple[Path, Path]:
    """Two new files `<name>_slow` and `<name>_fast`, with -2, -3, ... where these or a picture have the names. Raises AdapterError."""
    new_folder(folder)
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    free = next(name for name in names if not any((folder / f"{name}{end}").exists() for end in (*_ENDS, ".png")))
    files = [folder / f"{free}{end}" for end in _ENDS]
    walked = build_schedule(teacher_sigmas(), settings.split)
    stated = {**asdict(settings), "split": str(settings.split), "model": model_hash()}
    common = Trained(
        base=BASE, ladder=LADDER, teacher_steps=settings.split.teacher_steps, steps=str(settings.split), objective="trajectory",
        guidance=settings.guidance, seed=settings.seed, pair=hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:16],
    )  # fmt: skip
    sigmas = {SLOW: walked.sigmas[: walked.slow_steps], FAST: walked.sigmas[walked.slow_steps : -1]}
    for phase, file, partner in zip((SLOW, FAST), files, files[::-1], strict=True):
        write_adapter(file, factors[phase], replace(common, phase=phase, sigmas=sigmas[phase], partner=partner.name))
    return files[0], files[1]


def new_folder(folder: Path) -> None:
    """Make the folder and see that files can be made in it. Raises AdapterError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be written into ({error.strerror}); choose another folder") from error
