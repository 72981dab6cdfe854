"""How near the embedded model's teacher one comes without any training: fewer steps, other ladders, guidance and solvers.

1024 unseen prompts (the first colour and shape never occur together in training), the teacher's own noise, the shipped teacher pictures.
The guidance of the tuned rows is chosen on other prompts. `--search` looks longer, at ladders and second-order coefficients too, for the
bare base's best at 10 forwards, and prints it as glance_core/tiny/weights/control.json holds it.

    python -m benchmarks.quality [--json] [--count 1024]
    python -m benchmarks.quality --search
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import replace

import torch

from glance_core.errors import GlanceError
from glance_core.memory import keep_freed_memory
from glance_core.metrics import psnr
from glance_core.progress import Progress
from glance_core.schedule import TEACHER_STEPS, Split
from glance_core.tiny import GUIDANCE, load_evaluator, teacher_sigmas
from glance_core.tiny.judging import Judge, as_json, table
from glance_core.tiny.methods import WALKS, Method, model_hash, searched_control
from glance_core.tiny.painting import REFERENCES, Painter, draw_prompts, load_references, reference_prompts

TUNING_SEED, TUNING_PROMPTS = 4242, 48
GUIDANCES = (2.0, 2.5, 3.0, 3.5)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--search", action="store_true", help="search the bare base's best at 10 forwards, and nothing else")
    parser.add_argument("--count", type=int, default=REFERENCES, help="how many of the 1024 reference prompts (default all)")
    options = parser.parse_args()
    if not 32 <= options.count <= REFERENCES:
        parser.error(f"--count is {options.count}; give 32 to {REFERENCES}")
    keep_freed_memory()
    try:
        print(search() if options.search else measure(options.count, options.json))
    except GlanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(count: int, wants_json: bool) -> str:
    """The table: the teacher, and every method beside the first of its step count."""
    started = time.monotonic()
    control = searched_control()
    tuning = Tuning()
    chosen = {steps: [*untuned(steps), tuning.choose(steps)] for steps in WALKS}
    chosen[5].append(control)
    prompts, teacher = reference_prompts(count), load_references(count)
    judge = Judge(load_evaluator(), prompts.scenes, teacher)
    rows = [judge.teacher_row()]
    with Progress("painting", sum(m.forwards for methods in chosen.values() for m in methods) * count) as bar:
        for methods in chosen.values():
            first = None
            for method in methods:
                begun = time.monotonic()
                pictures = method.paint(tuning.painter, prompts, tick=lambda forwards, name=method.name: bar.step(name, forwards))
                first = pictures if first is None else first
                rows.append(judge.row(method.name, pictures, method.steps, method.forwards, time.monotonic() - begun, first))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    total = round(time.monotonic() - started)
    if wants_json:
        return as_json(
            rows, prompts=count, machine=machine, seconds=total, searched=tuning.tried, gain="to the first row of its step count"
        )
    note = f"{count} prompts; gain: PSNR paired to the first row of the same step count; ± one standard error; {machine}; {total} s in all"
    return f"{table(rows)}\n\n{note}"


def untuned(steps: int) -> list[Method]:
    """Both ladders with the teacher's guidance and without, and the second-order sampler on the uniform one."""
    rows = [Method(f"base, {steps} {name}", split) for name, split in WALKS[steps].items()]
    rows += [Method(f"base, {steps} {name}, no CFG", split, 1.0) for name, split in WALKS[steps].items()]
    return [*rows, Method(f"base, {steps} uniform, second order", WALKS[steps]["uniform"], coefficient=1.0)]


class Tuning:
    """Prompts to choose settings on, with the teacher's pictures of them; `tried` keeps every setting and its PSNR."""

    def __init__(self) -> None:
        self.painter = Painter()
        self.prompts = draw_prompts(TUNING_PROMPTS, TUNING_SEED, "seen")
        self.tried: list[dict[str, object]] = []
        with Progress("tuning: teacher", TEACHER_STEPS) as bar:
            self.teacher = self.painter.paint(self.prompts, teacher_sigmas(), GUIDANCE, tick=lambda count: bar.step())

    def nearness(self, method: Method) -> float:
        near = float(psnr(method.paint(self.painter, self.prompts), self.teacher).mean())
        self.tried.append(
            {"steps": str(method.split), "guidance": method.guidance, "coefficient": method.coefficient, "psnr": round(near, 3)}
        )
        return near

    def choose(self, steps: int) -> Method:
        """The best guidance, and the ladder it is best on."""
        found = []
        with Progress(f"tuning: {steps} steps", len(WALKS[steps]) * len(GUIDANCES)) as bar:
            for name, split in WALKS[steps].items():
                for guidance in GUIDANCES:
                    method = Method(f"base, {steps} {name}, tuned guidance {guidance:g}", split, guidance)
                    found.append((self.nearness(method), method))
                    bar.step()
        return max(found, key=lambda pair: pair[0])[1]


def search(rounds: int = 4) -> str:
    """Coordinate search from the best tuned rows of 5 steps with guidance and 10 without: one knob at a time, until nothing helps."""
    tuning = Tuning()
    starts = [Method("", split, 3.0, 0.15) for split in WALKS[5].values()] + [Method("", split, 1.0, 1.0) for split in WALKS[10].values()]
    near, best = max(((tuning.nearness(method), method) for method in starts), key=lambda pair: pair[0])
    with Progress("searching", rounds) as bar:
        for _ in range(rounds):
            before = near
            for neighbour in neighbours(best):
                found = tuning.nearness(neighbour)
                if found > near:
                    near, best = found, neighbour
            bar.step(f"{best.split} guidance {best.guidance:g} coefficient {best.coefficient:g}: {near:.2f} dB")
            if near == before:
                break
    return json.dumps({"steps": str(best.split), "guidance": best.guidance, "coefficient": best.coefficient, "psnr": round(near, 3),
                       "tried": len(tuning.tried), "tuning_prompts": TUNING_PROMPTS, "model_sha256": model_hash()}, indent=1)  # fmt: skip


def neighbours(method: Method) -> list[Method]:
    """One knob changed: a teacher step by 1 or 3, guidance by a quarter, the coefficient by .05 or .15."""
    found = []
    steps = method.split.steps
    for i, shift in ((i, shift) for i in range(1, len(steps)) for shift in (-3, -1, 1, 3)):
        moved = (*steps[:i], steps[i] + shift, *steps[i + 1 :])
        if all(a < b for a, b in zip(moved, (*moved[1:], TEACHER_STEPS), strict=True)):
            found.append(replace(method, split=Split(moved[: len(method.split.slow)], moved[len(method.split.slow) :])))
    if method.guidance != 1:
        found += [replace(method, guidance=method.guidance + change) for change in (-0.25, 0.25)]
    return found + [replace(method, coefficient=round(method.coefficient + change, 2)) for change in (-0.15, -0.05, 0.05, 0.15)]


if __name__ == "__main__":
    sys.exit(main())
