"""The bare base's best at few steps: coordinate search over teacher steps, guidance and the second-order share, on prompts that no table is
measured on. What it finds is glance_core/tiny/weights/control.json, the control of every table.

    python -m benchmarks.search [--steps 5] [--no-guidance] [--write]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

from glance_core.calibration import even_steps
from glance_core.errors import GlanceError
from glance_core.memory import keep_freed_memory
from glance_core.metrics import psnr
from glance_core.progress import Progress
from glance_core.schedule import TEACHER_STEPS, Split
from glance_core.tiny import GUIDANCE, teacher_sigmas
from glance_core.tiny.methods import CONTROL_FILE, Method, model_hash
from glance_core.tiny.painting import Painter, draw_prompts

PROMPTS, SEED = 48, 4242
GUIDED = PLAIN = (
    2,
    3,
    4,
    5,
)  # steps; without guidance a fifth one adds next to nothing, so 6 to 10 are not compared with 3 to 5 guided ones
WORK = 36  # rounds times forwards


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, help="of the walk (default: all that control.json holds)")
    parser.add_argument("--no-guidance", action="store_true", help="with --steps: one forward a step instead of two")
    parser.add_argument("--write", action="store_true", help="put what is found into control.json")
    options = parser.parse_args()
    keep_freed_memory()
    wanted = [(steps, True) for steps in GUIDED] + [(steps, False) for steps in PLAIN]
    if options.steps is not None:
        if not 2 <= options.steps <= TEACHER_STEPS // 2:
            parser.error(f"--steps is {options.steps}; give 2 to {TEACHER_STEPS // 2}")
        wanted = [(options.steps, not options.no_guidance)]
    try:
        search = Search()
        for steps, guided in wanted:
            found = search.best(steps, guided)
            print(json.dumps(found), flush=True)
            if options.write:
                store(found)
    except GlanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class Search:
    """Prompts to choose settings on, with the teacher's pictures of them."""

    def __init__(self) -> None:
        self.painter = Painter()
        self.prompts = draw_prompts(PROMPTS, SEED, "seen")
        with Progress("teacher", TEACHER_STEPS) as bar:
            self.teacher = self.painter.paint(self.prompts, teacher_sigmas(), GUIDANCE, tick=lambda count: bar.step())

    def best(self, steps: int, guided: bool) -> dict[str, object]:
        """One knob at a time from the best of the usual walks, until nothing helps or the rounds are over."""
        known: dict[Method, float] = {}

        def near(method: Method) -> float:
            if method not in known:
                known[method] = float(psnr(method.paint(self.painter, self.prompts), self.teacher).mean())
            return known[method]

        best = max(starts(steps, guided), key=near)
        rounds = max(1, WORK // best.forwards)
        with Progress(f"{steps} steps{'' if guided else ', no guidance'}", rounds) as bar:
            for _ in range(rounds):
                before = best
                for neighbour in neighbours(best):
                    best = max(best, neighbour, key=near)
                bar.step(f"{best.split} guidance {best.guidance:g} coefficient {best.coefficient:g}: {near(best):.2f} dB")
                if best == before:
                    break
        return {"forwards": best.forwards, "steps": str(best.split), "guidance": best.guidance, "coefficient": best.coefficient,
                "psnr": round(near(best), 3), "tried": len(known)}  # fmt: skip


def split(steps: tuple[int, ...]) -> Split:
    """The first two fifths to Slow; the bare base does not ask."""
    slow = max(1, round(0.4 * len(steps)))
    return Split(steps[:slow], steps[slow:])


def starts(count: int, guided: bool) -> Iterator[Method]:
    """Even steps and steps that grow, as the paper has more of them early."""
    growing = tuple(round(TEACHER_STEPS * (0.5 * i / count + 0.4 * (i / count) ** 2)) for i in range(count))
    for steps in (even_steps(count, TEACHER_STEPS), growing):
        for guidance, coefficient in ((3.0, 0.15), (2.0, 0.15), (2.0, 0.0)) if guided else ((1.0, 0.0), (1.0, 0.5)):
            yield Method("", split(steps), guidance, coefficient)


def neighbours(method: Method) -> Iterator[Method]:
    """One knob changed: a teacher step by 1 or 3, guidance by a quarter, the coefficient by .05 or .15."""
    steps = method.split.steps
    for i, shift in ((i, shift) for i in range(1, len(steps)) for shift in (-3, -1, 1, 3)):
        moved = (*steps[:i], steps[i] + shift, *steps[i + 1 :])
        if all(a < b for a, b in zip(moved, (*moved[1:], TEACHER_STEPS), strict=True)):
            yield replace(method, split=split(moved))
    if method.guidance != 1:
        yield from (replace(method, guidance=method.guidance + change) for change in (-0.25, 0.25) if method.guidance + change > 1)
    yield from (replace(method, coefficient=round(method.coefficient + change, 2)) for change in (-0.15, -0.05, 0.05, 0.15))


def store(found: dict[str, object]) -> None:
    held = json.loads(CONTROL_FILE.read_text(encoding="utf-8"))
    if held["model_sha256"] != model_hash() or held["prompts"] != PROMPTS:
        held = {"model_sha256": model_hash(), "prompts": PROMPTS, "walks": []}

    def walk(entry: dict[str, object]) -> tuple[int, bool]:
        return str(entry["steps"]).count(",") + 2, entry["guidance"] != 1

    walks = {walk(entry): entry for entry in (*held["walks"], found)}
    held["walks"] = [walks[key] for key in sorted(walks)]
    lines = ",\n  ".join(json.dumps(entry) for entry in held.pop("walks"))
    text = json.dumps(held, indent=1)[:-2] + f',\n "walks": [\n  {lines}\n ]\n}}\n'
    CONTROL_FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
