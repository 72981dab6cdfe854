"""Which few of the teacher's steps follow its trajectory best.

One Euler step from the teacher's state x_i, with the velocity v_i that it had there, misses its state x_j by
|x_j - (x_i + (sigma_j - sigma_i) v_i)|. The steps with the least sum of these errors are found exactly, by dynamic
programming over all pairs of teacher steps (compare Watson et al., arXiv 2106.03802, who do so for the likelihood).
It trains nothing and needs no model call beyond the teacher's own runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ScheduleError
from ..schedule.split import Split


@dataclass(frozen=True)
class TrajectoryProfile:
    """How the teacher moves, averaged over runs.

    sigmas: T + 1. change (T - 1): |v_{i+1} - v_i| / |v_i| from each teacher step to the next.
    errors (T, T + 1): of one Euler step from teacher step i to j > i, as RMS of the latent; 0 elsewhere.
    """

    sigmas: tuple[float, ...]
    change: tuple[float, ...]
    errors: Tensor

    @property
    def steps(self) -> int:
        """How many steps the teacher takes."""
        return len(self.sigmas) - 1

    @property
    def snr(self) -> tuple[float, ...]:
        """Signal to noise at each teacher step, ((1 - sigma) / sigma)^2, for a flow model."""
        return tuple(((1 - sigma) / sigma) ** 2 for sigma in self.sigmas[:-1])

    def error(self, steps: Sequence[int]) -> float:
        """Return the summed error of these teacher steps, from each to the next and to the end."""
        return sum(self.errors_of(steps))

    def errors_of(self, steps: Sequence[int]) -> list[float]:
        """Return the error of each of these steps."""
        return [float(self.errors[i, j]) for i, j in itertools.pairwise((*steps, self.steps))]

    def best_steps(self, count: int) -> tuple[int, ...]:
        """Return the `count` teacher steps (0-based, with the first) of the least error. Raises ScheduleError."""
        if not 2 <= count <= self.steps:
            raise ScheduleError(
                f"{count} steps cannot be chosen from a teacher's {self.steps}; choose 2 to {self.steps}"
            )
        least = torch.full(
            (count + 1, self.steps + 1), torch.inf, dtype=torch.float64
        )  # from step i to the end in k steps
        least[0, self.steps] = 0
        next_step = torch.zeros((count + 1, self.steps + 1), dtype=torch.long)
        above = torch.ones(self.steps, self.steps + 1, dtype=torch.bool).triu(1)
        cost = torch.where(above, self.errors.double(), torch.inf)
        for k in range(1, count + 1):
            least[k, :-1], next_step[k, :-1] = (cost + least[k - 1]).min(1)
        steps = [0]
        for k in range(count, 1, -1):
            steps.append(int(next_step[k, steps[-1]]))
        return tuple(steps)

    def split(self, steps: Sequence[int]) -> Split:
        """Return these steps as a Split whose phases have errors as equal as possible."""
        errors = self.errors_of(steps)
        slow = min(range(1, len(steps)), key=lambda k: abs(sum(errors[:k]) - sum(errors[k:])))
        return Split(tuple(steps[:slow]), tuple(steps[slow:]), self.steps)


def profile_trajectory(states: Tensor, sigmas: Sequence[float]) -> TrajectoryProfile:
    """Measure the teacher's states (T + 1, n, ...) at each of its sigmas, as `rollout` gives them for all steps."""
    if len(states) != len(sigmas) or len(sigmas) < 3:
        raise ScheduleError(
            f"{len(states)} teacher states do not fit {len(sigmas)} sigmas; keep the states of all steps"
        )
    flat = states.flatten(2).double()  # (T + 1, n, numbers)
    levels = torch.tensor(sigmas, dtype=torch.float64, device=flat.device)
    velocities = (flat[1:] - flat[:-1]) / (levels[1:] - levels[:-1])[:, None, None]  # (T, n, numbers)
    change = (velocities[1:] - velocities[:-1]).norm(dim=2) / velocities[:-1].norm(dim=2).clamp(min=1e-12)
    errors = torch.zeros(len(sigmas) - 1, len(sigmas), dtype=torch.float64)
    for i, velocity in enumerate(velocities):
        for j in range(i + 2, len(sigmas)):  # the teacher's own next step has no error
            miss = flat[j] - flat[i] - (levels[j] - levels[i]) * velocity
            errors[i, j] = miss.square().mean(1).sqrt().mean()
    return TrajectoryProfile(tuple(sigmas), tuple(change.mean(1).tolist()), errors)
