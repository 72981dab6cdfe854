"""A model in training, as its trainer sees it: a velocity, the layers that get a LoRA, and how to differentiate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .frozen import Forwards, WeightOf, forwards
from .lora_layers import LoraLayers, Slot
from .objectives import RowVelocity, losses
from .recompute import recomputed
from .saved import Saves


@dataclass(frozen=True)
class Student:
    """The model in training. velocity runs it, guidance included; slots are what gets a LoRA; blocks are recomputed in backward (none: all
    activations are kept). weight_of and others: how a host gets at a layer's weight, and the forwards of layers without a LoRA."""

    model: nn.Module
    velocity: RowVelocity
    slots: Mapping[str, Slot]
    name: str = "the model"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    half: bool = False
    blocks: Mapping[str, nn.Module] | None = None
    weight_of: Callable[[nn.Module], WeightOf | None] | None = None
    others: Callable[[frozenset[str]], Forwards] | None = None


def changed_forwards(student: Student, layers: LoraLayers) -> Forwards:
    """The forwards of the student's layers while it is differentiated."""
    own = layers.forwards_on(student.model, student.weight_of)
    return {**student.others(frozenset(slot.module for slot in layers.slots.values())), **own} if student.others else own


def backward(
    student: Student, changed: Forwards, drawn: tuple[Tensor, Tensor, Tensor], rows: Tensor, saves: Saves,
    scaled: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Tensor:  # fmt: skip
    """Losses (B,) of a batch; the gradient of their (scaled) mean is added to the parameters'. saves: the same one in every step."""
    x, sigma, target = drawn

    def forward() -> Tensor:
        return losses(student.velocity, (x.clone(), sigma, target), rows)  # a model may write into its input, and run again

    with forwards(changed), recomputed(student.blocks, student.name, saves) as check, torch.enable_grad():
        loss = saves.run(student.model, forward)
        check()
        torch.autograd.backward(scaled(loss.mean()))
        return loss.detach().float().cpu()
