"""What is in training at a time: one phase's adapter on single steps, or both adapters and the solver on whole walks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .checkpoint import refuse_unlike
from .draws import Draws
from .errors import TrainingError
from .frozen import forwards
from .lora_file import Factor
from .lora_layers import Lora, LoraLayers
from .objectives import ADAPTERS, BOTH, LEARN, SOLVER, Objective, RowVelocity, both
from .recompute import recomputed
from .saved import Saves
from .schedule import FAST, SLOW, PhaseSchedule
from .solver import Solver, fitted, in_batches
from .student import Student, backward, changed_forwards

Scaled = Callable[[Tensor], Tensor]
SOLVER_RATE = 3.0  # times the factors' learning rate, for the solver's numbers
FITTED_ROWS, RIDGE = 64, 0.01  # of the closed fit that training begins with
FLOOR = 1e-3  # of a result's mean square, below which an error counts little more: 30 dB under the signal


class Trainee(Protocol):
    """points: of the ladder, which its losses are told for; losses: how many of them an example gives. tensors() are the parameters
    themselves, by name."""

    points: range
    losses: int

    def groups(self, learning_rate: float) -> list[dict[str, Any]]: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def factors(self) -> dict[str, dict[str, Factor]]: ...

    def solver(self) -> Solver | None: ...

    def backward(self, draws: Draws, scaled: Scaled) -> tuple[Tensor, Tensor, float]:
        """Points and losses of one batch, and the mean square of its targets; the gradient of the scaled mean is added up."""
        ...


class PhaseTrainee:
    """One phase's adapter on single steps, each from a state of the teacher's."""

    losses = 1

    def __init__(self, student: Student, objective: Objective, phase: str, points: range, lora: Lora, seed: int, saves: Saves):
        self.student, self.objective, self.phase, self.points, self.saves = student, objective, phase, points, saves
        self.layers = LoraLayers(student.slots, lora, phase, seed, student.device)
        self.changed = changed_forwards(student, self.layers)

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": self.layers.parameters(), "highest": learning_rate}]

    def tensors(self) -> dict[str, Tensor]:
        return self.layers.tensors()

    def factors(self) -> dict[str, dict[str, Factor]]:
        return {self.phase: self.layers.factors()}

    def solver(self) -> Solver | None:
        return None

    def backward(self, draws: Draws, scaled: Scaled) -> tuple[Tensor, Tensor, float]:
        at, rows, shown = draws.next()
        drawn = self.objective.draw(at, rows, draws.generator)
        loss = backward(self.student, self.changed, drawn, shown, self.saves, scaled)
        return at, loss, float(drawn[2].float().square().mean())


@dataclass(frozen=True)
class Walks:
    """The teacher's walks from `noise` (rows, ...): `targets` (n, rows, ...) are its states after each of the n steps of the ladder
    `sigmas` (n + 1). solver: where the student's begins. learn: the adapters, the solver's numbers, or both;
    given: what the solver was before it was fitted.

    end_to_end: the gradient runs through all steps, towards the last target: it keeps the activations of the whole walk. Else aimed: each
    step by itself, from where the student's own steps have led, towards the teacher's state after it, in the memory of one step.
    """

    noise: Tensor
    targets: Tensor
    sigmas: tuple[float, ...]
    solver: Solver
    end_to_end: bool = True
    learn: str = BOTH
    given: Solver | None = None

    def __post_init__(self) -> None:
        if self.learn not in LEARN:
            raise TrainingError(f"learn is {self.learn!r}; choose one of {', '.join(LEARN)}")

    @property
    def points(self) -> tuple[float, ...]:
        return self.sigmas[:-1]

    @property
    def rows(self) -> int:
        return len(self.noise)

    def begun(self, velocity: RowVelocity, batch: int, tick: Callable[[int], None] | None = None) -> Walks:
        """The same, from a solver fitted by least squares on some of the rows, where the solver is learned: a start that is worth some
        fifty steps of training on the embedded model (docs/RESEARCH.md). velocity: the base's, without guidance."""
        if self.learn == ADAPTERS:
            return self
        rows = torch.arange(min(self.rows, FITTED_ROWS))
        velocities = in_batches(velocity, rows, batch, tick)
        solver, _ = fitted(self.solver, self.sigmas, velocities, self.noise[rows], list(self.targets[:, rows]), RIDGE)
        return replace(self, solver=solver, given=self.solver)

    def describe(self) -> dict[str, Any]:
        """What a run that is taken up again must share, beside the teacher's walks."""
        return {"solver": (self.given or self.solver).dumps(), "end_to_end": self.end_to_end, "learn": self.learn}  # fmt: skip


