"""Which layers a model calls for some prompts and noise levels, but not for others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .autograd.forward_patches import patched_forwards
from .student import Student

Call = tuple[float, int]  # a noise level and the row of a prompt


@torch.no_grad()
def reachable_slots(student: Student, unreached: Sequence[str], x: Tensor, calls: Sequence[Call]) -> frozenset[str]:
    """Return those of these slots that training may reach, though no gradient reached them in a trial step.

    Their layers run in other calls only; or they run, and their gradient may have been too small for float16.

    Args:
        x: noisy latents (1, ...).
        calls: that of the trial step, and others.
    """
    modules = {name: student.model.get_submodule(student.slots[name].module) for name in unreached}
    trial, *others = (_called(student, modules.values(), x, call) for call in calls)
    later = frozenset[nn.Module]().union(*others)
    may_learn = later | trial if student.half else later - trial
    return frozenset(name for name, module in modules.items() if module in may_learn)


def _called(student: Student, modules: Iterable[nn.Module], x: Tensor, call: Call) -> frozenset[nn.Module]:
    """Return the modules that one call of the model runs."""
    ran: set[nn.Module] = set()

    def noting(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            ran.add(module)
            return forward(*args, **kwargs)

        return noted

    sigma, row = call
    with patched_forwards({module: noting(module) for module in modules}):
        student.velocity(x.clone(), x.new_full((len(x),), sigma), torch.tensor([row]))
    return frozenset(ran)
