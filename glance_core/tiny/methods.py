"""Ways to paint in few steps, each with its number of forwards: walks of the bare base, the searched control, and the pair."""

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

from ..calibration import Calibration, calibrate
from ..errors import GlanceError
from ..lora_file import Factor
from ..metrics import psnr
from ..sampling import euler, multistep
from ..schedule import Split, build_schedule, parse_steps, split_steps
from ..solver import Solver
from ..walks import Walk
from . import FOLDER, GUIDANCE, MODEL_FILE, teacher_sigmas
from .packing import unpack
from .painting import Painter, Prompts, Ticked, carrying

CONTROL_FILE = FOLDER / "control.json"
WALKS = {  # steps -> ladders; phase-aware: more of the steps early, as the paper has it
    10: {"uniform": Split((0, 5), tuple(range(10, 50, 5))), "phase-aware": split_steps(5, 5)},
    5: {"uniform": Split((0, 10), (20, 30, 40)), "phase-aware": Split((0, 5), (10, 24, 37))},
    4: {"uniform": Split((0,), (12, 25, 38)), "phase-aware": Split((0, 6), (14, 30))},
}


@dataclass(frozen=True)
class Method:
    """A walk: its teacher steps, guidance (1: none), share of the second-order correction, and whether the pair is on the model; with a
    solver, which has a guidance of its own, neither guidance nor coefficient counts."""

    name: str
    split: Split
    guidance: float = GUIDANCE
    coefficient: float = 0.0
    with_pair: bool = False
    solver: Solver | None = None

    @property
    def steps(self) -> int:
        return len(self.split.steps)

    @property
    def guides(self) -> tuple[bool, ...]:
        """Which steps are guided."""
        return self.solver.guides if self.solver is not None else (self.guidance != 1,) * self.steps

    @property
    def forwards(self) -> int:
        """Model evaluations per picture; guidance takes two per step."""
        return self.steps + sum(self.guides)

    def paint(
        self, painter: Painter, prompts: Prompts, pair: Mapping[str, Mapping[str, Factor]] | None = None, tick: Ticked | None = None
    ) -> Tensor:
        """Pictures (n, 3, 32, 32). tick(forwards) as it goes. Raises GlanceError if the pair is needed and not there."""
        if self.with_pair and pair is None:
            raise GlanceError(f"{self.name} needs a pair")
        walked = build_schedule(teacher_sigmas(), self.split)
        guided = cycle(self.guides)

        def step(count: int) -> None:
            if tick:
                tick((2 if next(guided) else 1) * count)

        solver = partial(multistep, coefficient=self.coefficient) if self.coefficient else euler
        with carrying(painter.model, pair, walked) if self.with_pair and pair else nullcontext() as callback:
            if self.solver is not None:
                return painter.solve(prompts, walked.sigmas, self.solver, callback, step)
            return painter.paint(prompts, walked.sigmas, self.guidance, solver, callback, step)


def calibrated(
    painter: Painter, slots: Tensor, noise: Tensor, forwards: int, seconds: float, tick: Ticked | None = None
) -> tuple[Method, Calibration]:
    """The bare base's best at so many forwards that `calibration.calibrate` finds on these prompts, slots (n, 9), in so many seconds."""
    found = calibrate(
        painter.velocity(slots, 1.0), lambda scale: painter.velocity(slots, scale), noise, teacher_sigmas(), forwards, GUIDANCE,
        lambda results, teacher: psnr(unpack(results), unpack(teacher)), seconds, tick=tick,
    )  # fmt: skip
    return Method(f"calibrated, {len(slots)} prompts", found.split, found.walk.guidance, solver=found.solver), found


def searched_walks(path: Path = CONTROL_FILE) -> tuple[Method, ...]:
    """The bare base's best with so many steps of which so many are guided, that `python -m benchmarks.search` found on prompts no table is
    measured on; the nearest to the teacher first. Raises GlanceError if they were searched for other weights than those at hand.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["model_sha256"] != model_hash():
        raise GlanceError(f"{path.name} was searched for another {MODEL_FILE.name}; search again: python -m benchmarks.search --write")
    best = sorted(found["walks"], key=lambda entry: -entry["psnr"])
    return tuple(walking(walk_of(entry), parse_steps(entry["steps"])) for entry in best)


def walk_of(entry: Mapping[str, Any]) -> Walk:
    """That of an entry of control.json."""
    return Walk(parse_steps(entry["steps"]).steps, entry["guidance"], entry["coefficient"], tuple(entry.get("weights", ())))


def walking(walk: Walk, split: Split) -> Method:
    """The bare base on a walk, as its solver where not all steps are guided alike."""
    solver = walk.on(teacher_sigmas())[1] if walk.weights else None
    return Method("searched control", split, walk.guidance, walk.coefficient, solver=solver)


def searched_control(forwards: int = 10, guided: bool | None = None, path: Path = CONTROL_FILE) -> Method:
    """The best of them at so many forwards; guided: of those with one guidance at every step, or of those without any. Raises GlanceError
    where there is none."""
    found = [method for method in searched_walks(path) if guided is None or (method.solver is None and (method.guidance != 1) == guided)]
    for method in found:
        if method.forwards == forwards:
            return method
    kind = {None: "", True: " with one guidance at every step", False: " without guidance"}[guided]
    there = ", ".join(str(number) for number in sorted({method.forwards for method in found}))
    raise GlanceError(f"no walk of {forwards} forwards{kind} was searched (python -m benchmarks.search); choose one of {there}")


def model_hash() -> str:
    return hashlib.sha256(MODEL_FILE.read_bytes()).hexdigest()
