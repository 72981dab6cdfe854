"""Search over step plans: teacher steps, the guidance of each, and the share of the second-order correction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import reduce

from ..schedule.plan import StepPlan, even_steps, guidance_weights

_STEP_MOVES = (3, -3, 1, -1)  # teacher steps
_GUIDANCE_FACTORS = (0.875, 1.125, 0.75, 1.25)  # of what guidance adds
_COEFFICIENT_MOVES = (-0.15, 0.15, -0.05, 0.05)
_WEIGHT_FACTORS = (0.85, 1.15)  # of one step's guidance

_START_COEFFICIENT = 0.15  # few guided steps do best between Euler (0) and second order (1)
_START_SHARES = {"all guided": (1.0, 0.8, 0.6), "some guided": (0.8, 0.5), "none guided": (0.0,)}
_MOST_UNGUIDED = 3  # plans with up to two more steps than if all were guided


def step_counts(nfe: int, guidance: float, teacher_steps: int) -> Iterator[tuple[int, int]]:
    """Yield (steps, guided steps) that take this many model calls: all guided, or one or two steps more."""
    if guidance == 1:
        yield nfe, 0
        return
    for guided in range(nfe // 2, max(-1, nfe // 2 - _MOST_UNGUIDED), -1):
        if 2 <= nfe - guided <= teacher_steps // 2:
            yield nfe - guided, guided


def starting_plans(count: int, guided: int, guidance: float, teacher_steps: int) -> Iterator[StepPlan]:
    """Yield the usual plans of `count` steps: even and growing steps, under the teacher's guidance and under less."""
    growing = tuple(round(teacher_steps * (0.6 * i / count + 0.3 * (i / count) ** 2)) for i in range(count))
    kind = "all guided" if 0 < guided == count else "some guided" if guided else "none guided"
    weights = guidance_weights(count, guided) if guided else ()
    for steps in [even_steps(count, teacher_steps)] + ([growing] if len(set(growing)) == count else []):
        for share in _START_SHARES[kind]:
            yield StepPlan(steps, 1 + share * (guidance - 1), _START_COEFFICIENT, weights)


def neighbours(plan: StepPlan, teacher_steps: int, alike: bool = False) -> Iterator[StepPlan]:
    """Yield plans that differ in one setting and take as many model calls.

    Args:
        alike: keep one guidance for all steps.
    """
    for i in range(len(plan.steps) - 1, 0, -1):
        for move in _STEP_MOVES:
            steps = (*plan.steps[:i], plan.steps[i] + move, *plan.steps[i + 1 :])
            if all(a < b for a, b in zip(steps, (*steps[1:], teacher_steps), strict=True)):
                yield replace(plan, steps=steps)
    if plan.guidance != 1:
        for factor in _GUIDANCE_FACTORS:
            yield replace(plan, guidance=1 + (plan.guidance - 1) * factor)
    for change in _COEFFICIENT_MOVES:
        yield replace(plan, coefficient=round(plan.coefficient + change, 2))
    if plan.guidance == 1 or alike:
        return
    weights = plan.weights or (1.0,) * len(plan.steps)
    for i in range(len(weights) - 1):
        if (weights[i] == 0) != (weights[i + 1] == 0):
            yield replace(plan, weights=(*weights[:i], weights[i + 1], weights[i], *weights[i + 2 :]))
    for i, weight in enumerate(weights):
        for factor in _WEIGHT_FACTORS if weight != 0 else ():
            yield replace(plan, weights=(*weights[:i], weight * factor, *weights[i + 1 :]))


Gain = Callable[[StepPlan, StepPlan], float]  # of the first plan over the second; above 0 means nearer to the teacher


def climb(plan: StepPlan, gain: Gain, teacher_steps: int, go_on: Callable[[], bool], alike: bool = False) -> StepPlan:
    """Move to a better neighbour, one setting at a time, until none is better or `go_on` returns False.

    After a move the search continues with the setting that helped.
    """
    candidates, at = list(neighbours(plan, teacher_steps, alike)), 0
    left = len(candidates)
    while left:
        if not go_on():
            return plan
        candidate = candidates[at % len(candidates)]
        if gain(candidate, plan) > 0:
            plan, candidates = candidate, list(neighbours(candidate, teacher_steps, alike))
            left = len(candidates)
        else:
            at, left = at + 1, left - 1
    return plan


def best_plan(plans: Iterable[StepPlan], gain: Gain) -> StepPlan:
    """Return the plan that none of those after it gains over."""
    return reduce(lambda best, plan: plan if gain(plan, best) > 0 else best, plans)
