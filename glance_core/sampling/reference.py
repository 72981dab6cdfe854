"""The published Glance code's own sampling, for comparing its weights like for like. It is not consistent.

It shows the model one list of sigmas while the sample moves along others. For one of its base models at 1024x1024 the
moves add up to 1.0537 instead of 1, so the result is about 1.0537 data - 0.0537 noise.
Source: CSU-JPG/Glance at 88bac37, measured against diffusers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from ..errors import ScheduleError
from .samplers import Callback, Velocity


def reference_euler(
    velocity: Velocity,
    x: Tensor,
    shown_sigmas: Sequence[float],
    move_sigmas: Sequence[Sequence[float]],
    callback: Callback | None = None,
) -> Tensor:
    """Sample with Euler steps along the lists in `move_sigmas`, one after the other; the model sees `shown_sigmas`.

    Raises:
        ScheduleError: if the number of moves is not the number of shown sigmas.
    """
    moves = [after - before for sigmas in move_sigmas for before, after in itertools.pairwise(sigmas)]
    if len(moves) != len(shown_sigmas):
        raise ScheduleError(
            f"the model sees {len(shown_sigmas)} sigmas but the sample moves {len(moves)} times; both must be equal"
        )
    for i, (sigma, move) in enumerate(zip(shown_sigmas, moves, strict=True)):
        if callback is not None:
            callback(i, x, sigma)
        x = x + move * velocity(x, sigma)
    return x


def reference_move_sigmas(
    teacher: Sequence[float], fast: Sequence[float], slow_steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the lists that the published code's scheduler moves along.

    They are the first `slow_steps` steps of the teacher's sigmas, then all of `fast`. Both start at 1.

    Args:
        teacher: the teacher's sigmas, 51 of them in the published code.
        fast: sigmas with as many steps as the Fast phase.
        slow_steps: how many steps Slow answers.
    """
    if not 1 <= slow_steps < len(teacher):
        raise ScheduleError(f"slow_steps is {slow_steps}; it must lie between 1 and {len(teacher) - 1}")
    return tuple(teacher[: slow_steps + 1]), tuple(fast)
