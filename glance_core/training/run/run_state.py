"""What a training run has reached, and how it is kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import TrainingError
from ...lora.factors import Factor
from ...lora.slots import Slot
from ...sampling.solver import Solver
from ..history import History
from .checkpoint import as_json, finished_factors, load_run, save_run, valid_checkpoint

_DONE = "done/"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run is kept. identity: what besides its settings must be the same to resume it."""

    path: Path
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Interrupted:
    """The part that was in training when the run stopped, with its tensors and facts."""

    part: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass
class RunState:
    """What a run has reached. done: finished parts. factors: by phase and slot."""

    history: History = field(default_factory=History)
    done: list[str] = field(default_factory=list)
    factors: dict[str, dict[str, Factor]] = field(default_factory=dict)
    solver: Solver | None = None
    interrupted: Interrupted | None = None


@dataclass(frozen=True)
class PartAt:
    """Where a part stands: its step, and what its own trainer needs to continue."""

    part: str
    step: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class RunKeeper:
    """Saves a run's state, and reads it again. Without a path it keeps nothing."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any]):
        self.path, self.identity = path, as_json(identity)

    @property
    def saved(self) -> bool:
        """Whether there is a checkpoint on disk."""
        return self.path is not None and self.path.exists()

    def save_state(self, state: RunState, at: PartAt) -> None:
        """Replace the checkpoint."""
        if self.path is None:
            return
        done = {
            f"{_DONE}{phase}/{slot}.{which}": value
            for phase, factors in state.factors.items()
            for slot, factor in factors.items()
            for which, value in (("A", factor.down), ("B", factor.up))
        }
        facts = {
            "identity": self.identity,
            "part": at.part,
            "step": at.step,
            "scales": {
                phase: {slot: factor.scale for slot, factor in factors.items()}
                for phase, factors in state.factors.items()
            },
            "done": state.done,
            "solver": state.solver.dumps() if state.solver else None,
            **at.facts,
        }
        save_run(self.path, {**at.tensors, **done, **state.history.tensors()}, facts)

    def load(self, slots: Mapping[str, Slot], phases_of: Mapping[str, Iterable[str]]) -> RunState:
        """Return the saved state, or a new one if nothing was saved.

        Args:
            phases_of: the run's parts, and the phases that each trains.

        Raises:
            TrainingError: for a checkpoint of another run, or a damaged one.
        """
        if self.path is None or not self.path.exists():
            return RunState()
        tensors, facts = load_run(self.path)
        with valid_checkpoint(self.path):
            self._check(facts["identity"])
            factors = {
                phase: finished_factors(tensors, scales, slots, f"{_DONE}{phase}/")
                for phase, scales in facts["scales"].items()
            }
            done = [part for part in facts["done"] if part in phases_of]
            solver = Solver.loads(facts["solver"]) if facts.get("solver") else None
            if any(phase not in factors for part in done for phase in phases_of[part]):
                raise ValueError("a finished phase is missing")
            unfinished = facts["part"] not in done
            interrupted = Interrupted(facts["part"], tensors, facts) if unfinished else None
            return RunState(History.of(tensors), done, factors, solver, interrupted)
        raise AssertionError("unreachable")

    def _check(self, identity: Mapping[str, Any]) -> None:
        assert self.path is not None
        for key in sorted(self.identity.keys() | identity.keys()):
            ours, saved = self.identity.get(key), identity.get(key)
            if ours != saved:
                raise TrainingError(
                    f"{self.path.name} holds a run with {key} {_short(saved)}, but this run has {_short(ours)}; "
                    "set it back to resume, or choose another name or switch resume off"
                )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
