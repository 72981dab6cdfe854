"""The base's best with few model calls: a coordinate search over teacher steps, guidance and second-order share.

The prompts are those of no table. It finds the control of every table, glance_core/tiny/weights/control.json.

    python -m benchmarks.control_search [--steps 6 [--guided 4]] [--write]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from glance_core.allocator import keep_freed_memory
from glance_core.calibration.search import climb, starting_plans
from glance_core.errors import GlanceError
from glance_core.evaluation.metrics import psnr
from glance_core.progress import Progress
from glance_core.schedule.plan import StepPlan
from glance_core.schedule.sigmas import TEACHER_STEPS
from glance_core.schedule.split import Split, parse_steps
from glance_core.tiny import GUIDANCE, tiny_sigmas
from glance_core.tiny.methods import CONTROL_FILE, model_hash, plan_method, plan_of
from glance_core.tiny.painting import Painter, Watch, draw_prompts

PROMPTS, SEED = 48, 4242
ALL_GUIDED = ((2, 2), (3, 3), (4, 4), (5, 5), (10, 10))  # (steps, guided ones): one guidance, as usual samplers have it
SOME_GUIDED = ((2, 1), (3, 1), (3, 2), (4, 2), (5, 3), (6, 4), (7, 3))  # each step has its own guidance
NONE_GUIDED = ((2, 0), (3, 0), (4, 0), (5, 0))
MOST_TRIES = 300


def main() -> int:
    """Print what the search finds, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_search", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--steps", type=int, help="how many steps to search for (default: all that control.json holds)")
    add("--guided", type=int, help="with --steps: how many are guided and take two model calls (default all)")
    add("--write", action="store_true", help="write what is found into control.json")
    options = parser.parse_args()
    keep_freed_memory()
    wanted = (*ALL_GUIDED, *SOME_GUIDED, *NONE_GUIDED)
    if options.steps is not None:
        guided = options.steps if options.guided is None else options.guided
        if not (2 <= options.steps <= TEACHER_STEPS // 2 and 0 <= guided <= options.steps):
            parser.error(f"use --steps 2 to {TEACHER_STEPS // 2}, and --guided 0 to the number of steps")
        wanted = ((options.steps, guided),)
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
            watch = Watch(tick=lambda count: bar.step())
            self.teacher = self.painter.paint(self.prompts, tiny_sigmas(), GUIDANCE, watch=watch)

    def psnr(self, plan: StepPlan) -> float:
        """Return the mean PSNR to the teacher, in dB."""
        pictures = plan_method(plan, split(plan.steps)).paint(self.painter, self.prompts)
        return float(psnr(pictures, self.teacher).mean())

    def best(self, steps: int, guided: int) -> dict[str, Any]:
        """Return the best plan as an entry of control.json.

        It starts from the best of the usual plans and of control.json's, and changes one setting at a time. It ends
        when nothing helps, or after MOST_TRIES plans.
        """
        tried: dict[StepPlan, float] = {}

        def score(plan: StepPlan) -> float:
            if plan not in tried:
                tried[plan] = self.psnr(plan)
            return tried[plan]

        with Progress(f"{steps} steps, {guided} guided", MOST_TRIES) as bar:

            def go_on() -> bool:
                bar.step(f"{max(tried.values()):.2f} dB", len(tried) - bar.done)
                return len(tried) < MOST_TRIES

            def gain(plan: StepPlan, other: StepPlan) -> float:
                return score(plan) - score(other)

            usual = starting_plans(steps, guided, GUIDANCE, TEACHER_STEPS)
            start = max((*usual, *known_plans(steps, guided)), key=score)
            best = climb(start, gain, TEACHER_STEPS, go_on, alike=guided == steps)
        weights = {"weights": [round(weight, 4) for weight in best.weights]} if best.weights else {}
        return {
            "nfe": best.nfe,
            "steps": str(split(best.steps)),
            "guidance": round(best.guidance, 4),
            "coefficient": best.coefficient,
            **weights,
            "psnr": round(score(best), 3),
            "tried": len(tried),
        }


def split(steps: tuple[int, ...]) -> Split:
    """Return a split with two fifths of the steps in Slow; the base alone does not use it."""
    slow = max(1, round(0.4 * len(steps)))
    return Split(steps[:slow], steps[slow:])


def known_plans(steps: int, guided: int) -> Iterator[StepPlan]:
    """Yield control.json's plans with these numbers of steps and guided steps."""
    for entry in _entries():
        if _kind(entry) == (steps, steps + guided):
            yield plan_of(entry)


def store(found: dict[str, Any]) -> None:
    """Put an entry into control.json, in place of its predecessor."""
    entries = {_kind(entry): entry for entry in (*_entries(), found)}
    lines = ",\n  ".join(json.dumps(entries[kind]) for kind in sorted(entries))
    head = json.dumps({"model_sha256": model_hash(), "prompts": PROMPTS}, indent=1)[:-2]
    CONTROL_FILE.write_text(head + f',\n "plans": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def _entries() -> list[dict[str, Any]]:
    """Return control.json's entries, if they were searched for these weights on these prompts."""
    found = json.loads(CONTROL_FILE.read_text(encoding="utf-8"))
    ours = found["model_sha256"] == model_hash() and found["prompts"] == PROMPTS
    return list(found["plans"]) if ours else []


def _kind(entry: dict[str, Any]) -> tuple[int, int]:
    """Return how many steps and model calls an entry has."""
    return len(parse_steps(str(entry["steps"])).steps), int(entry["nfe"])


if __name__ == "__main__":
    sys.exit(main())
