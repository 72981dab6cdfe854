"""Ways to paint in few steps, each with its model calls: plans of the base, the searched control, and the pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from torch import Tensor

from ..calibration.calibrate import Budget, Calibration, calibrate
from ..errors import GlanceError
from ..evaluation.metrics import psnr
from ..lora.factors import Factor
from ..sampling.rollout import Teacher
from ..sampling.samplers import euler, multistep
from ..sampling.solver import Solver, plan_solver
from ..sampling.velocity import Tick
from ..schedule.phase_schedule import build_schedule
from ..schedule.plan import StepPlan
from ..schedule.split import Split, parse_steps, split_steps
from . import FOLDER, GUIDANCE, MODEL_FILE, tiny_sigmas
from .packing import unpack
from .painting import BATCH, Painter, Prompts, Watch, with_pair

CONTROL_FILE = FOLDER / "control.json"
SPLITS = {  # steps -> splits; phase-aware: more of the steps early, as in the paper
    10: {"uniform": Split((0, 5), tuple(range(10, 50, 5))), "phase-aware": split_steps(5, 5)},
    5: {"uniform": Split((0, 10), (20, 30, 40)), "phase-aware": Split((0, 5), (10, 24, 37))},
    4: {"uniform": Split((0,), (12, 25, 38)), "phase-aware": Split((0, 6), (14, 30))},
}


@dataclass(frozen=True)
class Method:
    """One way to paint.

    guidance: 1 means none. coefficient: share of the second-order correction. has_pair: the pair is on the model.
    solver: replaces guidance and coefficient by its own.
    """

    name: str
    split: Split
    guidance: float = GUIDANCE
    coefficient: float = 0.0
    has_pair: bool = False
    solver: Solver | None = None

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return len(self.split.steps)

    @property
    def guided_steps(self) -> tuple[bool, ...]:
        """Whether each step is guided."""
        return self.solver.guided_steps if self.solver is not None else (self.guidance != 1,) * self.steps

    @property
    def nfe(self) -> int:
        """Model calls per picture; guidance takes two per step."""
        return self.steps + sum(self.guided_steps)

    def paint(
        self,
        painter: Painter,
        prompts: Prompts,
        pair: Mapping[str, Mapping[str, Factor]] | None = None,
        tick: Tick | None = None,
    ) -> Tensor:
        """Return pictures (n, 3, 32, 32).

        Args:
            pair: phase -> module -> factor.
            tick: tick(model calls) as it goes.

        Raises:
            GlanceError: if the pair is needed and missing.
        """
        if self.has_pair and pair is None:
            raise GlanceError(f"{self.name} needs a pair")
        schedule = build_schedule(tiny_sigmas(), self.split)
        guided = cycle(self.guided_steps)

        def step(count: int) -> None:
            if tick:
                tick((2 if next(guided) else 1) * count)

        sampler = partial(multistep, coefficient=self.coefficient) if self.coefficient else euler
        on_model = with_pair(painter.model, pair, schedule) if self.has_pair and pair else nullcontext()
        with on_model as callback:
            watch = Watch(callback, step)
            if self.solver is not None:
                return painter.solve(prompts, schedule.sigmas, self.solver, watch)
            return painter.paint(prompts, schedule.sigmas, self.guidance, sampler, watch)


def calibrated(
    painter: Painter, slots: Tensor, noise: Tensor, budget: Budget, tick: Tick | None = None
) -> tuple[Method, Calibration]:
    """Return what `calibrate` finds for the base on these prompts.

    Args:
        slots: (n, 9).
    """
    teacher = Teacher(painter.velocity(slots, budget.guidance), tiny_sigmas(), BATCH, tick)
    found = calibrate(teacher, painter.velocity(slots, 1.0), noise, pixel_psnr, budget)
    return Method(f"calibrated, {len(slots)} prompts", found.split, found.plan.guidance, solver=found.solver), found


def pixel_psnr(results: Tensor, teacher: Tensor) -> Tensor:
    """Return the PSNR (n,) in dB of latents (n, 16, 16, 16), as pictures."""
    return psnr(unpack(results), unpack(teacher))


def searched_controls(path: Path = CONTROL_FILE) -> tuple[Method, ...]:
    """Return the base's best plan for each number of steps and guided steps, the closest to the teacher first.

    `python -m benchmarks.control_search` found them on prompts that no table is measured on.

    Raises:
        GlanceError: if they were searched for other weights.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["model_sha256"] != model_hash():
        raise GlanceError(
            f"{path.name} belongs to another {MODEL_FILE.name}; search again: python -m benchmarks.control_search "
            "--write"
        )
    best = sorted(found["plans"], key=lambda entry: -entry["psnr"])
    return tuple(plan_method(plan_of(entry), parse_steps(entry["steps"])) for entry in best)


def plan_of(entry: Mapping[str, Any]) -> StepPlan:
    """Read an entry of control.json."""
    steps = parse_steps(entry["steps"]).steps
    return StepPlan(steps, entry["guidance"], entry["coefficient"], tuple(entry.get("weights", ())))


def plan_method(plan: StepPlan, split: Split) -> Method:
    """Return the base on a plan; with a solver if steps are guided differently."""
    solver = plan_solver(plan, tiny_sigmas())[1] if plan.weights else None
    return Method("searched control", split, plan.guidance, plan.coefficient, solver=solver)


def searched_control(nfe: int = 10, guided: bool | None = None, path: Path = CONTROL_FILE) -> Method:
    """Return the best control of this many model calls.

    Args:
        guided: only those with one guidance at every step (True), or only those without guidance (False).

    Raises:
        GlanceError: if there is none.
    """
    found = [
        method
        for method in searched_controls(path)
        if guided is None or (method.solver is None and (method.guidance != 1) == guided)
    ]
    for method in found:
        if method.nfe == nfe:
            return method
    kind = {None: "", True: " with one guidance at every step", False: " without guidance"}[guided]
    known = ", ".join(str(number) for number in sorted({method.nfe for method in found}))
    raise GlanceError(
        f"no control of {nfe} model calls{kind} was searched (python -m benchmarks.control_search); choose one of "
        f"{known}"
    )


def model_hash() -> str:
    """Return the SHA-256 of the embedded model's file."""
    return hashlib.sha256(MODEL_FILE.read_bytes()).hexdigest()
