"""Train a Slow and a Fast adapter on one frozen model.

Phases are trained one after the other, or both at once on a rollout objective. A run is seeded, and bit-identical on a
CPU, also if it was stopped at any step and resumed from its checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ..errors import TrainingError
from ..lora.factors import Factor
from ..lora.slots import Slot
from ..sampling.solver import Solver
from ..schedule.split import FAST, SLOW
from .autograd.inplace import InplaceTracker
from .history import History
from .lora_layers import frozen
from .objectives import SingleStepObjective
from .part_trainer import PartTrainer, Report, RunContext
from .rollout_task import RolloutData, RolloutTask
from .run.run_state import Checkpoint, RunKeeper
from .settings import TrainingSettings
from .student import Student
from .tasks import PhasePart, SingleStepTask, TrainingTask

PHASES = (SLOW, FAST)
ROLLOUT = "rollout"  # the part of a run that trains both phases at once
_SEEDS_APART = 1_000_003

TrainingData = SingleStepObjective | RolloutData


@dataclass(frozen=True)
class Outcome:
    """What a training run gave: factors by phase and slot, its losses, and the solver if one was trained."""

    factors: dict[str, dict[str, Factor]]
    history: History
    solver: Solver | None = None

    @property
    def has_effect(self) -> bool:
        """Whether any adapter changes the model."""
        return any(bool(factor.up.any()) for factors in self.factors.values() for factor in factors.values())


def train_pair(
    student: Student,
    data: TrainingData,
    slow_steps: int,
    settings: TrainingSettings,
    report: Report | None = None,
    checkpoint: Checkpoint | None = None,
) -> Outcome:
    """Train both adapters.

    Slow learns the first `slow_steps` of the data's sigmas and Fast the others, every step and every row equally often.
    On RolloutData both learn at once, and the student's velocity is the one without guidance.

    Args:
        report: runs after every step, with no branch on the model.
        checkpoint: where the run is kept. Whatever ends it early, an interrupt or an exception in report or model, the
            steps until then are kept, and the next call continues from there.

    Raises:
        TrainingError: for settings that leave a phase empty, a checkpoint of another run, and a loss that is not a
            number or diverges.
    """
    steps = _step_count(data)
    if not 0 < slow_steps < steps:
        raise TrainingError(
            f"slow_steps is {slow_steps} of {steps}, so a phase has nothing to train; choose 1 to {steps - 1}"
        )
    parts = _parts(student, data, slow_steps, settings)
    identity = _identity(student, data, settings) | {
        "slow_steps": slow_steps,
        **(checkpoint.identity if checkpoint else {}),
    }
    keeper = RunKeeper(checkpoint.path if checkpoint else None, identity)
    state = keeper.load(student.slots, {name: PHASES if name == ROLLOUT else (name,) for name in parts})
    _check_solver(state.solver, data, keeper)
    context = RunContext(student, settings, keeper, state, report)
    with frozen(student.model):
        for name, make_task in parts.items():
            if name not in state.done:
                PartTrainer(name, make_task(), data.rows, context).run()
    return Outcome(state.factors, state.history, state.solver)


def _step_count(data: TrainingData) -> int:
    return len(data.sigmas) - 1 if isinstance(data, RolloutData) else len(data.sigmas)


def _parts(
    student: Student, data: TrainingData, slow_steps: int, settings: TrainingSettings
) -> Mapping[str, Callable[[], TrainingTask]]:
    """Return what is trained one after the other, by name."""
    lora, tracker = settings.lora, InplaceTracker()
    seeds = [(settings.seed + _SEEDS_APART * number) % 2**63 for number in range(len(PHASES))]
    if isinstance(data, RolloutData):
        return {ROLLOUT: partial(RolloutTask, student, data, slow_steps, lora, seeds, tracker)}
    steps = (range(slow_steps), range(slow_steps, len(data.sigmas)))
    phases = [PhasePart(*part) for part in zip(PHASES, steps, seeds, strict=True)]
    return {part.phase: partial(SingleStepTask, student, data, part, lora, tracker) for part in phases}


def _identity(student: Student, data: TrainingData, settings: TrainingSettings) -> dict[str, Any]:
    """Return what a resumed run must share, as far as the trainer knows it."""
    own = {key: value for key, value in asdict(settings).items() if key not in ("save_every", "lora")}
    return {
        **own,
        **asdict(settings.lora),
        "targets": _slots_hash(student.slots),
        "rows": data.rows,
        "student_steps": _step_count(data),
        "rollout": data.describe() if isinstance(data, RolloutData) else None,
    }


def _slots_hash(slots: Mapping[str, Slot]) -> str:
    lines = [f"{name} {slot.module} {slot.start} {slot.outside} {slot.inside}" for name, slot in sorted(slots.items())]
    return f"{len(lines)} layers, {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:8]}"


def _check_solver(solver: Solver | None, data: TrainingData, keeper: RunKeeper) -> None:
    if solver and keeper.path and isinstance(data, RolloutData) and solver.steps != _step_count(data):
        raise TrainingError(
            f"{keeper.path.name} is not a checkpoint of this version (its solver has {solver.steps} steps); delete it, "
            "or train under another name"
        )
