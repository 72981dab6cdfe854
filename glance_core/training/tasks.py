"""The interface of a training task, and the task that trains one phase's adapter on single steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..lora.factors import Factor
from ..sampling.solver import Solver
from .autograd.inplace import InplaceTracker
from .batches import Batch
from .lora_layers import LoraLayers, LoraSettings
from .objectives import SingleStepObjective
from .run.checkpoint import check_tensor
from .student import Differentiable, Scaled, Student, training_forwards


@dataclass(frozen=True)
class BatchLosses:
    """The losses of a batch and the steps they belong to. target_power: mean square of its targets."""

    steps: Tensor
    losses: Tensor
    target_power: float


class TrainingTask(Protocol):
    """What is trained at a time. steps: its places in the student's sigmas. losses_per_example: how many."""

    steps: range
    losses_per_example: int

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]: ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters themselves by name."""
        ...

    def factors(self) -> dict[str, dict[str, Factor]]: ...

    def solver(self) -> Solver | None: ...

    def backward(self, batch: Batch, generator: torch.Generator, scaled: Scaled) -> BatchLosses:
        """Add the gradient of the scaled mean loss to the parameters'."""
        ...


@dataclass(frozen=True)
class PhasePart:
    """What SingleStepTask trains: a phase, and the places of its steps in the objective's sigmas."""

    phase: str
    steps: range
    seed: int


class SingleStepTask:
    """One phase's adapter on single steps, each from a state that the objective draws."""

    losses_per_example = 1

    def __init__(
        self,
        student: Student,
        objective: SingleStepObjective,
        part: PhasePart,
        lora: LoraSettings,
        tracker: InplaceTracker,
    ):
        self.objective, self.phase, self.steps = objective, part.phase, part.steps
        self.layers = LoraLayers(student.slots, lora, part.phase, part.seed, student.device)
        self.differentiable = Differentiable(student, training_forwards(student, self.layers), tracker)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": self.layers.parameters(), "highest": learning_rate}]

    def tensors(self) -> dict[str, Tensor]:
        return self.layers.tensors()

    def factors(self) -> dict[str, dict[str, Factor]]:
        return {self.phase: self.layers.factors()}

    def solver(self) -> Solver | None:
        return None

    def backward(self, batch: Batch, generator: torch.Generator, scaled: Scaled) -> BatchLosses:
        drawn = self.objective.draw(batch.steps, batch.rows, generator)
        found = self.differentiable.backward(drawn, batch.prompt_rows, scaled)
        return BatchLosses(batch.steps, found, float(drawn.target.float().square().mean()))


def load_task(task: TrainingTask, tensors: Mapping[str, Tensor]) -> None:
    """Take the values of another task's `tensors()`. Raises LookupError or ValueError if they do not fit."""
    for name, tensor in task.tensors().items():
        check_tensor(name, tensors[name], tensor.shape)
        tensor.copy_(tensors[name])
