"""Pairs trained on the embedded model, judged on unseen prompts beside the base, over several seeds of training.

By default: teacher_forced from a few prompts, and the paper's loss on one picture. ± is one standard error over
prompts. With the default, gain is paired to the base on as many even steps, and otherwise to the searched control.

    python -m benchmarks.pairs [--json] [--seeds 3] [--prompts 16] [--judged 1024]
    python -m benchmarks.pairs --objective end_to_end --prompts 64 --runs 384 --steps 240
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from torch import Tensor

from glance_core.allocator import keep_freed_memory
from glance_core.errors import GlanceError
from glance_core.progress import Progress
from glance_core.tiny import load_evaluator
from glance_core.tiny.distillation import PairSettings, distill_pair, pair_method
from glance_core.tiny.examples import Examples, drawn, own_picture, with_noise
from glance_core.tiny.judging import Judge, Row, as_json, table
from glance_core.tiny.methods import SPLITS, Method, searched_control
from glance_core.tiny.painting import Painter, load_references, reference_prompts
from glance_core.training.objectives import Objective

FLOW_STEPS = 60
OBJECTIVES = tuple(str(each) for each in Objective if each is not Objective.FLOW_MATCHING)


def rows(options: argparse.Namespace) -> Iterator[tuple[Row, float | None]]:
    """Yield each row with the seconds that its training took."""
    painter, judged = Painter(), options.judged
    prompts, teacher = reference_prompts(judged), load_references(judged)
    judge = Judge(load_evaluator(), prompts.scenes, teacher)
    yield judge.teacher_row(), None
    for objective in objectives(Objective(options.objective), options.fold_guidance):
        control: Tensor | None = None
        for method, own in methods(objective, options):
            began = time.monotonic()
            outcome = distill_pair(painter, own, examples(own, options.prompts, options.runs)).outcome if own else None
            trained = time.monotonic() - began if own else None
            if own and outcome:
                method = pair_method(own, outcome, method.name)
            factors = outcome.factors if outcome else None
            with Progress(method.name, method.nfe * judged) as bar:
                began = time.monotonic()
                pictures = method.paint(painter, prompts, factors, lambda calls, bar=bar: bar.step(count=calls))
            control = pictures if control is None else control
            seconds = time.monotonic() - began
            yield judge.row(method.name, pictures, method.steps, method.nfe, seconds, control), trained


def objectives(chosen: Objective, fold_guidance: bool) -> tuple[Objective, ...]:
    """Return what to train: the chosen objective, and the paper's loss beside the default one."""
    if chosen is Objective.TEACHER_FORCED and not fold_guidance:
        return chosen, Objective.FLOW_MATCHING
    return (chosen,)


def methods(objective: Objective, options: argparse.Namespace) -> list[tuple[Method, PairSettings | None]]:
    """Return what to compare, and how each pair is trained. Gain is paired to the first."""
    steps = FLOW_STEPS if objective is Objective.FLOW_MATCHING else options.steps
    settings = [
        PairSettings(objective, fold_guidance=options.fold_guidance, steps=steps, seed=seed, checks=0)
        for seed in range(options.seeds)
    ]
    own = settings[0].student_steps
    untrained = [searched_control()]
    if not objective.is_rollout and not options.fold_guidance:
        count = len(own.split.steps)
        uniform = Method(f"base, {count} uniform", SPLITS[count]["uniform"])
        controls = untrained if objective is Objective.TEACHER_FORCED else []
        untrained = [uniform, *controls, Method("base, the pair's steps", own.split, own.base_cfg)]
    folded = ", guidance folded in" if options.fold_guidance else ""
    name = f"{objective}{folded}, {options.prompts} prompts"
    if objective is Objective.FLOW_MATCHING:
        name = "paper's loss, 1 picture"
    trained = [(Method(f"{name}, seed {each.seed}", own.split, own.cfg), each) for each in settings]
    return [*((method, None) for method in untrained), *trained]


def examples(settings: PairSettings, prompts: int, runs: int) -> Examples:
    """Return what to train on, by the seed.

    That is prompts of the training world with noise for at least `runs` runs of the teacher. For the paper's loss it is
    a picture of that world with its caption.
    """
    if settings.objective == Objective.FLOW_MATCHING:
        return own_picture(settings.seed)
    return with_noise(drawn(prompts, settings.seed), settings.seed, -(-runs // prompts))


def main() -> int:
    """Print the table or its JSON, and return the exit status."""
    options = _parser().parse_args()
    keep_freed_memory()
    try:
        found = list(rows(options))
    except GlanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = [row for row, _ in found]
    seconds = {row.method: round(trained, 1) for row, trained in found if trained is not None}
    if options.json:
        print(as_json(lines, trained_seconds=seconds, judged=options.judged, prompts=options.prompts))
        return 0
    print(table(lines))
    runs = ", ".join(f"{name} {value:g}" for name, value in seconds.items())
    print(f"seconds of training, with the teacher's runs: {runs}")
    return 0


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON instead of the table")
    add("--seeds", type=int, default=3, help="runs of each training (default 3)")
    objective_help = "(default teacher_forced, with the paper's loss beside it)"
    add("--objective", choices=OBJECTIVES, default=str(Objective.TEACHER_FORCED), help=objective_help)
    add("--fold-guidance", action="store_true", help="train pairs that sample without guidance")
    add("--prompts", type=int, default=16, help="to learn from (default 16)")
    add("--runs", type=int, default=160, help="runs of the teacher, shared among the prompts (default 160)")
    add("--judged", type=int, default=1024, help="unseen prompts (default 1024)")
    steps_help = "of each phase, or of both at once for an objective with a solver (default 50)"
    add("--steps", type=int, default=50, help=steps_help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
