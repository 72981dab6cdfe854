"""What a student is trained towards.

flow_matching: the paper's loss (arXiv 2512.02899, section 4) on pictures: x_t = (1 - sigma) x0 + sigma eps, target
    eps - x0, at the phase's sigmas.
teacher_forced: from the teacher's state at one sigma, the target is the secant of the teacher's own trajectory to the
    next sigma, so that one Euler step lands where the teacher did. It needs only prompts. Compare progressive
    distillation (Salimans & Ho, arXiv 2202.00512), which halves the teacher's steps in rounds.
on_policy, end_to_end: from where the student's own steps lead, as when it samples (tasks.RolloutTask; compare
    scheduled sampling, Bengio et al., arXiv 1506.03099).

With fold_guidance the teacher is guided and the student is not, at half the model calls (Meng et al., arXiv
2210.03142).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from ..errors import TrainingError
from ..sampling.rollout import TeacherTrajectory
from ..sampling.velocity import RowVelocity


class Objective(str, Enum):
    """How a pair is trained; the values are what users choose and what files state."""

    ON_POLICY = "on_policy"
    END_TO_END = "end_to_end"
    TEACHER_FORCED = "teacher_forced"
    FLOW_MATCHING = "flow_matching"

    def __str__(self) -> str:
        return self.value

    @property
    def is_rollout(self) -> bool:
        """Whether both phases learn at once, on the student's own sampling runs, with a solver."""
        return self in (Objective.ON_POLICY, Objective.END_TO_END)


class Learn(str, Enum):
    """What a rollout objective trains."""

    BOTH = "both"
    ADAPTERS = "adapters"
    SOLVER = "solver"

    def __str__(self) -> str:
        return self.value


OBJECTIVES = tuple(each.value for each in Objective)
LEARN = tuple(each.value for each in Learn)


def check_objective(objective: str, learn: str = Learn.BOTH, fold_guidance: bool = False) -> Objective:
    """Return the objective of this name. Raises TrainingError for an unknown name, or choices that do not combine."""
    if objective not in OBJECTIVES:
        raise TrainingError(f"objective is {str(objective)!r}; choose one of {', '.join(OBJECTIVES)}")
    check_learn(learn)
    found = Objective(objective)
    if learn != Learn.BOTH and not found.is_rollout:
        rollouts = " or ".join(str(each) for each in Objective if each.is_rollout)
        raise TrainingError(f"learn is {learn}, but {found} trains no solver; choose {rollouts}")
    if fold_guidance and found is Objective.FLOW_MATCHING:
        raise TrainingError("fold_guidance needs a teacher, and flow_matching has none; switch it off")
    return found


def check_learn(learn: str) -> None:
    """Raise TrainingError for an unknown name."""
    if learn not in LEARN:
        raise TrainingError(f"learn is {str(learn)!r}; choose one of {', '.join(LEARN)}")


def check_activations(end_to_end: bool, gradient_checkpointing: bool) -> None:
    """Raise TrainingError if activations are needed that gradient checkpointing does not keep."""
    if end_to_end and gradient_checkpointing:
        raise TrainingError(
            "end_to_end keeps the activations of all steps; switch gradient_checkpointing off, or choose on_policy"
        )


@dataclass(frozen=True)
class Drawn:
    """One batch of single steps: states x (B, ...), their sigmas (B,) and target velocities (B, ...)."""

    x: Tensor
    sigma: Tensor
    target: Tensor


class SingleStepObjective(Protocol):
    """Training data of single steps. sigmas: the noise levels trained at. rows: how many examples there are."""

    @property
    def sigmas(self) -> tuple[float, ...]: ...

    @property
    def rows(self) -> int: ...

    def draw(self, steps: Tensor, rows: Tensor, generator: torch.Generator) -> Drawn:
        """Return examples at these places (B,) of `sigmas`, of these rows (B,)."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """The paper's loss on latents x0 (n, ...). If not `flow`, x = x0 + sigma eps and the target is eps.

    noise_scale: the standard deviation of eps.
    """

    latents: Tensor
    sigmas: tuple[float, ...]
    flow: bool = True
    noise_scale: float = 1.0

    @property
    def rows(self) -> int:
        """How many pictures there are."""
        return len(self.latents)

    def draw(self, steps: Tensor, rows: Tensor, generator: torch.Generator) -> Drawn:
        """Draw fresh noise for every example, on the CPU, so that a seed means the same on every device."""
        data = self.latents[rows.to(self.latents.device)]
        noise = self.noise_scale * torch.randn(data.shape, generator=generator).to(data)
        sigma = torch.tensor(self.sigmas)[steps].to(data)
        level = sigma.reshape(-1, *(1,) * (data.ndim - 1))  # (B, 1, ...)
        if self.flow:
            return Drawn((1 - level) * data + level * noise, sigma, noise - data)
        return Drawn(data + level * noise, sigma, noise)


@dataclass(frozen=True)
class TeacherForced:
    """Secants of the teacher's trajectory, from each of its kept sigmas to the next."""

    trajectory: TeacherTrajectory

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels that secants start at."""
        return tuple(self.trajectory.sigmas[:-1].tolist())

    @property
    def rows(self) -> int:
        """How many runs of the teacher there are."""
        return self.trajectory.states.shape[1]

    def draw(self, steps: Tensor, rows: Tensor, generator: torch.Generator) -> Drawn:
        """Return states and secants; nothing about them is random."""
        states, sigmas = self.trajectory.states, self.trajectory.sigmas
        steps, rows = steps.to(states.device), rows.to(states.device)
        x, after = states[steps, rows], states[steps + 1, rows]
        width = (sigmas[steps] - sigmas[steps + 1]).reshape(-1, *(1,) * (x.ndim - 1))  # (B, 1, ...)
        return Drawn(x, sigmas[steps], (x - after) / width)


def losses(velocity: RowVelocity, drawn: Drawn, rows: Tensor) -> Tensor:
    """Return the mean squared distance (B,) of the student's velocity to the target, in float32.

    Args:
        rows: whose prompts to use.
    """
    return (velocity(drawn.x, drawn.sigma, rows).float() - drawn.target.float()).square().flatten(1).mean(1)