class WalkTrainee:
    """Both adapters, and the solver's numbers, on the student's own walks."""

    def __init__(self, student: Student, walks: Walks, slow_steps: int, lora: Lora, seeds: Sequence[int], saves: Saves):
        if walks.end_to_end and student.blocks is not None:
            raise TrainingError("end to end keeps the activations of all steps; switch gradient_checkpointing off, or train aimed")
        self.student, self.walks, self.slow_steps, self.saves = student, walks, slow_steps, saves
        self.points = range(len(walks.points))
        self.losses = len(self.points)
        self.layers = {
            phase: LoraLayers(student.slots, lora, phase, seed, student.device) for phase, seed in zip((SLOW, FAST), seeds, strict=True)
        }
        self.changed = {phase: changed_forwards(student, layers) if walks.learn != SOLVER else {} for phase, layers in self.layers.items()}
        self.numbers = Numbers(walks.solver, PhaseSchedule(walks.sigmas, slow_steps), student.device)
        self.velocities = both(student.velocity)

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        if self.walks.learn != SOLVER:
            made.append({"params": [p for each in self.layers.values() for p in each.parameters()], "highest": learning_rate})
        if self.walks.learn != ADAPTERS:
            made.append({"params": list(self.numbers.parameters()), "highest": SOLVER_RATE * learning_rate, "weight_decay": 0.0})
        return made

    def tensors(self) -> dict[str, Tensor]:
        found = {f"{phase}/{name}": tensor for phase, each in self.layers.items() for name, tensor in each.tensors().items()}
        return {**found, **{f"solver/{name}": p.detach() for name, p in self.numbers.named_parameters()}}

    def factors(self) -> dict[str, dict[str, Factor]]:
        return {phase: each.factors() for phase, each in self.layers.items()}

    def solver(self) -> Solver | None:
        return self.numbers.solver() if self.walks.learn != ADAPTERS else self.walks.solver

    def backward(self, draws: Draws, scaled: Scaled) -> tuple[Tensor, Tensor, float]:
        _, rows, shown = draws.next()
        device = self.walks.noise.device
        x, targets = self.walks.noise[rows.to(device)], self.walks.targets[:, rows.to(device)]
        with torch.enable_grad():
            errors = (self._end_to_end if self.walks.end_to_end else self._aimed)(x, targets, shown, scaled)
        return torch.tensor(self.points).repeat_interleave(len(rows)), errors.flatten().cpu(), float(targets[-1].float().square().mean())

    def _end_to_end(self, x: Tensor, targets: Tensor, shown: Tensor, scaled: Scaled) -> Tensor:
        def forward() -> list[Tensor]:
            states, cond, free = [x], [], []
            for i in self.points:
                with forwards(self.changed[self._phase(i)]):
                    one, other = self._velocity(i, states[-1], shown)
                cond.append(one)
                free.append(other)
                states.append(self.numbers.step(i, self._width(i), states[-1], cond, free))
            return states[1:]

        states = self.saves.run("walk", forward)
        floor = FLOOR * targets[-1].float().square().mean()
        torch.autograd.backward(scaled(torch.log(_error(states[-1], targets[-1]) + floor).mean()))
        return torch.stack([_error(state, target) for state, target in zip(states, targets, strict=True)]).detach()

    def _aimed(self, x: Tensor, targets: Tensor, shown: Tensor, scaled: Scaled) -> Tensor:
        cond: list[Tensor] = []
        free: list[Tensor | None] = []
        errors = []
        for i in self.points:
            phase, width = self._phase(i), self._width(i)

            def forward(i: int = i, x: Tensor = x) -> tuple[Tensor, Tensor | None]:
                return self._velocity(i, x, shown)

            with forwards(self.changed[phase]), recomputed(self.student.blocks, self.student.name, self.saves) as check:
                one, other = self.saves.run(phase, forward)
                check()
                after = self._one_step(i, width, x, [*cond, one], [*free, other], targets[i], scaled)
            errors.append(_error(after, targets[i]))
            cond.append(one.detach())
            free.append(None if other is None else other.detach())
            x = after
        return torch.stack(errors)

    def _one_step(
        self, i: int, width: float, x: Tensor, cond: Sequence[Tensor], free: Sequence[Tensor | None], target: Tensor, scaled: Scaled
    ) -> Tensor:
        """The state after step i, without a graph; the gradient of its error as a velocity, shared among the steps, is added up."""
        after = self.numbers.step(i, width, x, cond, free)
        torch.autograd.backward(scaled(_error(after, target).mean() / width**2 / len(self.points)))
        return after.detach()

    def _velocity(self, i: int, x: Tensor, shown: Tensor) -> tuple[Tensor, Tensor | None]:
        told = self.numbers.told_at(i)
        if not self.walks.end_to_end:
            told = told.detach()  # blocks that are run again may take what comes of it in ways that lose a gradient
        at = (told * self.walks.sigmas[i]).expand(len(x))
        return self.velocities(x.clone(), at, shown, self.walks.solver.guides[i])  # a model may write into its input

    def _phase(self, i: int) -> str:
        return SLOW if i < self.slow_steps else FAST

    def _width(self, i: int) -> float:
        return self.walks.sigmas[i + 1] - self.walks.sigmas[i]


