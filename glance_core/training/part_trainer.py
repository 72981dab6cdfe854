"""The training loop of one part of a run: a phase, or both phases at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TrainingError
from ..lora.factors import Factor
from ..sampling.solver import Solver
from .batches import BatchSampler
from .optimizers import learning_rate_factor, make_optimizer
from .run.checkpoint import load_optimizer, optimizer_tensors, valid_checkpoint
from .run.run_state import Interrupted, PartAt, RunKeeper, RunState
from .settings import TrainingSettings
from .student import Student
from .tasks import BatchLosses, TrainingTask, load_task

DIVERGED = 10.0  # times the mean loss of the first round over the steps, and beyond what a velocity of zero would lose


@dataclass(frozen=True)
class TrainedStep:
    """How far a part is: `step` of `steps`. factors(), solver(): copies of what the run has trained so far."""

    part: str
    step: int
    steps: int
    loss: float
    factors: Callable[[], dict[str, dict[str, Factor]]]
    solver: Callable[[], Solver | None] = lambda: None


Report = Callable[[TrainedStep], None]


@dataclass(frozen=True)
class RunContext:
    """What the parts of a run share."""

    student: Student
    settings: TrainingSettings
    keeper: RunKeeper
    state: RunState
    report: Report | None = None


class PartTrainer:
    """One part in training: its task, optimiser and order of examples, and how far it is."""

    def __init__(self, name: str, task: TrainingTask, rows: int, context: RunContext):
        settings = context.settings
        self.name, self.task, self.context, self.settings = name, task, context, settings
        groups = task.parameter_groups(settings.learning_rate)
        self.optimizer = make_optimizer(
            settings.optimizer, groups, settings.learning_rate, settings.betas, settings.weight_decay
        )
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.scaler = torch.amp.GradScaler(context.student.device.type, enabled=context.student.half)
        self.batches = BatchSampler(task.steps, rows, settings.batch, settings.caption_dropout, settings.seed)
        self.step = 0
        if context.state.interrupted is not None:
            self._resume(context.state.interrupted)
            context.state.interrupted = None
        self.first_step = self.step
        done = self.step * settings.batch * settings.accumulation * task.losses_per_example
        self.first_loss = len(context.state.history.losses) - done
        self.batches_at_step = self.batches.state()  # the order of examples from `step` on
        self.consistent = True  # False while the optimiser writes

    def run(self) -> None:
        """Train to the last step, and keep what is trained. An interrupt keeps the steps until then."""
        state = self.context.state
        try:
            while self.step < self.settings.steps:
                self._train_step()
        except TrainingError:
            raise  # the last good state is on disk already
        except BaseException:  # an interrupt, out of memory: the next run continues from here
            if self.consistent and self.step > self.first_step:
                self._save()
            raise
        state.factors |= self.task.factors()
        state.solver = self.task.solver()
        state.done.append(self.name)
        self.context.keeper.save_state(state, PartAt(self.name, self.settings.steps))

    def _train_step(self) -> None:
        settings = self.settings
        factor = learning_rate_factor(self.step, settings.steps, settings.warmup, settings.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        found = self._backward()
        loss = float(found.losses.mean())
        self._check_loss(loss, found.target_power)
        self._clip_gradients()
        if settings.save_every and self.step > self.first_step and self.step % settings.save_every == 0:
            self._save()  # only now is it known that the state before this step is sound
        self.consistent = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.context.state.history.add(found.steps, found.losses)
        self.step, self.batches_at_step, self.consistent = self.step + 1, self.batches.state(), True
        if self.context.report:
            factors = self.context.state.factors
            self.context.report(
                TrainedStep(
                    self.name,
                    self.step,
                    settings.steps,
                    loss,
                    lambda: {**factors, **self.task.factors()},
                    self.task.solver,
                )
            )

    def _backward(self) -> BatchLosses:
        """Add up the gradients of one step's batches; return their losses together."""

        def scaled(mean: Tensor) -> Tensor:
            return self.scaler.scale(mean / self.settings.accumulation)

        found = [
            self.task.backward(self.batches.next(), self.batches.generator, scaled)
            for _ in range(self.settings.accumulation)
        ]
        return BatchLosses(
            torch.cat([each.steps for each in found]),
            torch.cat([each.losses for each in found]),
            sum(each.target_power / self.settings.accumulation for each in found),
        )

    def _check_loss(self, loss: float, target_power: float) -> None:
        if not math.isfinite(loss):
            raise self._stopped(f"the loss is {loss}")
        losses, round_ = self.context.state.history.losses[self.first_loss :], len(self.task.steps)
        if len(losses) >= 2 * round_:
            start, now = sum(losses[:round_]) / round_, sum(losses[-round_:]) / round_
            if now > max(DIVERGED * start, target_power):  # a base that is nearly right starts at almost nothing
                raise self._stopped(f"the loss grew from {start:.4g} to {now:.4g}")

    def _clip_gradients(self) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise self._stopped(f"the gradient's norm is {float(norm)}")

    def _stopped(self, why: str) -> TrainingError:
        keeper = self.context.keeper
        where = f"; the last good state is in {keeper.path.name}" if keeper.path and keeper.saved else ""
        return TrainingError(
            f"training stopped at step {self.step + 1} of {self.name}: {why}{where}; lower the learning_rate"
        )

    def _save(self) -> None:
        tensors = {**self.task.tensors(), **optimizer_tensors(self.optimizer), **self.batches_at_step}
        facts = {"scaler": self.scaler.state_dict()}
        self.context.keeper.save_state(self.context.state, PartAt(self.name, self.step, tensors, facts))

    def _resume(self, interrupted: Interrupted) -> None:
        assert self.context.keeper.path is not None
        with valid_checkpoint(self.context.keeper.path):
            load_task(self.task, interrupted.tensors)
            load_optimizer(self.optimizer, interrupted.tensors)
            self.batches.load(interrupted.tensors)
            self.scaler.load_state_dict(dict(interrupted.facts["scaler"]))
            step = interrupted.facts["step"]
            if type(step) is not int or not 0 <= step <= self.settings.steps:
                raise ValueError(f"its step is {step}")
            self.step = step
