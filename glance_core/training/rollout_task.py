"""Train both adapters and the solver's coefficients on whole sampling runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..lora.factors import Factor
from ..sampling.rollout import TeacherTrajectory
from ..sampling.solver import Solver
from ..sampling.solver_fit import fit_solver
from ..sampling.velocity import RowVelocity, Tick, in_batches, with_and_without_prompt
from ..schedule.phase_schedule import PhaseSchedule
from ..schedule.split import FAST, SLOW
from .autograd.checkpointing import checkpointed
from .autograd.forward_patches import patched_forwards
from .autograd.inplace import InplaceTracker
from .batches import Batch
from .learnable_solver import LearnableSolver
from .lora_layers import LoraLayers, LoraSettings
from .objectives import Learn, check_activations, check_learn
from .student import Scaled, Student, training_forwards
from .tasks import BatchLosses

SOLVER_RATE = 3.0  # times the LoRAs' learning rate, for the solver's coefficients
FIT_ROWS, RIDGE = 64, 0.01  # of the closed-form fit that training begins with
LOSS_FLOOR = 1e-3  # of a result's mean square; an error below it (30 dB under the signal) counts little more


@dataclass(frozen=True)
class RolloutData:
    """The teacher's trajectory at the student's sigmas, and the solver that the student starts with.

    end_to_end: the gradient runs through all steps towards the last state, and keeps the activations of the whole run.
    Otherwise each step by itself is trained from where the student's own steps lead, in the memory of one step.
    learn: the adapters, the solver's coefficients, or both. unfitted: the solver before it was fitted.
    """

    noise: Tensor
    targets: Tensor
    sigmas: tuple[float, ...]
    solver: Solver
    end_to_end: bool = True
    learn: str = Learn.BOTH
    unfitted: Solver | None = None

    def __post_init__(self) -> None:
        check_learn(self.learn)

    @classmethod
    def of(
        cls,
        trajectory: TeacherTrajectory,
        sigmas: tuple[float, ...],
        solver: Solver,
        end_to_end: bool = True,
        learn: str = Learn.BOTH,
    ) -> RolloutData:
        """Use the first state (rows, ...) as noise and the later ones (n, rows, ...) as targets."""
        return cls(trajectory.states[0], trajectory.states[1:], sigmas, solver, end_to_end, learn)

    @property
    def rows(self) -> int:
        """How many runs of the teacher there are."""
        return len(self.noise)

    def with_fitted_solver(self, velocity: RowVelocity, batch: int, tick: Tick | None = None) -> RolloutData:
        """Return the same with a solver fitted by least squares on some rows, if the solver is learned.

        This start was worth some fifty steps of training (docs/RESEARCH.md).

        Args:
            velocity: the base's, without guidance.
        """
        if self.learn == Learn.ADAPTERS:
            return self
        rows = torch.arange(min(self.rows, FIT_ROWS))
        velocities = in_batches(velocity, rows, batch, tick)
        targets = list(self.targets[:, rows])
        solver, _ = fit_solver(self.solver, self.sigmas, velocities, self.noise[rows], targets, RIDGE)
        return replace(self, solver=solver, unfitted=self.solver)

    def describe(self) -> dict[str, Any]:
        """Return what a resumed run must share, beside the teacher's trajectory."""
        solver = (self.unfitted or self.solver).dumps()
        return {"solver": solver, "end_to_end": self.end_to_end, "learn": str(self.learn)}


