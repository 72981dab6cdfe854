"""The demo: train a pair on the spot, paint with it and with its rivals, and show both pictures and numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .errors import GlanceError
from .lora_file import Factor, check_pair, read_adapter
from .lora_write import new_folder
from .memory import keep_freed_memory
from .objectives import END_TO_END
from .pictures import comparison
from .progress import Progress
from .schedule import FAST, SLOW
from .solver import Solver
from .tiny import load_evaluator
from .tiny.examples import drawn, with_noise
from .tiny.judging import Judge, Row, as_json, table
from .tiny.methods import WALKS, Method, searched_control
from .tiny.painting import REFERENCES, Painter, Prompts, load_references, reference_prompts
from .tiny.pair import PairSettings, sampled, train, write
from .tiny.words import caption

SHOWN, PROMPTS = 8, 64
# Of the teacher and of training, on two cores; counts, not a clock, end both, so that a seed gives the same numbers anywhere.
RUNS_PER_SECOND, STEPS_PER_SECOND = 6.5, 1.0


def demo(seconds: float, out: Path, seed: int = 0, judged: int = 256, as_text: bool = True) -> str:
    """Train, paint and judge; write the pair and a picture into `out` under new names; return the table and what belongs to it."""
    started = time.monotonic()
    if not 2 <= seconds <= 36_000:
        raise GlanceError(f"--seconds is {seconds:g}; give 2 to 36000")
    if not 0 <= seed < 2**31:
        raise GlanceError(f"--seed is {seed}; give 0 to {2**31 - 1}")
    if not 32 <= judged <= REFERENCES:
        raise GlanceError(f"--judged is {judged}; give 32 to {REFERENCES}")
    new_folder(out)
    keep_freed_memory()
    painter = Painter()
    prompts_taught, noises = min(PROMPTS, round(2 * seconds)), min(12, max(1, round(seconds / 30)))
    left = seconds - prompts_taught * noises / RUNS_PER_SECOND
    settings = PairSettings(END_TO_END, max(1, round(left * STEPS_PER_SECOND)), seed=seed)
    examples = with_noise(drawn(prompts_taught, seed), seed, noises)
    done = train(painter, settings, examples)
    trained = time.monotonic() - started
    files = write(done, settings, out, "glance_demo")
    slow, fast = (read_adapter(path) for path in files)  # what is judged is what was written
    check_pair(slow, fast)

    prompts, teacher = reference_prompts(judged), load_references(judged)
    methods = (
        Method("base, uniform", WALKS[5]["uniform"]),
        replace(searched_control(guided=True), name="searched, all guided"),
        searched_control(),
        replace(sampled(settings, done, "Glance"), solver=Solver.loads(slow.trained.solver or "")),
    )
    rows, pictures = compare(painter, methods, {SLOW: slow.factors, FAST: fast.factors}, prompts, teacher)
    picture = files[0].with_name(files[0].name.replace("_slow.safetensors", ".png"))
    show(rows, pictures, prompts, teacher, picture)
    total = time.monotonic() - started
    if not as_text:
        return as_json(rows, seed=seed, trained_seconds=trained, seconds=total, picture=str(picture), pair=[str(path) for path in files])
    return "\n".join([
        table(rows), "",
        f"{judged} prompts, each with a colour and shape never seen together in training; the same noise for every method.",
        "PSNR and FD are to the teacher's pictures, gain is PSNR paired to the searched control's; ± is one standard error.",
        f"The pair was trained here in {trained:.0f} s, on {prompts_taught} other prompts and no picture; {total:.0f} s in all.",
        f"pair     {files[0]}", f"         {files[1]}", f"picture  {picture}",
    ])  # fmt: skip


def compare(
    painter: Painter, methods: tuple[Method, ...], pair: Mapping[str, Mapping[str, Factor]], prompts: Prompts, teacher: Tensor
) -> tuple[list[Row], dict[str, Tensor]]:
    """Every method's row, and its pictures by name. `gain` is paired to the searched control."""
    judge = Judge(load_evaluator(), prompts.scenes, teacher)
    pictures, seconds = {}, {}
    with Progress("painting", sum(m.forwards for m in methods) * len(prompts)) as bar:
        for method in methods:
            begun = time.monotonic()
            pictures[method.name] = method.paint(painter, prompts, pair, lambda forwards: bar.step(count=forwards))
            seconds[method.name] = time.monotonic() - begun
    control = pictures["searched control"]
    rows = [judge.teacher_row()]
    rows += [judge.row(m.name, pictures[m.name], m.steps, m.forwards, seconds[m.name], control) for m in methods]
    return rows, pictures


def show(rows: list[Row], pictures: dict[str, Tensor], prompts: Prompts, teacher: Tensor, path: Path) -> None:
    """The first prompts, painted by each method, as one picture."""
    shown = {"teacher": teacher, **pictures}
    labelled = [(f"{row.method}\n{row.forwards} forwards" + (f"\n{row.psnr.value:.1f} dB" if row.psnr else ""), shown[row.method][:SHOWN])
                for row in rows]  # fmt: skip
    drawn = comparison(labelled, [caption(tuple(slots)) for slots in prompts.slots[:SHOWN].tolist()], 3 * teacher.shape[-1])
    drawn.save(path, optimize=True)
