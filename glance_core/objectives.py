"""What the student is trained towards.

`trajectory`: at a point a of the ladder the target is the secant of the teacher's own path to the next point b,
(x_a - x_b) / (sigma_a - sigma_b), so that one Euler step lands where the teacher did. It needs prompts alone, no pictures.
Compare: progressive distillation (Salimans & Ho, arXiv 2202.00512) halves the teacher's steps in rounds; here all steps between two
points are taken at once, and guidance stays in the student.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import GlanceError

# velocity(x, sigma, rows): noise - data (B, ...) at noise levels sigma (B,), for the prompts of these rows of the training set.
RowVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
Progressed = Callable[[int], None]


@dataclass(frozen=True)
class Trajectories:
    """The teacher's states at the points of a ladder: states (P, n, ...), sigmas (P,), the last point being sigma 0."""

    states: Tensor
    sigmas: Tensor

    def secants(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, ...), sigmas (B,) and target velocities (B, ...) at these points of these rows."""
        x, after = self.states[points, rows], self.states[points + 1, rows]
        sigma, below = self.sigmas[points], self.sigmas[points + 1]
        width = (sigma - below).reshape(-1, *(1,) * (x.ndim - 1))
        return x, sigma, (x - after) / width


@torch.no_grad()
def rollout(
    velocity: RowVelocity, noise: Tensor, ladder: Sequence[float], points: Sequence[int], batch: int = 64, tick: Progressed | None = None
) -> Trajectories:
    """Walk the teacher's whole `ladder` by Euler from `noise` (n, ...), and keep its states before the steps `points` and at the end.

    tick(pictures) is called after every step of a batch.
    """
    last = len(ladder) - 1
    if not points or points[0] < 0 or points[-1] >= last or list(points) != sorted(set(points)):
        raise GlanceError(f"teacher steps {list(points)} must rise and lie from 0 to {last - 1}")
    states = noise.new_empty((len(points) + 1, *noise.shape))
    wanted = {step: i for i, step in enumerate(points)}
    for rows in torch.split(torch.arange(len(noise)), batch):
        x = noise[rows]
        for step in range(last):
            if step in wanted:
                states[wanted[step], rows] = x
            sigma = noise.new_full((len(rows),), ladder[step])
            x = x + (ladder[step + 1] - ladder[step]) * velocity(x, sigma, rows)
            if tick:
                tick(len(rows))
        states[-1, rows] = x
    return Trajectories(states, noise.new_tensor([*(ladder[step] for step in points), 0.0]))


def trajectory_loss(velocity: RowVelocity, data: Trajectories, points: Tensor, rows: Tensor) -> Tensor:
    """Mean squared distance of the student's (guided) velocity to the teacher's secant, at these points of these rows."""
    x, sigma, target = data.secants(points, rows)
    return (velocity(x, sigma, rows) - target).square().mean()
