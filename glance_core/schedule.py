"""Teacher ladders, and the few of their steps that a Glance pair walks.

A ladder is a tuple of N + 1 falling sigmas that ends with 0; sigma is the noise level, 1 = pure noise for flow models.
Teacher steps are counted from 0 inside the code and from 1 in everything a person reads or types.
Source: arXiv 2512.02899 section 4 (the split) and the scheduler configurations of Qwen-Image and FLUX.1-dev (the ladders).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ScheduleError

TEACHER_STEPS = 50
MOST_TEACHER_STEPS = 10_000
BOUNDARY_STEP = 10  # 0-based teacher step at which Fast takes over (the paper's step 11)
PRESETS = {"5+5": (5, 5), "3+5": (3, 5), "5+10": (5, 10)}
SLOW, FAST = "slow", "fast"
_MANY_TOKENS = 10**9


@dataclass(frozen=True)
class DynamicShift:
    """A shift exp(mu) whose mu is linear in the token count, and the last sigma to stretch to (None: no stretch)."""

    tokens: tuple[int, int]
    mu: tuple[float, float]
    terminal: float | None

    def at(self, tokens: int) -> float:
        """The shift at this token count. Raises ScheduleError where it leaves the range of numbers."""
        (t0, t1), (m0, m1) = self.tokens, self.mu
        mu = m0 + min(tokens - t0, _MANY_TOKENS) * (m1 - m0) / (t1 - t0)
        if mu > 30:  # sigmas that differ by less than float64 can tell
            raise ScheduleError(f"{tokens} tokens are too many for a ladder; make the picture smaller")
        return math.exp(mu)


DYNAMIC_SHIFTS = {
    "qwen-image": DynamicShift(tokens=(256, 8192), mu=(0.5, 0.9), terminal=0.02),
    "flux": DynamicShift(tokens=(256, 4096), mu=(0.5, 1.15), terminal=None),
}
LADDERS = (*DYNAMIC_SHIFTS, "shift", "model")


def image_tokens(width: int, height: int) -> int:
    """Tokens of a width x height image (pixels): one per 16 x 16 patch, as Qwen-Image and FLUX count them."""
    tokens = (width // 16) * (height // 16)
    if width < 1 or height < 1 or tokens < 1:
        raise ScheduleError(f"an image of {width}x{height} pixels has no 16x16 patch; give at least 16x16")
    return tokens


def shifted_ladder(steps: int, shift: float, terminal: float | None = None) -> tuple[float, ...]:
    """`steps` falling sigmas and a final 0: s = 1, ..., 1/steps; sigma = shift / (shift + 1/s - 1).

    With `terminal`, 1 - sigma is rescaled so that the last sigma before 0 is `terminal` (Qwen-Image's stretch).
    """
    if not 1 <= steps <= MOST_TEACHER_STEPS:
        raise ScheduleError(f"a teacher ladder needs at least 1 step and at most {MOST_TEACHER_STEPS}, got {steps}")
    if not (math.isfinite(shift) and shift > 0):
        raise ScheduleError(f"shift must be a positive number, got {shift}")
    uniform = [1 - i * (1 - 1 / steps) / (steps - 1) for i in range(steps)] if steps > 1 else [1.0]
    sigmas = [shift / (shift + (1 / s - 1)) for s in uniform]
    if terminal is not None and steps > 1:
        stretch = (1 - terminal) / (1 - sigmas[-1])
        sigmas = [1 - (1 - sigma) * stretch for sigma in sigmas]
    return (*sigmas, 0.0)


def teacher_ladder(
    kind: str,
    steps: int = TEACHER_STEPS,
    *,
    tokens: int | None = None,
    shift: float | None = None,
    sigmas: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """The teacher's `steps` + 1 sigmas.

    kind: `qwen-image` or `flux` (need `tokens`), `shift` (needs `shift`), `model` (needs `sigmas`, the host's own,
    ending with 0). Raises ScheduleError for an unknown kind, a missing argument or sigmas that do not fall to 0.
    """
    if kind in DYNAMIC_SHIFTS:
        if tokens is None or tokens < 1:
            raise ScheduleError(f"the {kind} ladder depends on the picture's size: tokens must be at least 1, got {tokens}")
        dynamic = DYNAMIC_SHIFTS[kind]
        return shifted_ladder(steps, dynamic.at(tokens), dynamic.terminal)
    if kind == "shift":
        if shift is None:
            raise ScheduleError("the shift ladder needs a shift, for example 3.0")
        return shifted_ladder(steps, shift)
    if kind == "model":
        if sigmas is None:
            raise ScheduleError("the model ladder needs the model's own sigmas; it exists only where a model is loaded")
        if len(sigmas) != steps + 1:
            raise ScheduleError(f"the model gave {len(sigmas) - 1} teacher steps where {steps} were asked for; choose another step count")
        return check_falling(sigmas)
    raise ScheduleError(f"unknown ladder {kind!r}; choose one of {', '.join(LADDERS)}")


def check_falling(sigmas: Sequence[float]) -> tuple[float, ...]:
    """The sigmas as floats, if they are finite, strictly falling and end with 0; else ScheduleError."""
    values = tuple(float(s) for s in sigmas)
    if len(values) < 2:
        raise ScheduleError(f"a ladder needs at least one sigma and a final 0, got {list(values)}")
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ScheduleError(f"sigma {i + 1} of the ladder is {value}; every sigma must be a finite number")
    for i, (a, b) in enumerate(itertools.pairwise(values)):
        if b >= a:
            raise ScheduleError(f"the ladder must fall: sigma {i + 2} is {b:.6g} after {a:.6g}")
    if values[-1] != 0:
        raise ScheduleError(f"the ladder must end with 0, it ends with {values[-1]:.6g}")
    return values


@dataclass(frozen=True)
class Split:
    """Teacher steps (0-based, rising) that Slow and Fast walk, out of `teacher_steps`."""

    slow: tuple[int, ...]
    fast: tuple[int, ...]
    teacher_steps: int = TEACHER_STEPS

    def __post_init__(self) -> None:
        for name, steps in ((SLOW, self.slow), (FAST, self.fast)):
            if not steps:
                raise ScheduleError(f"the {name} phase is empty ({self}); give each phase at least one teacher step")
        steps = (*self.slow, *self.fast)
        for step in steps:
            if not 0 <= step < self.teacher_steps:
                raise ScheduleError(f"teacher step {step + 1} is out of range 1..{self.teacher_steps} ({self})")
        for a, b in itertools.pairwise(steps):
            if b <= a:
                raise ScheduleError(f"teacher steps must rise, but {b + 1} follows {a + 1} ({self}); use fewer steps per phase")

    def __str__(self) -> str:
        slow, fast = (",".join(str(s + 1) for s in steps) for steps in (self.slow, self.fast))
        return f"{slow}|{fast}"

    @property
    def steps(self) -> tuple[int, ...]:
        return (*self.slow, *self.fast)


def split_steps(slow: int, fast: int, teacher_steps: int = TEACHER_STEPS, boundary: int | None = None) -> Split:
    """The paper's split: `slow` even steps before `boundary`, `fast` from it to the last (arXiv 2512.02899, section 4).

    Slow takes round(linspace(0, b, slow + 1))[:-1], Fast min(round(linspace(b, T, fast)), T - 1), both 0-based.
    `boundary` defaults to a fifth of the teacher's steps, the paper's 10 of 50.
    """
    if boundary is None:
        boundary = default_boundary(teacher_steps)
    if slow < 1 or fast < 1:
        raise ScheduleError(f"a split of {slow}+{fast} leaves a phase empty; give slow_steps and fast_steps at least 1 each")
    if not 0 < boundary < teacher_steps:
        raise ScheduleError(
            f"the boundary step {boundary} must lie between 1 and {teacher_steps - 1}, inside the teacher's {teacher_steps} steps"
        )
    if slow > boundary:
        raise ScheduleError(f"slow_steps = {slow} does not fit before teacher step {boundary + 1}; use at most {boundary}")
    slow_steps = tuple(round(boundary * i / slow) for i in range(slow))
    fast_steps = _fast_steps(fast, boundary, teacher_steps)
    if len(set(fast_steps)) < fast:
        room = 2 * (teacher_steps - boundary) // 3 + 2  # closer than 1.5, the last two would round to one
        most = next(n for n in range(min(fast, room), 0, -1) if len(set(_fast_steps(n, boundary, teacher_steps))) == n)
        raise ScheduleError(
            f"fast_steps = {fast} does not fit between teacher steps {boundary + 1} and {teacher_steps}; use at most {most}"
        )
    return Split(slow_steps, fast_steps, teacher_steps)


def default_boundary(teacher_steps: int) -> int:
    """0-based teacher step where Fast takes over: a fifth of the way, the paper's 10 of 50."""
    return max(1, round(teacher_steps * BOUNDARY_STEP / TEACHER_STEPS))


def _fast_steps(count: int, boundary: int, teacher_steps: int) -> tuple[int, ...]:
    rest = teacher_steps - boundary
    return tuple(min(round(boundary + rest * i / max(count - 1, 1)), teacher_steps - 1) for i in range(count))


def parse_steps(text: str, teacher_steps: int = TEACHER_STEPS) -> Split:
    """A split written 1-based, Slow before the bar and Fast behind it: `1,3,5,7,9|11,21,31,41,50`."""
    halves = text.split("|")
    if len(halves) != 2:
        raise ScheduleError(f"teacher steps {text!r} need exactly one '|' between Slow and Fast, as in 1,3,5,7,9|11,21,31,41,50")
    phases = []
    for half in halves:
        words = [word.strip() for word in half.replace(" ", ",").split(",") if word.strip()]
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) < 7):
                raise ScheduleError(
                    f"teacher steps {text!r} hold {word!r}, which is no step number; write them as 1,3,5,7,9|11,21,31,41,50"
                )
        phases.append(tuple(int(word) - 1 for word in words))
    return Split(phases[0], phases[1], teacher_steps)


