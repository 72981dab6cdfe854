"""The teacher's own path: how much its velocity turns from step to step, and the few of its steps that follow it best.

One Euler step from the teacher's state x_i, with the velocity v_i it had there, ends |x_j - (x_i + (sigma_j - sigma_i) v_i)| beside its state
x_j. The steps for which these errors add up to the least are found exactly, by dynamic programming over all pairs of teacher steps (compare
Watson et al., arXiv 2106.03802, who do so for the likelihood). No weight is trained and no forward spent beyond the teacher's own runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ScheduleError
from .schedule import Split


@dataclass(frozen=True)
class Path:
    """sigmas (T + 1); change (T - 1): |v_{i+1} - v_i| / |v_i| from each teacher step to the next; errors (T, T + 1): of one Euler step from
    teacher step i to j > i, as RMS of the latent, 0 elsewhere. Means over the runs."""

    sigmas: tuple[float, ...]
    change: tuple[float, ...]
    errors: Tensor

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def snr(self) -> tuple[float, ...]:
        """Signal to noise at each teacher step, ((1 - sigma) / sigma)^2, of a flow."""
        return tuple(((1 - sigma) / sigma) ** 2 for sigma in self.sigmas[:-1])

    def error(self, steps: Sequence[int]) -> float:
        """Of a ladder of these teacher steps, from each to the next and to the end."""
        return sum(self.errors_of(steps))

    def errors_of(self, steps: Sequence[int]) -> list[float]:
        """Of each of its steps."""
        return [float(self.errors[i, j]) for i, j in itertools.pairwise((*steps, self.steps))]

    def best(self, count: int) -> tuple[int, ...]:
        """The `count` teacher steps (0-based, the first among them) of the least error. Raises ScheduleError for a count it cannot have."""
        if not 2 <= count <= self.steps:
            raise ScheduleError(f"{count} steps cannot be chosen from a teacher's {self.steps}; give 2 to {self.steps}")
        far = torch.full((count + 1, self.steps + 1), torch.inf, dtype=torch.float64)  # from step i to the end in k steps
        far[0, self.steps] = 0
        nexts = torch.zeros((count + 1, self.steps + 1), dtype=torch.long)
        above = torch.ones(self.steps, self.steps + 1, dtype=torch.bool).triu(1)
        cost = torch.where(above, self.errors.double(), torch.inf)
        for k in range(1, count + 1):
            far[k, :-1], nexts[k, :-1] = (cost + far[k - 1]).min(1)
        steps = [0]
        for k in range(count, 1, -1):
            steps.append(int(nexts[k, steps[-1]]))
        return tuple(steps)

    def split(self, steps: Sequence[int]) -> Split:
        """These steps, shared among the phases so that both have as much error to make good as can be."""
        errors = self.errors_of(steps)
        slow = min(range(1, len(steps)), key=lambda k: abs(sum(errors[:k]) - sum(errors[k:])))
        return Split(tuple(steps[:slow]), tuple(steps[slow:]), self.steps)


def measured(states: Tensor, ladder: Sequence[float]) -> Path:
    """From the teacher's states (T + 1, n, ...) at every sigma of its ladder (T + 1), walked by Euler; `objectives.rollout` gives them."""
    if len(states) != len(ladder) or len(ladder) < 3:
        raise ScheduleError(f"{len(states)} states of the teacher do not fit a ladder of {len(ladder)} sigmas; keep all of them")
    flat = states.flatten(2).double()
    sigmas = torch.tensor(ladder, dtype=torch.float64, device=flat.device)
    velocities = (flat[1:] - flat[:-1]) / (sigmas[1:] - sigmas[:-1])[:, None, None]
    change = (velocities[1:] - velocities[:-1]).norm(dim=2) / velocities[:-1].norm(dim=2).clamp(min=1e-12)
    errors = torch.zeros(len(ladder) - 1, len(ladder), dtype=torch.float64)
    for i, velocity in enumerate(velocities):
        for j in range(i + 2, len(ladder)):  # one step of the teacher's own has none
            beside = flat[j] - flat[i] - (sigmas[j] - sigmas[i]) * velocity
            errors[i, j] = beside.square().mean(1).sqrt().mean()
    return Path(tuple(ladder), tuple(change.mean(1).tolist()), errors)
