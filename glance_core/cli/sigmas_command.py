"""python -m glance_core sigmas: print the sigmas of a Glance schedule."""

from __future__ import annotations

import argparse
import json

from ..errors import ScheduleError
from ..models import row_of_rule
from ..schedule.phase_schedule import build_schedule
from ..schedule.sigmas import FIXED_SHIFT, HOST, LISTED, SIGMA_RULES, TEACHER_STEPS, image_tokens, teacher_sigmas
from ..schedule.split import parse_split, parse_steps, split_steps


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    rules = [rule for rule in SIGMA_RULES if rule not in (HOST, LISTED)]
    parser.add_argument("--model", required=True, choices=rules, help="the teacher's sigma rule")
    parser.add_argument(
        "--width", type=int, default=1024, help="of the picture in pixels, rounded down to whole tokens (default 1024)"
    )
    parser.add_argument("--height", type=int, default=1024, help="likewise")
    parser.add_argument("--frames", type=int, help="of a video, for rules that count them (default 1)")
    parser.add_argument("--shift", type=float, help="for --model shift, for example 3.0")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", default="5+5", help="steps of Slow + Fast (default 5+5)")
    which.add_argument("--steps", help="teacher steps, counted from 1: 1,3,5,7,9|11,21,31,41,50")
    parser.add_argument("--teacher-steps", type=int, default=TEACHER_STEPS, help="steps of the teacher (default 50)")
    parser.add_argument(
        "--boundary-step", type=int, help="0-based teacher step where Fast begins (default: a fifth of them)"
    )
    parser.add_argument("--denoise", type=float, default=1.0, help="below 1: image to image (default 1.0)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _tokens(options: argparse.Namespace) -> int:
    row, frames = row_of_rule(options.model), options.frames
    tokens = image_tokens(options.width, options.height, row.pixels_per_token)
    if frames is None:
        return tokens
    if not row.frames_per_latent:
        raise ScheduleError(f"--frames has no effect on the {options.model} sigmas; leave it out")
    if frames < 1:
        raise ScheduleError(f"--frames is {frames}; a video has at least 1")
    latents = 1 + (int(frames) - 1) // row.frames_per_latent
    return tokens * latents


def run(options: argparse.Namespace) -> None:
    """Print the schedule. Raises ScheduleError."""
    tokens = _tokens(options)
    teacher = teacher_sigmas(options.model, options.teacher_steps, tokens=tokens, shift=options.shift)
    if options.shift is not None and options.model != FIXED_SHIFT:
        raise ScheduleError(
            f"--shift {options.shift:g} has no effect on the {options.model} sigmas; leave it out or use --model shift"
        )
    if options.steps is not None and options.boundary_step is not None:
        raise ScheduleError("--steps sets the boundary itself, at the bar; leave out --boundary-step")
    if options.steps is not None:
        split = parse_steps(options.steps, options.teacher_steps)
    else:
        split = split_steps(*parse_split(options.split), options.teacher_steps, options.boundary_step)
    schedule = build_schedule(teacher, split, options.denoise)
    if options.json:
        facts = {
            "model": options.model,
            "width": options.width,
            "height": options.height,
            "tokens": tokens,
            "teacher_steps": options.teacher_steps,
            "steps": str(split),
            "denoise": options.denoise,
            "sigmas": list(schedule.sigmas),
            "slow_steps": schedule.slow_steps,
            "boundary": schedule.boundary,
            "phases": list(schedule.phases()),
        }
        print(json.dumps(facts))
        return
    size = f"{options.width}x{options.height} ({tokens} tokens)"
    print(f"{options.model} at {size}, teacher steps {split} of {options.teacher_steps}")
    for i, (sigma, phase) in enumerate(zip(schedule.sigmas, schedule.phases(), strict=False), 1):
        print(f"{i:4d}  {sigma:.6f}  {phase}")
    print(f"{schedule.steps + 1:4d}  {0:.6f}")
    print(f"slow_steps {schedule.slow_steps}, boundary {schedule.boundary:.6f}")