def parse_split(text: str) -> tuple[int, int]:
    """`5+5` as (5, 5)."""
    words = [word.strip() for word in text.split("+")]
    if len(words) != 2 or not all(w.isascii() and w.isdigit() and len(w) < 7 for w in words):
        raise ScheduleError(f"split {text[:40]!r} is not of the form SLOW+FAST, for example {' or '.join(PRESETS)}")
    return int(words[0]), int(words[1])


@dataclass(frozen=True)
class PhaseSchedule:
    """The ladder that is walked and where on it Slow ends.

    sigmas: N + 1 strictly falling values, the last 0. slow_steps: how many of the N forwards are Slow's.
    partial: an image-to-image ladder, which may start so low that no Slow step is left.
    """

    sigmas: tuple[float, ...]
    slow_steps: int
    partial: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", check_falling(self.sigmas))
        lowest = 0 if self.partial else 1
        if not lowest <= self.slow_steps < self.steps:
            raise ScheduleError(
                f"slow_steps = {self.slow_steps} of {self.steps} leaves a phase empty; it must lie between {lowest} and {self.steps - 1}"
            )

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def boundary(self) -> float:
        """The first sigma that belongs to Fast."""
        return self.sigmas[self.slow_steps]

    @property
    def threshold(self) -> float:
        """Slow iff sigma > threshold; see `threshold_between`."""
        return threshold_between(self.sigmas[self.slow_steps - 1] if self.slow_steps else math.inf, self.boundary)

    def phase(self, sigma: float) -> str:
        """`slow` iff sigma > boundary, with room for a boundary that was rounded to float32 or bfloat16."""
        return SLOW if sigma > self.threshold else FAST

    def phases(self) -> tuple[str, ...]:
        """The phase of each forward of a first-order sampler."""
        return tuple(self.phase(sigma) for sigma in self.sigmas[:-1])


