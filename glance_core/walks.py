"""Walks of a base in few steps, and the moves by which the best is searched: teacher steps, the guidance of each, the second-order share.

A step without guidance costs one forward instead of two, so that a number of forwards can be spent on few guided steps or on more of which
some are not; guidance does little while the picture is still noise (Kynkaanniemi et al., arXiv 2404.07724).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from .errors import ScheduleError
from .solver import Solver, guided

_MOVES = (3, -3, 1, -1)


@dataclass(frozen=True)
class Walk:
    """A walk of the base: teacher steps (0-based), guidance (1: none), share of the second-order correction; weights: of each step's
    guidance, what it adds being multiplied by them (none: all 1; 0: a step of one forward)."""

    steps: tuple[int, ...]
    guidance: float
    coefficient: float = 0.0
    weights: tuple[float, ...] = ()

    @property
    def scales(self) -> tuple[float, ...]:
        """The guidance of each step."""
        return tuple(1 + (self.guidance - 1) * weight for weight in self.weights or (1.0,) * len(self.steps))

    @property
    def forwards(self) -> int:
        """Model evaluations per picture."""
        return sum(1 if scale == 1 else 2 for scale in self.scales)

    def on(self, ladder: Sequence[float]) -> tuple[tuple[float, ...], Solver]:
        """Its sigmas, and the solver that walks them."""
        sigmas = (*(ladder[step] for step in self.steps), ladder[-1])
        return sigmas, guided(sigmas, self.scales, self.coefficient)


def refuse_forwards(forwards: int, guidance: float, teacher_steps: int) -> None:
    """Raises ScheduleError where no walk of at least two steps, and of at most half the teacher's, takes so many forwards."""
    most = teacher_steps // 2 * (1 if guidance == 1 else 2)
    if not 2 <= forwards <= most:
        raise ScheduleError(f"{forwards} forwards are no walk for this teacher; give 2 to {most}")


def even_steps(count: int, teacher_steps: int) -> tuple[int, ...]:
    """So many teacher steps (0-based), evenly spread from the first."""
    return tuple(round(i * teacher_steps / count) for i in range(count))


def even_walk(forwards: int, guidance: float, teacher_steps: int) -> Walk:
    """Even steps under the teacher's guidance; of an odd number of forwards, or of two, the first step takes but one."""
    if guidance == 1:
        return Walk(even_steps(forwards, teacher_steps), guidance)
    count = max(2, -(-forwards // 2))
    return Walk(even_steps(count, teacher_steps), guidance, weights=weights(count, forwards - count))


def kinds(forwards: int, guidance: float, teacher_steps: int) -> Iterator[tuple[int, int]]:
    """(steps, guided ones) that take so many forwards: all guided, or one or two more steps."""
    if guidance == 1:
        yield forwards, 0
        return
    for guides in range(forwards // 2, max(-1, forwards // 2 - 3), -1):
        if 2 <= forwards - guides <= teacher_steps // 2:
            yield forwards - guides, guides


def starts(count: int, guides: int, guidance: float, teacher_steps: int) -> Iterator[Walk]:
    """The usual walks of `count` steps, `guides` of them guided: even steps and steps that grow, under the teacher's guidance and less."""
    growing = tuple(round(teacher_steps * (0.6 * i / count + 0.3 * (i / count) ** 2)) for i in range(count))
    shares = (1.0, 0.8, 0.6) if 0 < guides == count else (0.8, 0.5) if guides else (0.0,)
    for steps in [even_steps(count, teacher_steps)] + ([growing] if len(set(growing)) == count else []):
        for share in shares:
            yield Walk(steps, 1 + share * (guidance - 1), 0.15, weights(count, guides) if guides else ())


def weights(count: int, guides: int) -> tuple[float, ...]:
    """Guidance on so many steps, of the others three quarters before them; () where all are guided."""
    first = round(0.75 * (count - guides))
    return () if guides == count else tuple(float(first <= i < first + guides) for i in range(count))


def neighbours(walk: Walk, teacher_steps: int, alike: bool = False) -> Iterator[Walk]:
    """One knob changed: a teacher step by 1 or 3, guidance by an eighth of what it adds, the second-order share, one step's guidance; or the
    guidance moved to the step beside. The number of forwards stays. alike: no step's guidance by itself."""
    for i in range(len(walk.steps) - 1, 0, -1):
        for move in _MOVES:
            steps = (*walk.steps[:i], walk.steps[i] + move, *walk.steps[i + 1 :])
            if all(a < b for a, b in zip(steps, (*steps[1:], teacher_steps), strict=True)):
                yield replace(walk, steps=steps)
    if walk.guidance != 1:
        for factor in (0.875, 1.125, 0.75, 1.25):
            yield replace(walk, guidance=1 + (walk.guidance - 1) * factor)
    for change in (-0.15, 0.15, -0.05, 0.05):
        yield replace(walk, coefficient=round(walk.coefficient + change, 2))
    if walk.guidance == 1 or alike:
        return
    each = walk.weights or (1.0,) * len(walk.steps)
    for i in range(len(each) - 1):
        if (each[i] == 0) != (each[i + 1] == 0):
            yield replace(walk, weights=(*each[:i], each[i + 1], each[i], *each[i + 2 :]))
    for i, factor in ((i, factor) for i in range(len(each)) for factor in (0.85, 1.15) if each[i] != 0):
        yield replace(walk, weights=(*each[:i], each[i] * factor, *each[i + 1 :]))


def climb(walk: Walk, gain: Callable[[Walk, Walk], float], teacher_steps: int, goes_on: Callable[[], bool], alike: bool = False) -> Walk:
    """One knob at a time and from every walk that is nearer on, a knob that helped first; until none does, or `goes_on` says no. gain: of
    the first walk over the second, above 0 where it is nearer."""
    moves, at = list(neighbours(walk, teacher_steps, alike)), 0
    left = len(moves)
    while left:
        if not goes_on():
            return walk
        other = moves[at % len(moves)]
        if gain(other, walk) > 0:
            walk, moves = other, list(neighbours(other, teacher_steps, alike))
            left = len(moves)
        else:
            at, left = at + 1, left - 1
    return walk


def nearest(walks: Iterable[Walk], gain: Callable[[Walk, Walk], float]) -> Walk:
    """That which none of those after it gains over."""
    return reduce(lambda best, other: other if gain(other, best) > 0 else best, walks)
