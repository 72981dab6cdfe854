"""Runs of the teacher: its states along its own sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GlanceError
from .samplers import euler, multistep
from .velocity import RowVelocity, Tick


@dataclass(frozen=True)
class Teacher:
    """The full-step model.

    velocity: under the teacher's guidance. sigmas: its T + 1 noise levels. batch: pictures at a time.
    tick: tick(pictures) runs after every step of a batch.
    """

    velocity: RowVelocity
    sigmas: tuple[float, ...]
    batch: int = 64
    tick: Tick | None = None

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class TeacherTrajectory:
    """The teacher's states before some of its steps and at the end: states (P + 1, n, ...), sigmas (P + 1,), last 0."""

    states: Tensor
    sigmas: Tensor


@torch.no_grad()
def rollout(
    teacher: Teacher, noise: Tensor, steps: Sequence[int], visited_steps: Sequence[int] | None = None
) -> TeacherTrajectory:
    """Run the teacher from `noise` (n, ...) and return its states before `steps` and at the end.

    Args:
        steps: rising teacher steps, 0-based.
        visited_steps: take only these steps, with the second-order sampler, as a cheaper teacher. They include 0 and
            all of `steps`. None takes every step with Euler.
    """
    total = teacher.steps
    if not steps or steps[0] < 0 or steps[-1] >= total or list(steps) != sorted(set(steps)):
        raise GlanceError(f"teacher steps {list(steps)} must rise and lie from 0 to {total - 1}")
    taken = list(range(total)) if visited_steps is None else sorted(visited_steps)
    if not {0, *steps} <= set(taken) or taken[-1] >= total:
        raise GlanceError(f"the visited teacher steps {taken} must hold 0 and {list(steps)} and end below {total}")
    sampler = euler if visited_steps is None else multistep
    sigmas = [*(teacher.sigmas[step] for step in taken), teacher.sigmas[total]]
    states = noise.new_empty((len(steps) + 1, *noise.shape))  # (P + 1, n, ...)
    wanted = {taken.index(step): i for i, step in enumerate(steps)}
    for rows in torch.split(torch.arange(len(noise)), teacher.batch):

        def velocity(x: Tensor, sigma: float, rows: Tensor = rows) -> Tensor:
            out = teacher.velocity(x, noise.new_full((len(rows),), sigma), rows)
            if teacher.tick:
                teacher.tick(len(rows))
            return out

        def record(step: int, x: Tensor, sigma: float, rows: Tensor = rows) -> None:
            if step in wanted:
                states[wanted[step], rows] = x

        states[-1, rows] = sampler(velocity, noise[rows], sigmas, record)
    return TeacherTrajectory(states, noise.new_tensor([*(teacher.sigmas[step] for step in steps), 0.0]))
