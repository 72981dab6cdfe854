"""A model in training, as its trainer sees it: a velocity, the layers that get a LoRA, and how to differentiate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from .frozen import Forwards, WeightOf, forwards
from .lora_layers import LoraLayers, Slot
from .objectives import RowVelocity, losses
from .recompute import recomputed


@dataclass(frozen=True)
class Student:
    """The model in training. velocity runs it, guidance included; slots are what gets a LoRA; blocks are recomputed in backward (none: all
    activations are kept); mutates: it writes into what autograd keeps. weight_of and others: how a host gets at a layer's weight, and the
    forwards of layers without a LoRA."""

    model: nn.Module
    velocity: RowVelocity
    slots: Mapping[str, Slot]
    name: str = "the model"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    half: bool = False
    blocks: Mapping[str, nn.Module] | None = None
    mutates: bool = False
    weight_of: Callable[[nn.Module], WeightOf | None] | None = None
    others: Callable[[frozenset[str]], Forwards] | None = None


def changed_forwards(student: Student, layers: LoraLayers) -> Forwards:
    """The forwards of the student's layers while it is differentiated."""
    own = layers.forwards_on(student.model, student.weight_of)
    return {**student.others(frozenset(slot.module for slot in layers.slots.values())), **own} if student.others else own


def backward(
    student: Student, changed: Forwards, drawn: tuple[Tensor, Tensor, Tensor], rows: Tensor, mutates: bool = False,
    scaled: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Tensor:  # fmt: skip
    """Losses (B,) of a batch; the gradient of their (scaled) mean is added to the parameters'.

    mutates: the model writes into what autograd keeps, so let torch keep copies; without it such a model raises RuntimeError.
    """
    with ExitStack() as stack:
        mutation: AbstractContextManager[Any] = allow_mutation_on_saved_tensors() if mutates else nullcontext()
        stack.enter_context(mutation)
        stack.enter_context(forwards(changed))
        check = stack.enter_context(recomputed(student.blocks, student.name, copies=mutates)) if student.blocks is not None else None
        stack.enter_context(torch.enable_grad())
        loss = losses(student.velocity, drawn, rows)
        if check is not None:
            check()
        torch.autograd.backward(scaled(loss.mean()))
        return loss.detach().float().cpu()
