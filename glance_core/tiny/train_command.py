"""python -m glance_core train: train a pair for the embedded model, and compare it with the base.

The run is kept while it goes, so that a stop costs little.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..allocator import keep_freed_memory
from ..errors import GlanceError
from ..evaluation.comparison import PairedComparison
from ..lora.pair_writer import check_name, make_folder
from ..schedule.split import FAST, SLOW
from ..training.distill import Distilled
from ..training.history import History
from ..training.objectives import LEARN, OBJECTIVES, Objective
from ..training.run.run_dir import RunDir, find_run_dir
from .distillation import (
    Destination,
    PairSettings,
    compare_to_base,
    distill_pair,
    write_everything,
    write_pair,
)
from .examples import Examples, drawn, pictured, read_prompts, with_noise
from .painting import Painter, load_references
from .words import parse

PROMPTS = 64
MOST_HELD_OUT = 10_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add(
        "--objective",
        choices=OBJECTIVES,
        default=str(Objective.END_TO_END),
        help="end_to_end and on_policy train on the student's own runs, with a solver, the second in the memory of one "
        "step; teacher_forced trains single steps of the teacher's trajectory; flow_matching is the paper's loss on "
        "one picture (default end_to_end)",
    )
    add(
        "--fold-guidance",
        action="store_true",
        help="train the pair to sample without guidance, at half the model calls",
    )
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=f"a text file with one caption per line (default: {PROMPTS} drawn ones)",
    )
    add("--caption", metavar="TEXT", help="the only prompt, or what the picture shows")
    add("--image", type=Path, metavar="FILE", help="the picture, for flow_matching")
    add("--noises", type=int, help="runs of the teacher for each prompt (default: enough for at least 192)")
    add(
        "--steps",
        type=int,
        default=120,
        help="of each phase, or of both at once for end_to_end and on_policy (default 120)",
    )
    add(
        "--model-calls",
        type=int,
        default=0,
        help="per picture of the pair (default 10, or 5 with --fold-guidance; flow_matching: the paper's 20)",
    )
    add("--learn", choices=LEARN, default="both", help="for end_to_end and on_policy (default both)")
    add("--rank", type=int, default=16, help="of the adapters (default 16)")
    add("--alpha", type=float, help="scales them by alpha / rank (default: the rank)")
    add(
        "--learning-rate",
        type=float,
        help="(default 2e-3; 3e-3 for end_to_end and on_policy; 5e-4 for flow_matching)",
    )
    add("--batch", type=int, help="examples per step (default 8; 4 for flow_matching)")
    add("--caption-dropout", type=float, default=0.0, help="share of examples that see the empty prompt (default 0)")
    add("--seed", type=int, default=0, help="two runs with one seed give the same numbers (default 0)")
    add("--save-every", type=int, default=20, help="steps between checkpoints; 0 saves only when stopped (default 20)")
    add("--judged", type=int, default=64, metavar="N", help="unseen prompts to compare pair and base on (default 64)")
    add(
        "--held-out",
        type=int,
        default=48,
        metavar="N",
        help="prompts that decide which of Slow, Fast and solver are kept; 0 keeps them all (default 48)",
    )
    add("--name", default="glance_tiny", help="of the files (default glance_tiny)")
    add("--out", type=Path, default=Path("glance_trained"), help="their folder (default glance_trained)")
    add(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="continue the unfinished run of this name"
    )
    add("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class _Report:
    """What a run gave. pair, everything: the files written."""

    settings: PairSettings
    found: Distilled
    comparison: PairedComparison
    pair: tuple[Path, Path]
    everything: tuple[Path, ...]
    examples: int
    seconds: float


def run(options: argparse.Namespace) -> None:
    """Train and write a pair.

    Raises:
        GlanceError: for what cannot be trained.
        KeyboardInterrupt: with a sentence on how to continue.
    """
    started = time.monotonic()
    check_name(options.name)
    settings = _settings(options)
    settings.training()
    examples = _examples(options)
    load_references(options.judged)
    if not (options.held_out == 0 or 2 <= options.held_out <= MOST_HELD_OUT):
        raise GlanceError(f"--held-out is {options.held_out}; use 2 to {MOST_HELD_OUT}, or 0 to keep everything")
    make_folder(options.out)
    run_dir = find_run_dir(options.out, options.name, options.resume)
    run_dir.sweep()
    keep_freed_memory()
    painter = Painter()
    with run_dir.alone():
        try:
            found = distill_pair(painter, settings, examples, run_dir)
            comparison = compare_to_base(painter, settings, found.kept, options.judged)
            destination = Destination(run_dir.folder, run_dir.name, examples)
            everything = write_everything(settings, found, destination)
            pair = write_pair(settings, found, destination, comparison)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_stopped(run_dir)) from None
        run_dir.remove()
    seconds = time.monotonic() - started
    report = _Report(settings, found, comparison, pair, everything, len(examples), seconds)
    print(_as_json(report) if options.json else _as_text(report))


def _settings(options: argparse.Namespace) -> PairSettings:
    return PairSettings(
        objective=options.objective,
        fold_guidance=options.fold_guidance,
        steps=options.steps,
        rank=options.rank,
        alpha=options.alpha,
        learning_rate=options.learning_rate,
        batch=options.batch,
        caption_dropout=options.caption_dropout,
        seed=options.seed,
        save_every=options.save_every,
        nfe=options.model_calls,
        learn=options.learn,
        checks=options.held_out,
    )


def _as_json(report: _Report) -> str:
    ablation, comparison = report.found.ablation, report.comparison
    slow_steps = len(report.settings.student_steps.split.slow)
    facts = {
        "pair": [str(path) for path in report.pair],
        "everything": [str(path) for path in report.everything],
        "objective": str(report.settings.objective),
        "fold_guidance": report.settings.fold_guidance,
        "examples": report.examples,
        "steps": report.settings.steps,
        "seed": report.settings.seed,
        "psnr_pair": float(comparison.pair.mean()),
        "psnr_base": float(comparison.base.mean()),
        "gain": comparison.gain,
        "worse": comparison.worse,
        "comparison": str(comparison),
        "kept": list(ablation.kept) if ablation else None,
        "ablation": str(ablation) if ablation else None,
        "loss": _first_and_last(report.found.outcome.history, slow_steps),
        "seconds": report.seconds,
    }
    return json.dumps(facts)


def _as_text(report: _Report) -> str:
    split = report.settings.student_steps.split
    losses = _first_and_last(report.found.outcome.history, len(split.slow))
    lines = [f"{phase}  loss {first:.4f} at first, {last:.4f} at last" for phase, (first, last) in losses.items()]
    if report.found.ablation:
        lines.append(str(report.found.ablation))
    lines += [str(report.comparison), *map(str, report.pair)]
    if report.everything:
        lines += ["everything that was trained:", *map(str, report.everything)]
    cfg = report.settings.plan(1).sample_cfg(report.found.kept)
    lines.append(f"{report.seconds:.0f} s in all; sample with guidance {cfg:g} on teacher steps {split}")
    return "\n".join(lines)


def _examples(options: argparse.Namespace) -> Examples:
    """Return what to train on. Raises GlanceError for options that do not go together."""
    if options.objective == Objective.FLOW_MATCHING:
        if options.image is None or options.caption is None:
            raise GlanceError("--objective flow_matching learns from one picture; give --image FILE and --caption TEXT")
        for name in ("prompts", "noises"):
            if getattr(options, name) is not None:
                raise GlanceError(
                    f"--{name} is not for flow_matching, which learns from --image and --caption; leave it out"
                )
        return pictured(options.image, options.caption)
    if options.image is not None:
        raise GlanceError(
            f"--image is for flow_matching, but {options.objective} learns from the teacher alone; leave it out or use "
            f"--objective flow_matching"
        )
    if options.caption is not None and options.prompts is not None:
        raise GlanceError("--caption and --prompts both say what to train on; leave one out")
    if options.caption is not None:
        slots = torch.tensor([parse(options.caption)])
    else:
        slots = drawn(PROMPTS, options.seed) if options.prompts is None else read_prompts(options.prompts)
    return with_noise(slots, options.seed, options.noises)


def _first_and_last(history: History, slow_steps: int) -> dict[str, tuple[float, float]]:
    """Return for each phase the mean loss of the first and of the last tenth of its examples."""
    halves = {}
    for phase, steps in ((SLOW, range(slow_steps)), (FAST, range(slow_steps, len(history.steps)))):
        losses = [loss for step, loss in zip(history.steps, history.losses, strict=True) if step in steps]
        tenth = max(1, len(losses) // 10)
        halves[phase] = (sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth)
    return halves


def _stopped(run_dir: RunDir) -> str:
    if run_dir.run.exists():
        return f"stopped; the run is kept in {run_dir.run}, and the same command continues it"
    return "stopped before a training step was kept; the same command starts it again"
