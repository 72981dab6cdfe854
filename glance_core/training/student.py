"""A model in training as its trainer sees it: a velocity, the layers that get a LoRA, and how to differentiate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..lora.slots import Slot
from ..sampling.velocity import RowVelocity
from .autograd.checkpointing import checkpointed
from .autograd.forward_patches import Forwards, patched_forwards
from .autograd.inplace import InplaceTracker
from .autograd.lora_linear import WeightOf
from .lora_layers import LoraLayers
from .objectives import Drawn, losses

Scaled = Callable[[Tensor], Tensor]  # scales a loss before backward


@dataclass(frozen=True)
class Student:
    """The model in training.

    velocity: runs it, guidance included. slots: what gets a LoRA. name: for messages. half: it computes in float16.
    blocks: run again in backward; None keeps all activations. weight_of: how a host gets a layer's weight.
    other_forwards: forwards of layers without a LoRA, given the names of those with one. learns_sigmas: whether its
    velocity can be differentiated by the sigma; if not, a solver keeps its sigmas.
    """

    model: nn.Module
    velocity: RowVelocity
    slots: Mapping[str, Slot]
    name: str = "the model"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    half: bool = False
    blocks: Mapping[str, nn.Module] | None = None
    weight_of: Callable[[nn.Module], WeightOf | None] | None = None
    other_forwards: Callable[[frozenset[str]], Forwards] | None = None
    learns_sigmas: bool = True


def training_forwards(student: Student, layers: LoraLayers) -> Forwards:
    """Return the forwards of the student's layers while it is differentiated."""
    own = layers.forwards_on(student.model, student.weight_of)
    if not student.other_forwards:
        return own
    return {**student.other_forwards(frozenset(slot.module for slot in layers.slots.values())), **own}


@dataclass(frozen=True)
class Differentiable:
    """A student with the forwards of its layers. tracker: the same one in every step."""

    student: Student
    forwards: Forwards
    tracker: InplaceTracker

    def backward(self, drawn: Drawn, prompt_rows: Tensor, scaled: Scaled = lambda mean: mean) -> Tensor:
        """Return the losses (B,) of a batch; the gradient of their (scaled) mean is added to the parameters'."""

        def forward() -> Tensor:
            own = Drawn(drawn.x.clone(), drawn.sigma, drawn.target)  # a model may write into its input, and run again
            return losses(self.student.velocity, own, prompt_rows)

        blocks, name = self.student.blocks, self.student.name
        with (
            patched_forwards(self.forwards),
            checkpointed(blocks, name, self.tracker) as check_blocks,
            torch.enable_grad(),
        ):
            loss = self.tracker.run(self.student.model, forward)
            check_blocks()
            torch.autograd.backward(scaled(loss.mean()))
            return loss.detach().float().cpu()
