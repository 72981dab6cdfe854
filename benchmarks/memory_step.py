"""The pack's training step, and the peak of memory that it takes on tensors without data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .memory_setups import Setup
from .memory_tracker import META, PLENTY, Tracker, conditioned_model, empty_model, meta_changes, patched
from .process import comfyui


@dataclass(frozen=True)
class Peak:
    """Bytes on the device.

    backward, update: the most at one time until the gradients are there, and in gradient clipping and optimiser; both
    without weights, adapters and optimiser states. largest: the biggest module. stored: all weights, as stored.
    """

    weights: int
    adapters: int
    optimizer: int
    backward: int
    update: int
    largest: int
    stored: int

    @property
    def activations(self) -> int:
        return max(self.backward, self.update)

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.optimizer + self.activations


class TrainingStep:
    """One phase of a student as glance_core/training/part_trainer.py trains it: adapters, optimiser, and the step."""

    def __init__(self, setup: Setup, patcher, conditioned, device: torch.device):
        host = comfyui.pack_module("nodes.host.training_model")
        lora = comfyui.pack_module("glance_core.training.lora_layers")
        student_module = comfyui.pack_module("glance_core.training.student")
        recipe = comfyui.pack_module("glance_core.models").base_model(setup.architecture).recipe
        slots = host.trained_slots(patcher, recipe.targets)
        student = host.student_of(patcher, conditioned.velocity(setup.cfg), slots, setup.checkpointing)
        with device:
            settings = lora.LoraSettings(recipe.rank, recipe.alpha, recipe.init)
            layers = lora.LoraLayers(slots, settings, "slow", 0, device)
        self.parameters = layers.parameters()
        make_optimizer = comfyui.pack_module("glance_core.training.optimizers").make_optimizer
        self.optimizer = make_optimizer("adamw", [{"params": self.parameters}], 1e-4, (0.9, 0.999), 0.01)
        self.frozen, self.model = lora.frozen, student.model
        tracker = comfyui.pack_module("glance_core.training.autograd.inplace").InplaceTracker()
        forwards = student_module.training_forwards(student, layers)
        self.differentiable = student_module.Differentiable(student, forwards, tracker)
        self.drawn = comfyui.pack_module("glance_core.training.objectives").Drawn(
            torch.zeros(setup.latent, device=device),
            torch.full((1,), 0.5, device=device),
            torch.ones(setup.latent, device=device),
        )

    def backward(self) -> None:
        """Run forward and backward."""
        with self.frozen(self.model):
            self.differentiable.backward(self.drawn, torch.zeros(1, dtype=torch.long))

    def update(self) -> None:
        """Clip the gradients and step the optimiser."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def run(self) -> None:
        """Take a whole step."""
        self.backward()
        self.update()
        self.optimizer.zero_grad(set_to_none=True)


def predict(setup: Setup) -> Peak:
    """Return the peak of a training step after the first, or of one model call of the teacher."""
    with torch.inference_mode(False), torch.no_grad(), patched(*meta_changes(setup.gpu)), Tracker() as tracker:
        patcher = empty_model(setup)
        base = tracker.restart()
        stored = sum(value.numel() * value.element_size() for value in patcher.model.parameters())
        patcher.load(META, lowvram_model_memory=PLENTY if setup.resident is None else setup.resident)
        weights = tracker.now - base
        sizes = {"weights": weights, "largest": _largest_module(patcher.model), "stored": stored}
        conditioned = conditioned_model(setup, patcher)
        if not setup.train:
            return Peak(adapters=0, optimizer=0, backward=_call_peak(setup, conditioned, tracker), update=0, **sizes)
        step = TrainingStep(setup, patcher, conditioned, META)
        _fill_optimizer(step, setup.gpu)
        start = tracker.restart()
        step.backward()
        backward = tracker.peak - start
        tracker.restart()
        step.update()
        update = tracker.peak - start
        states = [value for each in step.optimizer.state.values() for value in each.values() if value.is_meta]
        adapters, optimizer = _bytes(step.parameters), _bytes(states)
        return Peak(adapters=adapters, optimizer=optimizer, backward=backward, update=update, **sizes)


def _largest_module(model: torch.nn.Module) -> int:
    import comfy.model_management

    leaves = [module for module in model.modules() if not list(module.children())]
    return max(map(comfy.model_management.module_size, leaves))


def _call_peak(setup: Setup, conditioned, tracker: Tracker) -> int:
    """Return the most bytes that one model call takes."""
    x, sigma = torch.zeros(setup.latent, device=META), torch.full((1,), 0.5, device=META)
    start = tracker.restart()
    conditioned.velocity(setup.cfg)(x, sigma, torch.zeros(1, dtype=torch.long))
    return tracker.peak - start


def _fill_optimizer(step: TrainingStep, gpu: bool) -> None:
    """Leave the optimiser states that a first step leaves."""
    for group in step.optimizer.param_groups:
        group["foreach"] = gpu
    for parameter in step.parameters:
        parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
