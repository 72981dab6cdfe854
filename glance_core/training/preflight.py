"""One step of training before anything is paid for: can the model be differentiated, and does a gradient reach all?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import TrainingError, printable
from .autograd.forward_patches import patched_forwards
from .autograd.inplace import InplaceTracker
from .lora_layers import LoraLayers, LoraSettings, frozen
from .objectives import Drawn
from .student import Differentiable, Student, training_forwards

_UP = 0.01  # of the trial factors, which a gradient must pass
_HALF_SCALE = 2.0**10  # keeps gradients in float16 from underflow
_LONGEST_QUOTE = 160


def preflight(student: Student, x: Tensor, sigma: float, rows: Tensor) -> tuple[str, ...]:
    """Return the slots that no gradient reaches, by one forward and backward with trial LoRAs of rank 1.

    Args:
        x: noisy latents (B, ...) at the noise level sigma.
        rows: whose prompts to use (B,).

    Raises:
        TrainingError: if the model cannot be differentiated, or no slot is reached.
    """
    layers = LoraLayers(student.slots, LoraSettings(1, 1.0), "preflight", 0, student.device)
    generator = torch.Generator().manual_seed(0)
    for name in student.slots:
        up = layers.pair(name)[1]
        up.data.copy_(_UP * torch.randn(up.shape, generator=generator))
    drawn = Drawn(x, x.new_full((len(x),), sigma), torch.zeros_like(x))
    differentiable = Differentiable(student, training_forwards(student, layers), InplaceTracker())
    scale = _HALF_SCALE if student.half else 1.0
    try:
        with frozen(student.model):
            for _ in range(2):  # the first step finds what blocks write into, if they are run again
                for parameter in layers.parameters():
                    parameter.grad = None
                differentiable.backward(drawn, rows, lambda mean: scale * mean)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not _has_effect(student, differentiable, drawn, rows):
            raise _no_effect(student) from error
        why = printable(str(error).partition("\n")[0])[:_LONGEST_QUOTE]
        raise TrainingError(
            f"{student.name} cannot be trained, because PyTorch cannot differentiate it ({why}); nothing was run yet, "
            "please report the model"
        ) from error
    unreached = tuple(name for name in student.slots if not _is_reached(*layers.pair(name)))
    if len(unreached) == len(student.slots):
        raise _no_effect(student)
    return unreached


def _is_reached(*factors: Tensor) -> bool:
    return all(factor.grad is not None and bool(factor.grad.any()) for factor in factors)


def _has_effect(student: Student, trial: Differentiable, drawn: Drawn, rows: Tensor) -> bool:
    """Return whether the trial LoRAs change what the model answers."""
    with torch.no_grad():
        without = student.velocity(drawn.x.clone(), drawn.sigma, rows).clone()
        with patched_forwards(trial.forwards):
            return not torch.equal(without, student.velocity(drawn.x.clone(), drawn.sigma, rows))


def _no_effect(student: Student) -> TrainingError:
    return TrainingError(
        f"none of the {len(student.slots)} chosen layers has an effect on {student.name}, for example "
        f"{next(iter(student.slots))}; choose other targets"
    )
