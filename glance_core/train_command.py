"""python -m glance_core train: a pair for the embedded model, with a verdict; kept while it runs, so that a stop costs little."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GlanceError

if TYPE_CHECKING:
    from .draws import History
    from .run_files import RunFiles
    from .tiny.examples import Examples

OBJECTIVE_NAMES = {
    "trajectory": "trajectory", "fold_guidance": "trajectory, fold guidance", "aimed": "aimed", "aimed_fold_guidance": "aimed, fold guidance",
    "end_to_end": "end to end", "end_to_end_fold_guidance": "end to end, fold guidance", "flow_matching": "flow_matching",
}  # fmt: skip
PROMPTS = 64
MOST_HELD_OUT = 10_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--objective", choices=OBJECTIVE_NAMES, default="end_to_end",
                        help="end_to_end and aimed: the student's own walks beside the teacher's, with a solver of its own, the second in the memory "
                        "of one step; trajectory: single steps of the teacher's path; ..fold_guidance: the same in half the forwards; "
                        "flow_matching: the paper's loss on one picture (default end_to_end)")  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help=f"a text file with one caption per line (default: {PROMPTS} drawn ones)"
    )
    parser.add_argument("--caption", metavar="TEXT", help="the only prompt, or what is on the picture")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture, for flow_matching")
    parser.add_argument("--noises", type=int, help="runs of the teacher for each prompt (default: so many that there are at least 192)")
    parser.add_argument("--steps", type=int, default=120, help="of each phase, or of both at once on whole walks (default 120)")
    parser.add_argument(
        "--forwards",
        type=int,
        default=0,
        help="model evaluations a picture of the pair takes (default 10, or 5 where guidance is folded; flow_matching: the paper's 20)",
    )
    parser.add_argument("--learn", choices=("both", "adapters", "solver"), default="both", help="on whole walks (default both)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters (default 16)")
    parser.add_argument("--alpha", type=float, help="scales them by alpha / rank (default: the rank)")
    parser.add_argument("--learning-rate", type=float, help="(default 2e-3, on whole walks 3e-3, for flow_matching 5e-4)")
    parser.add_argument("--batch", type=int, help="examples per step (default 8, for flow_matching 4)")
    parser.add_argument("--caption-dropout", type=float, default=0.0, help="share of examples that see the empty prompt (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="two runs with one seed give the same numbers (default 0)")
    parser.add_argument(
        "--save-every", type=int, default=20, help="steps between checkpoints; 0: only where the run is stopped (default 20)"
    )
    parser.add_argument("--judged", type=int, default=64, metavar="N", help="unseen prompts to compare pair and base on (default 64)")
    parser.add_argument("--held-out", type=int, default=48, metavar="N",
                        help="prompts that decide which of Slow, Fast and solver are kept; 0: keep them all (default 48)")  # fmt: skip
    parser.add_argument("--name", default="glance_tiny", help="the files' (default glance_tiny)")
    parser.add_argument("--out", type=Path, default=Path("glance_trained"), help="their folder (default glance_trained)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with the unfinished run of this name")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    """Raises GlanceError for what cannot be trained, and KeyboardInterrupt with a sentence on how to go on."""
    from .lora_write import WHOLE, new_folder, refuse_name
    from .memory import keep_freed_memory
    from .run_files import run_files
    from .tiny.painting import Painter, load_references
    from .tiny.pair import PairSettings, guidance_of, judged, keep, train, write

    started = time.monotonic()
    refuse_name(options.name)
    settings = PairSettings(
        OBJECTIVE_NAMES[options.objective], options.steps, options.rank, options.alpha, options.learning_rate, options.batch,
        options.caption_dropout, options.seed, options.save_every, options.forwards, options.learn,
    )  # fmt: skip
    settings.training()
    examples = _examples(options)
    load_references(options.judged)
    if not (options.held_out == 0 or 2 <= options.held_out <= MOST_HELD_OUT):
        raise GlanceError(f"--held-out is {options.held_out}; give 2 to {MOST_HELD_OUT}, or 0 to keep all parts")
    new_folder(options.out)
    files = run_files(options.out, options.name, options.resume)
    files.sweep()
    keep_freed_memory()
    painter = Painter()
    with files.alone():
        try:
            done = train(painter, settings, examples, files)
            choice = keep(painter, settings, done, options.held_out) if options.held_out else None
            kept = choice.outcome if choice else done
            verdict = judged(painter, settings, kept, options.judged)
            whole: tuple[Path, ...] = ()
            if choice and choice.dropped:
                whole = write(done, settings, files.folder, f"{files.name}{WHOLE}", examples, choice=choice.whole)
            pair = write(kept, settings, files.folder, files.name, examples, verdict, choice)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_stopped(files)) from None
        files.remove()
    seconds, slow_steps = time.monotonic() - started, len(settings.way.split.slow)
    if options.json:
        print(json.dumps({
            "pair": [str(path) for path in pair], "whole": [str(path) for path in whole], "objective": settings.objective, "examples": len(examples), "steps": settings.steps,
            "seed": settings.seed, "psnr_pair": float(verdict.pair.mean()), "psnr_base": float(verdict.base.mean()), "gain": verdict.gain,
            "worse": verdict.worse, "verdict": str(verdict), "kept": list(choice.kept) if choice else None, "choice": str(choice) if choice else None, "loss": _ends(done.history, slow_steps), "seconds": seconds,
        }))  # fmt: skip
        return
    for phase, (first, last) in _ends(done.history, slow_steps).items():
        print(f"{phase}  loss {first:.4f} at first, {last:.4f} at last")
    if choice:
        print(choice)
    print(verdict)
    print("\n".join(map(str, pair)))
    if whole:
        print("all of it, as it was trained:", *whole, sep="\n")
    print(f"{seconds:.0f} s in all; guidance {guidance_of(settings, kept):g}, teacher steps {settings.way.split}")


def _examples(options: argparse.Namespace) -> Examples:
    """What the options say to train on. Raises GlanceError for options that do not go together."""
    import torch

    from .tiny.examples import drawn, pictured, read_prompts, with_noise
    from .tiny.words import parse

    if options.objective == "flow_matching":
        if options.image is None or options.caption is None:
            raise GlanceError("--objective flow_matching learns from one picture; give --image FILE and --caption TEXT")
        for name in ("prompts", "noises"):
            if getattr(options, name) is not None:
                raise GlanceError(f"--{name} is for the trajectory objectives, flow_matching has its --image and --caption; leave it out")
        return pictured(options.image, options.caption)
    if options.image is not None:
        raise GlanceError(
            f"--image is for flow_matching, {options.objective} learns from the teacher alone; leave it out or choose --objective flow_matching"
        )
    if options.caption is not None and options.prompts is not None:
        raise GlanceError("--caption and --prompts both say what to train on; leave one out")
    if options.caption is not None:
        slots = torch.tensor([parse(options.caption)])
    else:
        slots = drawn(PROMPTS, options.seed) if options.prompts is None else read_prompts(options.prompts)
    return with_noise(slots, options.seed, options.noises)


def _ends(history: History, slow_steps: int) -> dict[str, tuple[float, float]]:
    """By phase: the mean loss of the first and of the last tenth of the examples."""
    from .schedule import FAST, SLOW

    halves = {}
    for phase, points in ((SLOW, range(slow_steps)), (FAST, range(slow_steps, len(history.points)))):
        losses = [loss for point, loss in zip(history.points, history.losses, strict=True) if point in points]
        tenth = max(1, len(losses) // 10)
        halves[phase] = (sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth)
    return halves


def _stopped(files: RunFiles) -> str:
    if files.run.exists():
        return f"stopped; the run is kept in {files.run}, and the same command goes on with it"
    return "stopped before a step of the training was kept; the same command starts it again"