class RolloutTask:
    """Both adapters and the solver's coefficients, on the student's own sampling runs."""

    def __init__(
        self,
        student: Student,
        data: RolloutData,
        slow_steps: int,
        lora: LoraSettings,
        seeds: Sequence[int],
        tracker: InplaceTracker,
    ):
        check_activations(data.end_to_end, student.blocks is not None)
        self.student, self.data, self.slow_steps, self.tracker = student, data, slow_steps, tracker
        self.steps = range(len(data.sigmas) - 1)
        self.losses_per_example = len(self.steps)
        self.layers = {
            phase: LoraLayers(student.slots, lora, phase, seed, student.device)
            for phase, seed in zip((SLOW, FAST), seeds, strict=True)
        }
        self.forwards = {
            phase: training_forwards(student, layers) if data.learn != Learn.SOLVER else {}
            for phase, layers in self.layers.items()
        }
        self.learnable = LearnableSolver(data.solver, PhaseSchedule(data.sigmas, slow_steps), student.device)
        self.both = with_and_without_prompt(student.velocity)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = []
        if self.data.learn != Learn.SOLVER:
            parameters = [p for layers in self.layers.values() for p in layers.parameters()]
            groups.append({"params": parameters, "highest": learning_rate})
        if self.data.learn != Learn.ADAPTERS:
            parameters = list(self.learnable.parameters())
            groups.append({"params": parameters, "highest": SOLVER_RATE * learning_rate, "weight_decay": 0.0})
        return groups

    def tensors(self) -> dict[str, Tensor]:
        adapters = {
            f"{phase}/{name}": tensor
            for phase, layers in self.layers.items()
            for name, tensor in layers.tensors().items()
        }
        return {**adapters, **{f"solver/{name}": p.detach() for name, p in self.learnable.named_parameters()}}

    def factors(self) -> dict[str, dict[str, Factor]]:
        return {phase: layers.factors() for phase, layers in self.layers.items()}

    def solver(self) -> Solver | None:
        return self.learnable.solver() if self.data.learn != Learn.ADAPTERS else self.data.solver

    def backward(self, batch: Batch, generator: torch.Generator, scaled: Scaled) -> BatchLosses:
        rows = batch.rows.to(self.data.noise.device)
        x, targets = self.data.noise[rows], self.data.targets[:, rows]
        run = self._end_to_end if self.data.end_to_end else self._step_by_step
        with torch.enable_grad():
            errors = run(x, targets, batch.prompt_rows, scaled)  # (n, B)
        steps = torch.tensor(self.steps).repeat_interleave(len(rows))
        return BatchLosses(steps, errors.flatten().cpu(), float(targets[-1].float().square().mean()))

    def _end_to_end(self, x: Tensor, targets: Tensor, prompt_rows: Tensor, scaled: Scaled) -> Tensor:
        """Train all steps at once towards the last target; return each step's errors (n, B)."""

        def forward() -> list[Tensor]:
            states, conds, unconds = [x], [], []
            for i in self.steps:
                with patched_forwards(self.forwards[self._phase(i)]):
                    cond, uncond = self._velocity(i, states[-1], prompt_rows)
                conds.append(cond)
                unconds.append(uncond)
                states.append(self.learnable.step(i, self._width(i), states[-1], conds, unconds))
            return states[1:]

        states = self.tracker.run("rollout", forward)
        floor = LOSS_FLOOR * targets[-1].float().square().mean()
        torch.autograd.backward(scaled(torch.log(_mean_square(states[-1], targets[-1]) + floor).mean()))
        return torch.stack(
            [_mean_square(state, target) for state, target in zip(states, targets, strict=True)]
        ).detach()

    def _step_by_step(self, x: Tensor, targets: Tensor, prompt_rows: Tensor, scaled: Scaled) -> Tensor:
        """Train each step by itself, from where the student's own steps lead; return each step's errors (n, B)."""
        conds: list[Tensor] = []
        unconds: list[Tensor | None] = []
        errors = []
        blocks, name = self.student.blocks, self.student.name
        for i in self.steps:
            phase, width = self._phase(i), self._width(i)

            def forward(i: int = i, x: Tensor = x) -> tuple[Tensor, Tensor | None]:
                return self._velocity(i, x, prompt_rows)

            with patched_forwards(self.forwards[phase]), checkpointed(blocks, name, self.tracker) as check_blocks:
                cond, uncond = self.tracker.run(phase, forward)
                check_blocks()
                after = self.learnable.step(i, width, x, [*conds, cond], [*unconds, uncond])
                # The error as a velocity, shared among the steps.
                share = _mean_square(after, targets[i]).mean() / width**2 / len(self.steps)
                torch.autograd.backward(scaled(share))
            x = after.detach()
            errors.append(_mean_square(x, targets[i]))
            conds.append(cond.detach())
            unconds.append(None if uncond is None else uncond.detach())
        return torch.stack(errors)

    def _velocity(self, i: int, x: Tensor, prompt_rows: Tensor) -> tuple[Tensor, Tensor | None]:
        scale = self.learnable.scale_at(i)
        if not (self.data.end_to_end and self.student.learns_sigmas):
            scale = scale.detach()  # a block that is run again may lose a gradient through sigma
        sigma = (scale * self.data.sigmas[i]).expand(len(x))
        guided = self.data.solver.guided_steps[i]
        return self.both(x.clone(), sigma, prompt_rows, guided)  # a model may write into its input

    def _phase(self, i: int) -> str:
        return SLOW if i < self.slow_steps else FAST

    def _width(self, i: int) -> float:
        return self.data.sigmas[i + 1] - self.data.sigmas[i]


def _mean_square(state: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared distance (B,), in float32 at least."""
    dtype = torch.promote_types(state.dtype, torch.float32)
    return (state.to(dtype) - target.to(dtype)).square().flatten(1).mean(1)
