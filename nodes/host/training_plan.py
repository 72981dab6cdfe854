"""What a training run in ComfyUI is to do, with nothing left to look up."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.lora.slots import Slot
from ...glance_core.training.autograd.checkpointing import blocks_of
from ...glance_core.training.distill import PairFiles
from ...glance_core.training.distill_plan import DistillPlan
from ...glance_core.training.objectives import Objective
from ...glance_core.training.run.run_dir import RunDir
from .base_model import base_of, compute_dtype, fingerprint, picture_size
from .model_sigmas import latent_tokens
from .nested import parts

# Bytes beside the weights, by `python -m benchmarks.memory`, rounded up.
_KEPT_PER_BLOCK = {True: 2, False: 46}  # per number of the hidden state: with gradient checkpointing, and without
_WORK_PER_BLOCK = 64
_PER_ADAPTER_NUMBER = 16  # weight, gradient, and both states of AdamW in float32
_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained in ComfyUI.

    plan: the distillation. positive: the first `prompts` are trained on, the rest is for the checks.
    latents: pictures, or one latent of the size to train at; mask: its noise_mask. folder, name: of the pair. run_dir:
    of the unfinished run. pattern: what the user wrote to choose the slots; None for a group of this pack.
    """

    plan: DistillPlan
    model: Any
    positive: list[Any]
    negative: list[Any]
    prompts: int
    latents: Any
    slots: Mapping[str, Slot]
    gradient_checkpointing: bool
    offload: str
    preview_every: int
    folder: Path
    name: str
    run_dir: RunDir
    mask: torch.Tensor | None = None
    pattern: str | None = None

    def without(self, names: Collection[str]) -> TrainingPlan:
        """Return the same without these slots."""
        return replace(self, slots={name: slot for name, slot in self.slots.items() if name not in names})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this model and its training data from others."""
        masks = [] if self.mask is None else [self.mask]
        return {
            "model": fingerprint(self.model),
            "data": hash_of([self.positive, self.negative, *parts(self.latents), *masks]),
        }

    @property
    def held_out(self) -> range:
        """The prompts that are for the checks."""
        return range(self.prompts, len(self.positive))

    def files(self, folder: Path, name: str) -> PairFiles:
        """Return where a pair goes, and what its files say beside the plan."""
        pictures = self.plan.objective is Objective.FLOW_MATCHING
        about = PairMetadata(
            base=base_of(self.model).name,
            fingerprint=self.identity["model"],
            image_sha256=hash_of(parts(self.latents)) if pictures else None,
            resolution=picture_size(self.model, tuple(parts(self.latents)[0].shape)),
        )
        return PairFiles(folder, name, about, {**self.identity, "targets": list(self.slots)})

    def room(self) -> int:
        """Return the bytes that training needs beside the weights.

        They are the adapters with gradients and optimiser states, and for each number of the hidden state what each
        block keeps and what one block works with.
        """
        hidden = Counter(slot.inside for slot in self.slots.values()).most_common(1)[0][0]
        shape = tuple(parts(self.latents)[0].shape)  # beside a video, its sound is small
        frames = shape[2] if len(shape) == 5 else 1
        tokens = frames * latent_tokens(shape, base_of(self.model).latents_per_token) + _PROMPT_TOKENS
        blocks = len(blocks_of(self.model.model.diffusion_model))
        plan, lora = self.plan, self.plan.settings.lora
        batch = plan.settings.batch * (2 if plan.student_cfg != 1 else 1)
        if plan.objective is Objective.END_TO_END:
            batch *= plan.schedule.steps  # the activations of all steps
        per_number = blocks * _KEPT_PER_BLOCK[self.gradient_checkpointing] + _WORK_PER_BLOCK
        per_number = per_number * compute_dtype(self.model).itemsize // 2
        adapters = sum(lora.rank * (slot.inside + slot.outside) for slot in self.slots.values())
        adapters *= 2 if plan.objective.is_rollout else 1
        return batch * tokens * hidden * per_number + _PER_ADAPTER_NUMBER * adapters


def hash_of(value: Any) -> str:
    """Return a hash of nested lists and dictionaries of tensors and plain values."""
    digest = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype}{tuple(item.shape)}".encode())
            if item.numel():
                digest.update(item.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                digest.update(str(key).encode())
                add(item[key])
        elif isinstance(item, (list, tuple)):
            for inner in item:
                add(inner)
        elif isinstance(item, (str, int, float, bool, type(None))):
            digest.update(repr(item).encode())

    add(value)
    return digest.hexdigest()[:32]
