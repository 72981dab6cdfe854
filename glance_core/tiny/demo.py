"""The demo: train a pair on the spot, paint with it and with its rivals, and show both pictures and numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..allocator import keep_freed_memory
from ..errors import GlanceError
from ..lora.factors import Factor
from ..lora.pair_check import check_pair
from ..lora.pair_writer import make_folder
from ..lora.reader import read_adapter
from ..plots.image_grid import comparison_sheet
from ..progress import Progress
from ..sampling.solver import Solver
from ..schedule.split import FAST, SLOW
from ..training.objectives import Objective
from . import load_evaluator
from .distillation import Destination, PairSettings, distill_pair, pair_method, write_pair
from .examples import drawn, with_noise
from .judging import Judge, Row, as_json, table
from .methods import SPLITS, Method, searched_control
from .painting import REFERENCES, Painter, Prompts, load_references, reference_prompts
from .words import caption

SHOWN, PROMPTS = 8, 64
# Of the teacher and of training, on two cores. Counts end both, not a clock, so a seed gives the same numbers anywhere.
RUNS_PER_SECOND, STEPS_PER_SECOND = 6.5, 1.0


@dataclass(frozen=True)
class DemoOptions:
    """seconds: of training, on two cores. out: a folder. judged: how many unseen prompts to compare on."""

    seconds: float
    out: Path
    seed: int = 0
    judged: int = 256
    as_json: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.seconds <= 36_000:
            raise GlanceError(f"--seconds is {self.seconds:g}; use 2 to 36000")
        if not 0 <= self.seed < 2**31:
            raise GlanceError(f"--seed is {self.seed}; use 0 to {2**31 - 1}")
        if not 32 <= self.judged <= REFERENCES:
            raise GlanceError(f"--judged is {self.judged}; use 32 to {REFERENCES}")


def demo(options: DemoOptions) -> str:
    """Train, paint and judge; write the pair and a picture under new names; return the table and what belongs to it."""
    started = time.monotonic()
    make_folder(options.out)
    keep_freed_memory()
    painter, seed = Painter(), options.seed
    prompt_count, noises = min(PROMPTS, round(2 * options.seconds)), min(12, max(1, round(options.seconds / 30)))
    left = options.seconds - prompt_count * noises / RUNS_PER_SECOND
    settings = PairSettings(Objective.END_TO_END, steps=max(1, round(left * STEPS_PER_SECOND)), seed=seed, checks=0)
    found = distill_pair(painter, settings, with_noise(drawn(prompt_count, seed), seed, noises))
    trained = time.monotonic() - started
    files = write_pair(settings, found, Destination(options.out, "glance_demo"))
    slow, fast = (read_adapter(path) for path in files)  # judge what was written
    check_pair(slow, fast)

    prompts, teacher = reference_prompts(options.judged), load_references(options.judged)
    methods = (
        Method("base, uniform", SPLITS[5]["uniform"]),
        replace(searched_control(guided=True), name="searched, all guided"),
        searched_control(),
        replace(pair_method(settings, found.outcome, "Glance"), solver=Solver.loads(slow.pair.solver or "")),
    )
    painted = paint_all(painter, methods, {SLOW: slow.factors, FAST: fast.factors}, prompts)
    rows = judge_all(methods, painted, prompts, teacher)
    picture = files[0].with_name(files[0].name.replace("_slow.safetensors", ".png"))
    save_picture(rows, painted, prompts, teacher, picture)
    total = time.monotonic() - started
    if options.as_json:
        paths = [str(path) for path in files]
        return as_json(rows, seed=seed, trained_seconds=trained, seconds=total, picture=str(picture), pair=paths)
    lines = [
        table(rows),
        "",
        f"{options.judged} prompts, each with a colour and shape never seen together in training. All methods start "
        "from the same noise.",
        "PSNR and FD are to the teacher's pictures. Gain is PSNR paired to the searched control's. ± is one standard "
        "error.",
        f"The pair was trained here in {trained:.0f} s on {prompt_count} other prompts and no picture. {total:.0f} s "
        "in all.",
        f"pair     {files[0]}",
        f"         {files[1]}",
        f"picture  {picture}",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Painted:
    """One method's pictures (n, 3, 32, 32), and the seconds they took."""

    pictures: Tensor
    seconds: float


def paint_all(
    painter: Painter, methods: Sequence[Method], pair: Mapping[str, Mapping[str, Factor]], prompts: Prompts
) -> dict[str, Painted]:
    """Paint the prompts with every method; return the pictures by the method's name."""
    painted = {}
    with Progress("painting", sum(m.nfe for m in methods) * len(prompts)) as bar:
        for method in methods:
            began = time.monotonic()
            pictures = method.paint(painter, prompts, pair, lambda calls: bar.step(count=calls))
            painted[method.name] = Painted(pictures, time.monotonic() - began)
    return painted


def judge_all(
    methods: Sequence[Method], painted: Mapping[str, Painted], prompts: Prompts, teacher: Tensor
) -> list[Row]:
    """Return the teacher's row and every method's. `gain` is paired to the searched control."""
    judge, control = Judge(load_evaluator(), prompts.scenes, teacher), painted["searched control"].pictures
    rows = [judge.teacher_row()]
    for method in methods:
        own = painted[method.name]
        rows.append(judge.row(method.name, own.pictures, method.steps, method.nfe, own.seconds, control))
    return rows


def save_picture(
    rows: Sequence[Row], painted: Mapping[str, Painted], prompts: Prompts, teacher: Tensor, path: Path
) -> None:
    """Save the first prompts, painted by each method, as one picture."""
    labelled = []
    for row in rows:
        pictures = painted[row.method].pictures if row.method in painted else teacher
        psnr = f"\n{row.psnr.value:.1f} dB" if row.psnr else ""
        labelled.append((f"{row.method}\n{row.nfe} model calls{psnr}", pictures[:SHOWN]))
    captions = [caption(tuple(slots)) for slots in prompts.slots[:SHOWN].tolist()]
    comparison_sheet(labelled, captions, 3 * teacher.shape[-1]).save(path, optimize=True)