def threshold_between(last_slow: float, boundary: float) -> float:
    """A sigma just above `boundary` that no rounding of `boundary` reaches and that stays below `last_slow`.

    bfloat16 rounds by at most 2^-9 of the value; the threshold leaves twice that, or half the gap where the ladder is finer.
    """
    return boundary + min(boundary * 2**-8, (last_slow - boundary) / 2)


def threshold_at(ladder: Sequence[float], step: int) -> float:
    """The threshold of a phase that begins at this 0-based teacher step of the ladder; step is at least 1."""
    return threshold_between(ladder[step - 1], ladder[step])


def build_schedule(ladder: Sequence[float], split: Split, denoise: float = 1.0) -> PhaseSchedule:
    """Walk the teacher steps of `split` on `ladder` (its N + 1 sigmas).

    denoise < 1 (image to image) enters the ladder at teacher step int(T - T * denoise), where the teacher itself would (diffusers'
    image-to-image pipelines), keeps the steps below it and their phases, and so never needs more forwards than the whole walk.
    """
    if len(ladder) - 1 != split.teacher_steps:
        raise ScheduleError(f"the split {split} counts {split.teacher_steps} teacher steps, the ladder has {len(ladder) - 1}")
    if not 0 < denoise <= 1:
        raise ScheduleError(f"denoise must be above 0 and at most 1, got {denoise}")
    first = int(split.teacher_steps - split.teacher_steps * denoise)
    steps = (first, *(step for step in split.steps if step > first))
    slow = sum(step < split.fast[0] for step in steps)
    if first < split.steps[0]:  # the split starts below the ladder's top: so does the walk, unless denoise says lower
        steps, slow = split.steps, len(split.slow)
    return PhaseSchedule((*(ladder[step] for step in steps), 0.0), slow, partial=denoise < 1)
