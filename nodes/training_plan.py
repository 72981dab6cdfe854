"""What a training in the host is to do, with nothing left to be looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..glance_core.lora_layers import Slot
from ..glance_core.objectives import ADAPTERS, BOTH, FLOW, FOLD, SOLVER, WALKED
from ..glance_core.parts import sets_of
from ..glance_core.run_files import RunFiles
from ..glance_core.schedule import FAST, SLOW, PhaseSchedule, Split
from ..glance_core.solver import Solver, guided
from ..glance_core.training import TrainingSettings
from . import host


@dataclass(frozen=True)
class Plan:
    """What is trained and how, with nothing left to be looked up. prompts: how many of `positive` are trained on, the rest is for the check;
    runs: rollouts of the teacher; cfg: the teacher's guidance; keep: where the unfinished run lives; settings_solver: a calibration's;
    keep_everything: also those parts that do not help."""

    model: Any
    positive: list[Any]
    negative: list[Any]
    latents: torch.Tensor
    prompts: int
    objective: str
    slots: Mapping[str, Slot]
    split: Split
    kind: str
    ladder: tuple[float, ...]
    walked: PhaseSchedule
    cfg: float
    runs: int
    checks: int
    checkpointing: bool
    offload: str
    preview_every: int
    settings: TrainingSettings
    folder: Path
    name: str
    keep: RunFiles
    settings_solver: Solver | None = None
    keep_everything: bool = False
    learn: str = BOTH

    @property
    def student_cfg(self) -> float:
        """The guidance that the pair is sampled with, where no solver has its own."""
        return 1.0 if self.objective.endswith(FOLD) else self.cfg

    @property
    def walks(self) -> bool:
        """Whether both phases learn at once, on the student's own walks."""
        return self.objective in WALKED

    @cached_property
    def start(self) -> Solver | None:
        """What the student's walks begin with: the settings' solver, else Euler under its guidance."""
        if not self.walks:
            return None
        if self.settings_solver is not None and bool(self.settings_solver.free) == (self.student_cfg != 1):
            return self.settings_solver
        return guided(self.walked.sigmas, self.student_cfg)

    @property
    def training_work(self) -> int:
        """Training steps."""
        return self.settings.steps * (1 if self.walks else 2)

    @property
    def teacher_work(self) -> int:
        """Steps of the teacher to learn from."""
        return 0 if self.objective == FLOW else self.runs * (len(self.ladder) - 1)

    @property
    def check_work(self) -> int:
        """Steps of the teacher, and of the base with each set of parts, in the comparison at the end."""
        parts = (SLOW, FAST, SOLVER) if self.walks and self.learn != ADAPTERS else (SLOW, FAST)
        sets = sets_of(parts, self.keep_everything)
        return self.checks * (len(self.ladder) - 1 + len(sets) * self.walked.steps)

    @property
    def work(self) -> int:
        """Everything that the node's bar counts."""
        return self.teacher_work + self.training_work + self.check_work

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a run that is taken up again must share."""
        return {
            "model": host.fingerprint(self.model), "data": hash_of([self.positive, self.negative, self.latents]), "objective": self.objective,
            "schedule": self.kind, "teacher_steps": str(self.split), "sigmas": list(self.walked.sigmas), "cfg": self.cfg, "runs": self.runs, "solver": self.start.dumps() if self.start else None,
            "targets": hashlib.sha256("\n".join(self.slots).encode()).hexdigest()[:16],
        }  # fmt: skip


def hash_of(value: Any) -> str:
    """Of nested lists and dictionaries of tensors and plain values."""
    digest = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype}{tuple(item.shape)}".encode())
            digest.update(item.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if item.numel() else b"")
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                digest.update(str(key).encode())
                add(item[key])
        elif isinstance(item, (list, tuple)):
            for inner in item:
                add(inner)
        elif isinstance(item, (str, int, float, bool, type(None))):
            digest.update(repr(item).encode())

    add(value)
    return digest.hexdigest()[:32]
