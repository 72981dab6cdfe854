"""Train a Slow and a Fast adapter on one frozen model, one phase after the other, so that only one of them takes memory.

Seeded, and bit-identical on a CPU: also where a run was stopped at any step and taken up again from its checkpoint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import as_json, finished_factors, load_optimizer, load_run, optimizer_tensors, save_run, whole
from .draws import Draws, History
from .errors import TrainingError
from .lora_file import Factor
from .lora_layers import Lora, frozen
from .objectives import Objective
from .optimizers import OPTIMIZERS, make_optimizer, rate
from .saved import Saves
from .schedule import FAST, SLOW
from .solver import Solver
from .student import Student
from .trainees import PhaseTrainee, Trainee, Walks, WalkTrainee, load

PHASES = (SLOW, FAST)
WALKS = "walks"
DIVERGED = 10.0  # times the mean loss of the first round over the phase's points, and beyond what a velocity of zero would cost


@dataclass(frozen=True)
class TrainingSettings:
    """steps: of each phase; batch: examples per step, times accumulation; warmup: share of the steps; clip: of the gradient's norm, 0: none;
    caption_dropout: share of examples that see the empty prompt; save_every: steps between checkpoints, 0: only where the run is stopped."""

    lora: Lora
    steps: int = 60
    batch: int = 1
    accumulation: int = 1
    learning_rate: float = 5e-4
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: float = 0.1
    decay: str = "linear"
    clip: float = 1.0
    caption_dropout: float = 0.0
    seed: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("accumulation", 1), ("save_every", 0)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"learning_rate is {self.learning_rate}; it must be a positive number")
        for name in ("warmup", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")
        for name in ("clip", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be 0 or a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TrainingError(f"betas are {self.betas}; both must be at least 0 and below 1")
        if not 0 <= self.seed < 2**63:
            raise TrainingError(f"seed is {self.seed}; give 0 to {2**63 - 1}")
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(f"optimizer is {self.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
        rate(0, self.steps, self.warmup, self.decay)  # an unknown decay is told before anything runs


@dataclass(frozen=True)
class Step:
    """How far a run is: `step` of `steps` of this phase are done; loss is the last one's. factors() copies what has been trained so far, and
    solver() is the one that is trained with it, if any."""

    phase: str
    step: int
    steps: int
    loss: float
    factors: Callable[[], dict[str, dict[str, Factor]]]
    solver: Callable[[], Solver | None] = lambda: None


Reported = Callable[[Step], None]


@dataclass(frozen=True)
class Outcome:
    """Factors by phase and slot, the losses on the way, and the solver where one was trained with them."""

    factors: dict[str, dict[str, Factor]]
    history: History
    solver: Solver | None = None

    @property
    def has_effect(self) -> bool:
        """Whether any adapter changes the model."""
        return any(bool(factor.up.any()) for own in self.factors.values() for factor in own.values())


def train_pair(
    student: Student,
    objective: Objective | Walks,
    slow_steps: int,
    settings: TrainingSettings,
    report: Reported | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Outcome:
    """Slow learns the first `slow_steps` points of the objective, Fast the others, every point and every row equally often; on Walks both
    learn at once, in as many steps as each has on single steps, and the student's velocity is the one without guidance.

    report is called after every step, with no branch on the model. Whatever ends a run early, an interrupt or an exception in report or
    model, the steps done until then are kept in `checkpoint`, from where the next call goes on; `identity` is what, besides the settings,
    must be the same then. Raises TrainingError for settings that leave a phase empty, a checkpoint of another run, and a loss that is no
    number or grows beyond ten times its start and beyond the mean square of the targets.
    """
    points = len(objective.points)
    if not 0 < slow_steps < points:
        raise TrainingError(f"slow_steps = {slow_steps} of {points} leaves a phase without training; choose 1 to {points - 1}")
    own = {"slow_steps": slow_steps, "points": points, "walks": objective.describe() if isinstance(objective, Walks) else None}
    run = _Run(student, objective, slow_steps, settings, report, checkpoint, {**(identity or {}), **own})
    with frozen(student.model):
        for part in run.parts:
            if part not in run.done:
                run.train(part)
    return Outcome(run.finished, run.history, run.solver)


class _Run:
    """A training run: what is finished, what is in training, and how it is kept on the disk."""

    def __init__(
        self, student: Student, objective: Objective | Walks, slow_steps: int, settings: TrainingSettings, report: Reported | None,
        checkpoint: Path | None, identity: Mapping[str, Any],
    ):  # fmt: skip
        self.student, self.objective, self.settings, self.report, self.checkpoint = student, objective, settings, report, checkpoint
        own = {key: value for key, value in asdict(settings).items() if key not in ("save_every", "lora")}
        trained = [f"{name} {slot.module} {slot.start} {slot.outside} {slot.inside}" for name, slot in sorted(student.slots.items())]
        modules = f"{len(trained)} modules, {hashlib.sha256(chr(10).join(trained).encode()).hexdigest()[:8]}"
        self.identity = as_json({**own, **asdict(settings.lora), **identity, "targets": modules, "rows": objective.rows})
        self.parts: Mapping[str, Callable[[], Trainee]] = self._parts(objective, slow_steps)
        self.done: list[str] = []
        self.solver: Solver | None = None
        self.finished: dict[str, dict[str, Factor]] = {}
        self.history = History()
        self.saves = Saves()
        self.kept: tuple[Path, dict[str, Tensor], dict[str, Any]] | None = None
        if checkpoint is not None and checkpoint.exists():
            self._take_up(checkpoint)

    def _parts(self, objective: Objective | Walks, slow_steps: int) -> Mapping[str, Callable[[], Trainee]]:
        """What is trained one after the other, by name."""
        student, lora, saves = self.student, self.settings.lora, Saves()
        seeds = [(self.settings.seed + 1_000_003 * number) % 2**63 for number in range(len(PHASES))]
        if isinstance(objective, Walks):
            return {WALKS: partial(WalkTrainee, student, objective, slow_steps, lora, seeds, saves)}
        points = (range(slow_steps), range(slow_steps, len(objective.points)))
        return {
            phase: partial(PhaseTrainee, student, objective, phase, own, lora, seed, saves)
            for phase, own, seed in zip(PHASES, points, seeds, strict=True)
        }

    def train(self, part: str) -> None:
        settings, student = self.settings, self.student
        trainee = self.parts[part]()
        optimizer = make_optimizer(
            settings.optimizer, trainee.groups(settings.learning_rate), settings.learning_rate, settings.betas, settings.weight_decay
        )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        scaler = torch.amp.GradScaler(student.device.type, enabled=student.half)
        draws = Draws(trainee.points, self.objective.rows, settings.batch, settings.caption_dropout, settings.seed)
        first = 0
        if self.kept is not None:
            path, tensors, facts = self.kept
            self.kept = None
            with whole(path):
                load(trainee, tensors)
                load_optimizer(optimizer, tensors)
                draws.load(tensors)
                scaler.load_state_dict(facts["scaler"])
                first = facts["step"]
                if type(first) is not int or not 0 <= first <= settings.steps:
                    raise ValueError(f"its step is {first}")
        began = len(self.history.losses) - first * settings.batch * settings.accumulation * trainee.losses

        def save(step: int, drawn: Mapping[str, Tensor]) -> None:
            if self.checkpoint is not None:
                tensors = {**trainee.tensors(), **optimizer_tensors(optimizer), **drawn}
                self._keep(part, step, tensors, {"scaler": scaler.state_dict()})

        done, drawn, sound = first, draws.state(), True
        try:
            for step in range(first, settings.steps):
                for group in optimizer.param_groups:
                    group["lr"] = group["highest"] * rate(step, settings.steps, settings.warmup, settings.decay)
                optimizer.zero_grad(set_to_none=True)
                at, loss, power = self._backward(trainee, draws, scaler)
                mean = float(loss.mean())
                self._refuse_bad(part, step, mean, power, self.history.losses[began:], len(trainee.points))
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf)
                if not scaler.is_enabled() and not torch.isfinite(norm):
                    raise self._stopped(part, step, f"the gradient's norm is {float(norm)}")
                if settings.save_every and step > first and step % settings.save_every == 0:
                    save(step, drawn)  # only now is it known that the state before this step is sound
                sound = False
                scaler.step(optimizer)
                scaler.update()
                self.history.points += at.tolist()
                self.history.losses += loss.tolist()
                done, drawn, sound = step + 1, draws.state(), True
                if self.report:
                    self.report(Step(part, done, settings.steps, mean, lambda: {**self.finished, **trainee.factors()}, trainee.solver))
        except TrainingError:
            raise  # the last good state is on the disk already
        except BaseException:  # an interrupt, memory that ran out: this run goes on from here
            if sound and done > first:
                save(done, drawn)
            raise
        self.finished |= trainee.factors()
        self.solver = trainee.solver()
        self.done.append(part)
        if self.checkpoint is not None:
            self._keep(part, settings.steps, {}, {})

    def _backward(self, trainee: Trainee, draws: Draws, scaler: torch.amp.GradScaler) -> tuple[Tensor, Tensor, float]:
        """Points and losses (batch x accumulation) of one step, and the mean square of its targets; gradients add up on the parameters."""

        def scaled(mean: Tensor) -> Tensor:
            return scaler.scale(mean / self.settings.accumulation)

        points: list[Tensor] = []
        found: list[Tensor] = []
        power = 0.0
        for _ in range(self.settings.accumulation):
            at, loss, squares = trainee.backward(draws, scaled)
            points.append(at)
            found.append(loss)
            power += squares / self.settings.accumulation
        return torch.cat(points), torch.cat(found), power

    def _refuse_bad(self, phase: str, step: int, loss: float, power: float, before: Sequence[float], points: int) -> None:
        if not math.isfinite(loss):
            raise self._stopped(phase, step, f"the loss is {loss}")
        if len(before) >= 2 * points:
            start, now = sum(before[:points]) / points, sum(before[-points:]) / points
            if now > max(DIVERGED * start, power):  # a base that is nearly right starts at next to nothing
                raise self._stopped(phase, step, f"the loss grew from {start:.4g} to {now:.4g}")

    def _stopped(self, phase: str, step: int, why: str) -> TrainingError:
        where = (
            f"; the last good state is kept in {self.checkpoint.name}" if self.checkpoint is not None and self.checkpoint.exists() else ""
        )
        return TrainingError(f"training stopped at step {step + 1} of {phase}: {why}{where}; lower the learning_rate")

    def _keep(self, phase: str, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        assert self.checkpoint is not None
        done = {f"done/{name}/{slot}.{which}": value for name, factors in self.finished.items() for slot, factor in factors.items()
                for which, value in (("A", factor.down), ("B", factor.up))}  # fmt: skip
        scales = {name: {slot: factor.scale for slot, factor in factors.items()} for name, factors in self.finished.items()}
        told = {
            "identity": self.identity,
            "phase": phase,
            "step": step,
            "scales": scales,
            "done": self.done,
            "solver": self.solver.dumps() if self.solver else None,
            **facts,
        }
        save_run(self.checkpoint, {**tensors, **done, **self.history.tensors()}, told)

    def _take_up(self, path: Path) -> None:
        tensors, facts = load_run(path)
        with whole(path):
            self._check(path, facts["identity"])
            self.history = History.of(tensors)
            for phase, scales in facts["scales"].items():
                self.finished[phase] = finished_factors(tensors, scales, self.student.slots, f"done/{phase}/")
            self.done = [part for part in facts["done"] if part in self.parts]
            self.solver = Solver.loads(facts["solver"]) if facts.get("solver") else None
            walked = isinstance(self.objective, Walks)
            if any(phase not in self.finished for part in self.done for phase in (PHASES if walked else [part])):
                raise ValueError("a phase that is done is missing")
            if walked and self.solver and self.solver.steps != len(self.objective.points):
                raise ValueError("its solver has other steps")
            if facts["phase"] not in self.done:
                self.kept = path, tensors, facts

    def _check(self, path: Path, identity: Mapping[str, Any]) -> None:
        for key in sorted(self.identity.keys() | identity.keys()):
            mine, theirs = self.identity.get(key), identity.get(key)
            if mine != theirs:
                raise TrainingError(
                    f"{path.name} holds a run with {key} {theirs}, this one has {mine}; set it back to go on, or choose another name or resume off"
                )
