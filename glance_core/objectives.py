"""What the student is trained towards.

`flow_matching`: the paper's loss (arXiv 2512.02899, section 4): x_t = (1 - sigma) x0 + sigma eps, target eps - x0, at the phase's sigmas.
`trajectory`: at a point a of the ladder the target is the secant of the teacher's own path to the next point b,
(x_a - x_b) / (sigma_a - sigma_b), so that one Euler step lands where the teacher did. It needs prompts alone, no pictures.
Compare: progressive distillation (Salimans & Ho, arXiv 2202.00512) halves the teacher's steps in rounds; here all steps between two
points are taken at once. `aimed` and `end to end` (trainees.WalkTrainee) start where the student's own steps have led, as it will be when
it samples (compare scheduled sampling, Bengio et al., arXiv 1506.03099). Guidance stays in the student, or is folded into it (Meng et al.,
arXiv 2210.03142): then the teacher walks with guidance and the student without, at half the forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import GlanceError, TrainingError
from .sampling import euler, multistep

FOLD = ", fold guidance"
TRAJECTORY, AIMED, END_TO_END, FLOW = "trajectory", "aimed", "end to end", "flow_matching"
WALKED = (AIMED, f"{AIMED}{FOLD}", END_TO_END, f"{END_TO_END}{FOLD}")  # learned on the student's own walks, by both phases at once
BOTH, ADAPTERS, SOLVER = "both", "adapters", "solver"
LEARN = (BOTH, ADAPTERS, SOLVER)  # of what whole walks can teach
OBJECTIVES = (TRAJECTORY, f"{TRAJECTORY}{FOLD}", *WALKED, FLOW)
NO_PROMPT = -1

# velocity(x, sigma, rows): noise - data (B, ...) at noise levels sigma (B,), for the prompts of these rows of the training set; row -1 is
# the empty prompt.
RowVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
# The same with the prompts and without, at a step that is guided; the second is None at one that is not.
BothVelocities = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
Progressed = Callable[[int], None]


def both(velocity: RowVelocity) -> BothVelocities:
    """(x, sigma, rows, guided) -> velocities with and without the prompt, from one that has no guidance; one batch of both. Not guided: the
    second is None."""

    def of(x: Tensor, sigma: Tensor, rows: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
        if not guided:
            return velocity(x, sigma, rows), None
        nobody = torch.full_like(rows, NO_PROMPT)
        with_prompt, without = velocity(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([rows, nobody])).chunk(2)
        return with_prompt, without

    return of


def refuse_learning(objective: str, learn: str) -> None:
    """Raises TrainingError for an objective that there is not, or that cannot learn only this."""
    if objective not in OBJECTIVES:
        raise TrainingError(f"objective is {objective!r}; choose one of {', '.join(OBJECTIVES)}")
    if learn not in LEARN:
        raise TrainingError(f"learn is {learn!r}; choose one of {', '.join(LEARN)}")
    if learn != BOTH and objective not in WALKED:
        raise TrainingError(f"learn is {learn}, and {objective} has no solver to learn; choose {' or '.join(WALKED)}")


class Objective(Protocol):
    """sigmas (P): the points of the ladder that are trained; rows: how many training examples there are."""

    @property
    def points(self) -> tuple[float, ...]: ...

    @property
    def rows(self) -> int: ...

    def draw(self, points: Tensor, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """States x (B, ...), their sigmas (B,) and target velocities (B, ...) at these points of these rows."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """The paper's loss on latents x0 (n, ...), at `points`. flow: x = (1 - sigma) x0 + sigma eps; else x = x0 + sigma eps, target eps."""

    latents: Tensor
    points: tuple[float, ...]
    flow: bool = True

    @property
    def rows(self) -> int:
        return len(self.latents)

    def draw(self, points: Tensor, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh noise for every example, drawn on the CPU so that a seed means the same on every device."""
        data = self.latents[rows.to(self.latents.device)]
        noise = torch.randn(data.shape, generator=generator).to(data)
        sigma = torch.tensor(self.points)[points].to(data)
        level = sigma.reshape(-1, *(1,) * (data.ndim - 1))
        if self.flow:
            return (1 - level) * data + level * noise, sigma, noise - data
        return data + level * noise, sigma, noise


@dataclass(frozen=True)
class Trajectories:
    """The teacher's states at the points of a ladder: states (P + 1, n, ...), sigmas (P + 1,), the last being sigma 0."""

    states: Tensor
    sigmas: Tensor

    @property
    def points(self) -> tuple[float, ...]:
        return tuple(self.sigmas[:-1].tolist())

    @property
    def rows(self) -> int:
        return self.states.shape[1]

    def draw(self, points: Tensor, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        device = self.states.device
        return self.secants(points.to(device), rows.to(device))

    def secants(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, ...), sigmas (B,) and target velocities (B, ...) at these points of these rows."""
        x, after = self.states[points, rows], self.states[points + 1, rows]
        sigma, below = self.sigmas[points], self.sigmas[points + 1]
        width = (sigma - below).reshape(-1, *(1,) * (x.ndim - 1))
        return x, sigma, (x - after) / width


@torch.no_grad()
def rollout(
    velocity: RowVelocity,
    noise: Tensor,
    ladder: Sequence[float],
    points: Sequence[int],
    batch: int = 64,
    tick: Progressed | None = None,
    visited: Sequence[int] | None = None,
) -> Trajectories:
    """Walk the teacher's whole `ladder` by Euler from `noise` (n, ...), and keep its states before the steps `points` and at the end.

    visited: only these steps of the ladder, in second order (two-step Adams-Bashforth), for a cheaper teacher whose error is to be measured
    first; they hold 0 and all points. tick(pictures) is called after every step of a batch. States are fp32.
    """
    last = len(ladder) - 1
    if not points or points[0] < 0 or points[-1] >= last or list(points) != sorted(set(points)):
        raise GlanceError(f"teacher steps {list(points)} must rise and lie from 0 to {last - 1}")
    steps = list(range(last)) if visited is None else sorted(visited)
    if not {0, *points} <= set(steps) or steps[-1] >= last:
        raise GlanceError(f"the visited teacher steps {steps} must hold 0 and {list(points)} and end below {last}")
    sigmas = [*(ladder[step] for step in steps), ladder[last]]
    states = noise.new_empty((len(points) + 1, *noise.shape))
    wanted = {steps.index(step): i for i, step in enumerate(points)}
    for rows in torch.split(torch.arange(len(noise)), batch):

        def at(x: Tensor, sigma: float, rows: Tensor = rows) -> Tensor:
            slope = velocity(x, noise.new_full((len(rows),), sigma), rows)
            if tick:
                tick(len(rows))
            return slope

        def keep(step: int, x: Tensor, sigma: float, rows: Tensor = rows) -> None:
            if step in wanted:
                states[wanted[step], rows] = x

        states[-1, rows] = (euler if visited is None else multistep)(at, noise[rows], sigmas, keep)
    return Trajectories(states, noise.new_tensor([*(ladder[step] for step in points), 0.0]))


def losses(velocity: RowVelocity, drawn: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> Tensor:
    """Mean squared distance (B,) of the student's velocity to the target, in fp32. drawn: what `draw` gave; rows: whose prompts to use."""
    x, sigma, target = drawn
    return (velocity(x, sigma, rows).float() - target.float()).square().flatten(1).mean(1)
