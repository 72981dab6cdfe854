"""Pairs trained on the embedded model, judged on unseen prompts beside the bare base, over several seeds: trajectory from a few prompts, and
the paper's loss on one picture. ± is one standard error over prompts; gain is paired to the base's uniform walk with as many steps.

    python -m benchmarks.pairs [--json] [--seeds 3] [--prompts 16] [--judged 1024]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import torch

from glance_core.errors import GlanceError
from glance_core.memory import keep_freed_memory
from glance_core.objectives import OBJECTIVES
from glance_core.progress import Progress
from glance_core.tiny import load_evaluator
from glance_core.tiny.examples import Examples, drawn, with_noise
from glance_core.tiny.judging import Judge, Row, as_json, table
from glance_core.tiny.methods import WALKS, Method, searched_control
from glance_core.tiny.packing import pack
from glance_core.tiny.painting import Painter, load_references, reference_prompts
from glance_core.tiny.pair import PairSettings, train
from glance_core.tiny.world import render, sample_scenes

TRAJECTORY, _, FLOW = OBJECTIVES


def rows(seeds: int, prompts: int, judged: int, steps: int) -> Iterator[tuple[Row, float | None]]:
    """A row, and the seconds its training took. steps: of each phase, of the trajectory objective."""
    painter = Painter()
    asked, teacher = reference_prompts(judged), load_references(judged)
    judge = Judge(load_evaluator(), asked.scenes, teacher)
    yield judge.teacher_row(), None
    for count, objective in ((5, TRAJECTORY), (10, FLOW)):
        base = Method(f"base, {count} uniform", WALKS[count]["uniform"])
        settings = [PairSettings(objective, steps if objective == TRAJECTORY else 60, seed=seed) for seed in range(seeds)]
        methods: list[tuple[Method, PairSettings | None]] = [(base, None)]
        if count == 5:
            methods.append((searched_control(), None))
        methods.append((Method("base, the pair's steps", settings[0].way.split, settings[0].way.guidance), None))
        name = f"trajectory, {prompts} prompts" if objective == TRAJECTORY else "paper's loss, 1 picture"
        methods += [(Method(f"{name}, seed {own.seed}", own.way.split, own.way.guidance, with_pair=True), own) for own in settings]
        control = None
        for method, own in methods:
            begun = time.monotonic()
            done = train(painter, own, examples(own, prompts)) if own else None
            trained = time.monotonic() - begun if own else None
            with Progress(method.name, method.forwards * judged) as bar:
                begun = time.monotonic()
                pictures = method.paint(painter, asked, done.factors if done else None, lambda forwards, bar=bar: bar.step(count=forwards))
            control = pictures if control is None else control
            row = judge.row(method.name, pictures, method.steps, method.forwards, time.monotonic() - begun, control)
            yield row, trained


def examples(settings: PairSettings, prompts: int) -> Examples:
    """Prompts of the training world with noise for the teacher, or one of its pictures with its caption, by the seed."""
    if settings.objective == TRAJECTORY:
        return with_noise(drawn(prompts, settings.seed), settings.seed)
    generator = torch.Generator().manual_seed(30_000 + settings.seed)
    scene = sample_scenes(1, generator, "seen")
    return Examples(scene.slots(), pack(render(scene, generator)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each training (default 3)")
    parser.add_argument("--prompts", type=int, default=16, help="of the trajectory objective (default 16)")
    parser.add_argument("--judged", type=int, default=1024, help="unseen prompts (default 1024)")
    parser.add_argument("--steps", type=int, default=105, help="of each phase, trajectory (default 105)")
    options = parser.parse_args()
    keep_freed_memory()
    try:
        found = list(rows(options.seeds, options.prompts, options.judged, options.steps))
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
