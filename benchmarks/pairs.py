"""Pairs trained on the embedded model, judged on unseen prompts beside the bare base, over several seeds: trajectory from a few prompts, and
the paper's loss on one picture. ± is one standard error over prompts; gain is paired to the base's uniform walk with as many steps, or, with
another objective alone, to the searched control.

    python -m benchmarks.pairs [--json] [--seeds 3] [--prompts 16] [--judged 1024]
    python -m benchmarks.pairs --objective "end to end" --prompts 64 --runs 384 --steps 240
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from glance_core.errors import GlanceError
from glance_core.memory import keep_freed_memory
from glance_core.objectives import FLOW, OBJECTIVES, TRAJECTORY
from glance_core.progress import Progress
from glance_core.tiny import load_evaluator
from glance_core.tiny.examples import Examples, drawn, own_picture, with_noise
from glance_core.tiny.judging import Judge, Row, as_json, table
from glance_core.tiny.methods import WALKS, Method, searched_control
from glance_core.tiny.painting import Painter, load_references, reference_prompts
from glance_core.tiny.pair import PairSettings, sampled, train


def rows(options: argparse.Namespace) -> Iterator[tuple[Row, float | None]]:
    """A row, and the seconds its training took."""
    painter, judged = Painter(), options.judged
    asked, teacher = reference_prompts(judged), load_references(judged)
    judge = Judge(load_evaluator(), asked.scenes, teacher)
    yield judge.teacher_row(), None
    for objective in (TRAJECTORY, FLOW) if options.objective == TRAJECTORY else (options.objective,):
        settings = [PairSettings(objective, 60 if objective == FLOW else options.steps, seed=seed) for seed in range(options.seeds)]
        control = None
        for method, own in methods(objective, settings, options.prompts):
            begun = time.monotonic()
            done = train(painter, own, examples(own, options.prompts, options.runs)) if own else None
            trained = time.monotonic() - begun if own else None
            if own and done:
                method = sampled(own, done, method.name)
            with Progress(method.name, method.forwards * judged) as bar:
                begun = time.monotonic()
                pictures = method.paint(painter, asked, done.factors if done else None, lambda forwards, bar=bar: bar.step(count=forwards))
            control = pictures if control is None else control
            row = judge.row(method.name, pictures, method.steps, method.forwards, time.monotonic() - begun, control)
            yield row, trained


def methods(objective: str, settings: list[PairSettings], prompts: int) -> list[tuple[Method, PairSettings | None]]:
    """What is compared, the first being what gain is paired to, and how each pair is trained."""
    way = settings[0].way
    if objective in (TRAJECTORY, FLOW):
        count = len(way.split.steps)
        bare = [Method(f"base, {count} uniform", WALKS[count]["uniform"]), Method("base, the pair's steps", way.split, way.bare)]
        bare[1:1] = [searched_control()] if objective == TRAJECTORY else []
    else:
        bare = [searched_control()]
    name = "paper's loss, 1 picture" if objective == FLOW else f"{objective}, {prompts} prompts"
    return [(method, None) for method in bare] + [(Method(f"{name}, seed {own.seed}", way.split, way.guidance), own) for own in settings]


def examples(settings: PairSettings, prompts: int, runs: int) -> Examples:
    """Prompts of the training world with noise for at least so many runs of the teacher, or one of its pictures with its caption, by the seed."""
    if settings.objective != FLOW:
        return with_noise(drawn(prompts, settings.seed), settings.seed, -(-runs // prompts))
    return own_picture(settings.seed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each training (default 3)")
    parser.add_argument(
        "--objective", choices=OBJECTIVES[:-1], default=TRAJECTORY, help="(default trajectory, with the paper's loss beside it)"
    )
    parser.add_argument("--prompts", type=int, default=16, help="to learn from (default 16)")
    parser.add_argument("--runs", type=int, default=160, help="of the teacher to learn from, shared among the prompts (default 160)")
    parser.add_argument("--judged", type=int, default=1024, help="unseen prompts (default 1024)")
    parser.add_argument("--steps", type=int, default=50, help="of each phase; of both at once on whole walks (default 50)")
    options = parser.parse_args()
    keep_freed_memory()
    try:
        found = list(rows(options))
    except GlanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = {row.method: round(trained, 1) for row, trained in found if trained is not None}
    if options.json:
        print(as_json([row for row, _ in found], trained_seconds=seconds, judged=options.judged, prompts=options.prompts))
        return 0
    print(table([row for row, _ in found]))
    print("seconds of training, the teacher's runs included: " + ", ".join(f"{name} {value:g}" for name, value in seconds.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
