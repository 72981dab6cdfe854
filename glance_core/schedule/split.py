"""Which of the teacher's steps Slow and Fast take.

Source: arXiv 2512.02899, section 4.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..errors import ScheduleError
from .sigmas import TEACHER_STEPS

BOUNDARY_STEP = 10  # 0-based teacher step at which Fast takes over (the paper's step 11)
PRESETS = {"5+5": (5, 5), "3+5": (3, 5), "5+10": (5, 10)}
SLOW, FAST = "slow", "fast"
_EXAMPLE = "1,3,5,7,9|11,21,31,41,50"
_MOST_DIGITS = 6


@dataclass(frozen=True)
class Split:
    """Rising 0-based teacher steps of Slow and of Fast. As text they count from 1: `1,3|11,50`."""

    slow: tuple[int, ...]
    fast: tuple[int, ...]
    teacher_steps: int = TEACHER_STEPS

    def __post_init__(self) -> None:
        for name, steps in ((SLOW, self.slow), (FAST, self.fast)):
            if not steps:
                raise ScheduleError(f"the {name} phase is empty ({self}); give each phase at least one teacher step")
        for step in self.steps:
            if not 0 <= step < self.teacher_steps:
                raise ScheduleError(f"teacher step {step + 1} is not in 1..{self.teacher_steps} ({self})")
        for a, b in itertools.pairwise(self.steps):
            if b <= a:
                raise ScheduleError(
                    f"teacher steps must rise, but {b + 1} follows {a + 1} ({self}); use fewer steps per phase"
                )

    def __str__(self) -> str:
        slow, fast = (",".join(str(s + 1) for s in steps) for steps in (self.slow, self.fast))
        return f"{slow}|{fast}"

    @property
    def steps(self) -> tuple[int, ...]:
        """All steps, Slow's first."""
        return (*self.slow, *self.fast)


def split_steps(slow: int, fast: int, teacher_steps: int = TEACHER_STEPS, boundary: int | None = None) -> Split:
    """Return the paper's split: `slow` even steps before `boundary` and `fast` even steps from it to the last.

    Slow takes round(linspace(0, b, slow + 1))[:-1], Fast min(round(linspace(b, T, fast)), T - 1), both 0-based.

    Args:
        boundary: Fast's first step, 0-based; by default a fifth of the teacher's steps, the paper's 10 of 50.
    """
    if boundary is None:
        boundary = default_boundary(teacher_steps)
    if slow < 1 or fast < 1:
        raise ScheduleError(f"a split of {slow}+{fast} leaves a phase empty; give slow_steps and fast_steps at least 1")
    if not 0 < boundary < teacher_steps:
        raise ScheduleError(
            f"the boundary step {boundary} must lie between 1 and {teacher_steps - 1}, inside the teacher's "
            f"{teacher_steps} steps"
        )
    if slow > boundary:
        raise ScheduleError(
            f"slow_steps is {slow}, but only {boundary} teacher steps come before Fast; use at most {boundary}"
        )
    slow_steps = tuple(round(boundary * i / slow) for i in range(slow))
    fast_steps = _fast_steps(fast, boundary, teacher_steps)
    if len(set(fast_steps)) < fast:
        room = 2 * (teacher_steps - boundary) // 3 + 2  # closer than 1.5, the last two would round to one
        most = next(n for n in range(min(fast, room), 0, -1) if len(set(_fast_steps(n, boundary, teacher_steps))) == n)
        raise ScheduleError(
            f"fast_steps is {fast}, which does not fit between teacher steps {boundary + 1} and {teacher_steps}; "
            f"use at most {most}"
        )
    return Split(slow_steps, fast_steps, teacher_steps)


def default_boundary(teacher_steps: int) -> int:
    """Return the 0-based teacher step where Fast takes over: a fifth of the way, the paper's 10 of 50."""
    return max(1, round(teacher_steps * BOUNDARY_STEP / TEACHER_STEPS))


def parse_steps(text: str, teacher_steps: int = TEACHER_STEPS) -> Split:
    """Read a split as `str(split)` writes it: 1-based, Slow before the bar and Fast after it."""
    halves = text.split("|")
    if len(halves) != 2:
        raise ScheduleError(f"teacher steps {text!r} need exactly one '|', between Slow and Fast. Write {_EXAMPLE}")
    phases = []
    for half in halves:
        words = [word.strip() for word in half.replace(" ", ",").split(",") if word.strip()]
        for word in words:
            if not _is_count(word):
                raise ScheduleError(f"{word!r} is not a step number. Write steps like {_EXAMPLE}")
        phases.append(tuple(int(word) - 1 for word in words))
    return Split(phases[0], phases[1], teacher_steps)


def parse_split(text: str) -> tuple[int, int]:
    """Read `5+5` as (5, 5)."""
    words = [word.strip() for word in text.split("+")]
    if len(words) != 2 or not all(map(_is_count, words)):
        raise ScheduleError(f"{text[:40]!r} is not a split. Write SLOW+FAST, for example {' or '.join(PRESETS)}")
    return int(words[0]), int(words[1])


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS


def _fast_steps(count: int, boundary: int, teacher_steps: int) -> tuple[int, ...]:
    rest = teacher_steps - boundary
    return tuple(min(round(boundary + rest * i / max(count - 1, 1)), teacher_steps - 1) for i in range(count))