class Numbers(nn.Module):
    """A solver's numbers as parameters: told (n), keep (n), cond and free (n, n), of which the lower triangles count. What the model is told
    stays on its side of the boundary between the phases, by which a host knows which of them is to answer."""

    told: nn.Parameter
    keep: nn.Parameter
    cond: nn.Parameter
    free: nn.Parameter

    def __init__(self, start: Solver, walked: PhaseSchedule, device: torch.device):
        super().__init__()
        self.steps = start.steps
        above = 1.001 * walked.threshold
        self.bounds = [
            (max(0.8, above / sigma), min(1.25, max(walked.sigmas[0] / sigma, 1.0)))
            if i < walked.slow_steps
            else (0.8, min(1.25, walked.boundary / sigma))
            for i, sigma in enumerate(walked.sigmas[:-1])
        ]
        rows = {
            "told": torch.tensor(start.told),
            "keep": torch.tensor(start.keep),
            "cond": self._square(start.cond),
            "free": self._square(start.free),
        }
        for name, value in rows.items():
            self.register_parameter(name, nn.Parameter(value.to(device)))
        self.guided = bool(start.free)

    def told_at(self, i: int) -> Tensor:
        return self.told[i].clamp(*self.bounds[i])

    def step(self, i: int, width: float, x: Tensor, cond: Sequence[Tensor], free: Sequence[Tensor | None]) -> Tensor:
        """As Solver.step."""
        out = x * self.keep[i]
        for j in range(i + 1):
            out = out + cond[j] * (width * self.cond[i, j])
            other = free[j]
            if other is not None:
                out = out + other * (width * self.free[i, j])
        return out

    def solver(self) -> Solver:
        def rows(square: Tensor) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(square[i, : i + 1].tolist()) for i in range(self.steps))

        told = tuple(float(self.told_at(i).detach()) for i in range(self.steps))
        return Solver(told, tuple(self.keep.tolist()), rows(self.cond), rows(self.free) if self.guided else ())

    def _square(self, rows: Sequence[Sequence[float]]) -> Tensor:
        square = torch.zeros(self.steps, self.steps)
        for i, row in enumerate(rows):
            square[i, : len(row)] = torch.tensor(row)
        return square


def _error(state: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance (B,), in fp32 at least."""
    at_least = torch.promote_types(state.dtype, torch.float32)
    return (state.to(at_least) - target.to(at_least)).square().flatten(1).mean(1)


def load(trainee: Trainee, tensors: Mapping[str, Tensor]) -> None:
    """Take the values of another trainee's `tensors()`. Raises LookupError or ValueError where they are none."""
    for name, tensor in trainee.tensors().items():
        refuse_unlike(name, tensors[name], tensor.shape)
        tensor.copy_(tensors[name])
