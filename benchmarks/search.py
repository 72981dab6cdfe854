"""The bare base's best at few forwards: coordinate search over teacher steps, the guidance of each and the second-order share, on prompts
that no table is measured on. What it finds is glance_core/tiny/weights/control.json, the control of every table.

    python -m benchmarks.search [--steps 6 [--guided 4]] [--write]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from glance_core.errors import GlanceError
from glance_core.memory import keep_freed_memory
from glance_core.metrics import psnr
from glance_core.progress import Progress
from glance_core.schedule import TEACHER_STEPS, Split, parse_steps
from glance_core.tiny import GUIDANCE, teacher_sigmas
from glance_core.tiny.methods import CONTROL_FILE, model_hash, walk_of, walking
from glance_core.tiny.painting import Painter, draw_prompts
from glance_core.walks import Walk, climb, starts

PROMPTS, SEED = 48, 4242
# (steps, guided ones): every step guided alike, as samplers do; some, each by its own guidance; none.
KINDS = ((2, 2), (3, 3), (4, 4), (5, 5), (10, 10), (2, 1), (3, 1), (3, 2), (4, 2), (5, 3), (6, 4), (7, 3), (2, 0), (3, 0), (4, 0), (5, 0))
TRIES = 300


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, help="of the walk (default: all that control.json holds)")
    parser.add_argument("--guided", type=int, help="with --steps: how many of them are guided and take two forwards (default all)")
    parser.add_argument("--write", action="store_true", help="put what is found into control.json")
    options = parser.parse_args()
    keep_freed_memory()
    wanted = KINDS
    if options.steps is not None:
        guides = options.steps if options.guided is None else options.guided
        if not (2 <= options.steps <= TEACHER_STEPS // 2 and 0 <= guides <= options.steps):
            parser.error(f"give --steps 2 to {TEACHER_STEPS // 2}, and --guided 0 to as many")
        wanted = ((options.steps, guides),)
    try:
        search = Search()
        for steps, guides in wanted:
            found = search.best(steps, guides)
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

    def near(self, walk: Walk) -> float:
        """Mean PSNR to the teacher, in dB."""
        return float(psnr(walking(walk, split(walk.steps)).paint(self.painter, self.prompts), self.teacher).mean())

    def best(self, steps: int, guides: int) -> dict[str, Any]:
        """One knob at a time from the best of the usual walks and of what control.json holds, until nothing helps or TRIES are over."""
        known: dict[Walk, float] = {}

        def near(walk: Walk) -> float:
            if walk not in known:
                known[walk] = self.near(walk)
            return known[walk]

        with Progress(f"{steps} steps, {guides} guided", TRIES) as bar:

            def goes_on() -> bool:
                bar.step(f"{max(known.values()):.2f} dB", len(known) - bar.done)
                return len(known) < TRIES

            begun = max((*starts(steps, guides, GUIDANCE, TEACHER_STEPS), *held(steps, guides)), key=near)
            best = climb(begun, lambda one, other: near(one) - near(other), TEACHER_STEPS, goes_on, alike=guides == steps)
        weights = {"weights": [round(weight, 4) for weight in best.weights]} if best.weights else {}
        return {"forwards": best.forwards, "steps": str(split(best.steps)), "guidance": round(best.guidance, 4),
                "coefficient": best.coefficient, **weights, "psnr": round(near(best), 3), "tried": len(known)}  # fmt: skip


def split(steps: tuple[int, ...]) -> Split:
    """The first two fifths to Slow; the bare base does not ask."""
    slow = max(1, round(0.4 * len(steps)))
    return Split(steps[:slow], steps[slow:])


def held(steps: int, guides: int) -> Iterator[Walk]:
    """Of control.json, where it is for these weights: the walk of so many steps of which so many are guided."""
    for entry in _walks():
        if _kind(entry) == (steps, steps + guides):
            yield walk_of(entry)


def store(found: dict[str, Any]) -> None:
    walks = {_kind(entry): entry for entry in (*_walks(), found)}
    lines = ",\n  ".join(json.dumps(walks[kind]) for kind in sorted(walks))
    text = json.dumps({"model_sha256": model_hash(), "prompts": PROMPTS}, indent=1)[:-2] + f',\n "walks": [\n  {lines}\n ]\n}}\n'
    CONTROL_FILE.write_text(text, encoding="utf-8")


def _walks() -> list[dict[str, Any]]:
    found = json.loads(CONTROL_FILE.read_text(encoding="utf-8"))
    ours = found["model_sha256"] == model_hash() and found["prompts"] == PROMPTS
    return list(found["walks"]) if ours else []


def _kind(entry: dict[str, Any]) -> tuple[int, int]:
    """Steps and forwards."""
    return len(parse_steps(str(entry["steps"])).steps), int(entry["forwards"])


if __name__ == "__main__":
    sys.exit(main())
