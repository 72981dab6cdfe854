"""python -m glance_core demo | train | ladder | inspect | convert"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import schedule, train_command
from .errors import AdapterError, GlanceError, ScheduleError, printable


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no ± shows a question mark
    try:
        options.run(options)
    except GlanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m glance_core", description="Glance without ComfyUI: a demo, training, ladders, adapter files."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a pair for the embedded model and paint with it, beside its rivals")
    demo.add_argument("--seconds", type=float, default=60, help="how long to train, on two cores (default 60)")
    demo.add_argument("--out", type=Path, default=Path("glance_demo"), help="folder for the picture and the pair (default glance_demo)")
    demo.add_argument("--seed", type=int, default=0, help="two runs with one seed give the same numbers (default 0)")
    demo.add_argument("--judged", type=int, default=256, metavar="N", help="unseen prompts to compare on (default 256)")
    demo.add_argument("--json", action="store_true", help="print JSON")
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="train a pair for the embedded model on your prompts or on one picture")
    train_command.add_options(train)
    train.set_defaults(run=_train)

    ladder = commands.add_parser("ladder", help="print the sigmas that a Glance pair walks")
    ladder.add_argument("--model", required=True, choices=[k for k in schedule.LADDERS if k != "model"], help="the teacher's ladder")
    ladder.add_argument("--width", type=int, default=1024, help="of the picture, in pixels, rounded down to 16 (default 1024)")
    ladder.add_argument("--height", type=int, default=1024, help="likewise")
    ladder.add_argument("--shift", type=float, help="for --model shift, for example 3.0")
    which = ladder.add_mutually_exclusive_group()
    which.add_argument("--split", default="5+5", help="steps of Slow + Fast (default 5+5)")
    which.add_argument("--steps", help="explicit teacher steps, counted from 1: 1,3,5,7,9|11,21,31,41,50")
    ladder.add_argument("--teacher-steps", type=int, default=schedule.TEACHER_STEPS, help="steps of the teacher (default 50)")
    ladder.add_argument("--boundary-step", type=int, help="0-based teacher step where Fast begins (default: a fifth of them)")
    ladder.add_argument("--denoise", type=float, default=1.0, help="below 1: image to image (default 1.0)")
    ladder.add_argument("--json", action="store_true", help="print JSON")
    ladder.set_defaults(run=_ladder)

    inspect = commands.add_parser("inspect", help="print what the loader would do with an adapter, or with a pair (Slow first)")
    inspect.add_argument("files", nargs="+", metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)

    convert = commands.add_parser("convert", help="rewrite any readable adapter in the project's format, or for diffusers")
    convert.add_argument("input", metavar="IN")
    convert.add_argument("output", metavar="OUT", help="a new .safetensors file")
    convert.add_argument("--phase", choices=[schedule.SLOW, schedule.FAST], help="what the adapter was trained for")
    convert.add_argument("--alpha", type=float, help="the alpha it was trained with; replaces what the file says")
    convert.add_argument(
        "--layout", default="comfyui", choices=["comfyui", "diffusers"], help="who is to read it (default comfyui, and this pack)"
    )
    convert.set_defaults(run=_convert)
    return parser


def _demo(options: argparse.Namespace) -> None:
    _need_packages("the demo")
    from .demo import demo

    print(demo(options.seconds, options.out, options.seed, options.judged, as_text=not options.json))


def _train(options: argparse.Namespace) -> None:
    _need_packages("training")
    train_command.run(options)


def _need_packages(what: str) -> None:
    for package in ("peft", "numpy", "PIL"):
        if importlib.util.find_spec(package) is None:
            raise GlanceError(f"{what} needs {package.replace('PIL', 'pillow')}; install it with: pip install peft numpy pillow")


def _ladder(options: argparse.Namespace) -> None:
    tokens = schedule.image_tokens(options.width, options.height)
    teacher = schedule.teacher_ladder(options.model, options.teacher_steps, tokens=tokens, shift=options.shift)
    if options.shift is not None and options.model != "shift":
        raise ScheduleError(f"--shift {options.shift:g} has no effect on the {options.model} ladder; leave it out or choose --model shift")
    if options.steps is not None and options.boundary_step is not None:
        raise ScheduleError("--steps places the boundary itself, at the bar; leave out --boundary-step")
    if options.steps is not None:
        split = schedule.parse_steps(options.steps, options.teacher_steps)
    else:
        split = schedule.split_steps(*schedule.parse_split(options.split), options.teacher_steps, options.boundary_step)
    walked = schedule.build_schedule(teacher, split, options.denoise)
    if options.json:
        print(json.dumps({
            "model": options.model, "width": options.width, "height": options.height, "tokens": tokens,
            "teacher_steps": options.teacher_steps, "steps": str(split), "denoise": options.denoise,
            "sigmas": list(walked.sigmas), "slow_steps": walked.slow_steps, "boundary": walked.boundary, "phases": list(walked.phases()),
        }))  # fmt: skip
        return
    print(f"{options.model} at {options.width}x{options.height} ({tokens} tokens), teacher steps {split} of {options.teacher_steps}")
    for i, (sigma, phase) in enumerate(zip(walked.sigmas, walked.phases(), strict=False), 1):
        print(f"{i:4d}  {sigma:.6f}  {phase}")
    print(f"{walked.steps + 1:4d}  {0:.6f}")
    print(f"slow_steps {walked.slow_steps}, boundary {walked.boundary:.6f}")


def _inspect(options: argparse.Namespace) -> None:
    from .lora_file import check_pair, read_adapter  # torch is heavy: `ladder` does without it

    if len(options.files) > 2:
        raise AdapterError(f"inspect takes one adapter or a pair, got {len(options.files)} files; give Slow first, then Fast")
    adapters = [read_adapter(path) for path in options.files]
    notes = check_pair(*adapters) if len(adapters) == 2 else ()
    if options.json:
        print(json.dumps({"files": [a.describe() for a in adapters], "pair": list(notes)}))
        return
    for adapter in adapters:
        print("\n".join(_lines(adapter.describe())))
    for note in notes:
        print(f"pair: {note}")


def _lines(described: dict[str, Any]) -> list[str]:
    lines = [described["file"]]
    for name, value in described.items():
        if name == "file" or value is None or value == []:
            continue
        if name in ("assumed", "skipped", "remarks"):
            lines += [f"  {name:13s} {item}" for item in value]
            continue
        shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, list) else value
        lines.append(f"  {name:13s} {shown}")
    return [printable(line) for line in lines]


def _convert(options: argparse.Namespace) -> None:
    from .lora_file import read_adapter, with_alpha
    from .lora_write import DIFFUSERS, convert

    if Path(options.output).suffix != ".safetensors":
        raise AdapterError(f"{options.output}: an adapter is written as safetensors; let the name end with .safetensors")
    adapter = read_adapter(options.input)
    if options.alpha is not None:
        adapter = with_alpha(adapter, options.alpha)
    for note in adapter.assumed:
        print(f"assumed: {note}", file=sys.stderr)
    if options.layout == DIFFUSERS and adapter.trained.solver:
        print("note: this pair was trained with a solver of its own, which diffusers does not walk", file=sys.stderr)
    print(convert(adapter, options.output, options.phase, options.layout))


if __name__ == "__main__":
    sys.exit(main())
