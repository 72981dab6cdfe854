"""A model of the host in training: what may be trained in it, its velocity with gradients, and the host as it was afterwards.

The work runs as a sampler of the host inside one guided run, so that loading, conditioning, patches, wrappers and clean-up are the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..glance_core import tiny
from ..glance_core.flux_names import diffusers_slots
from ..glance_core.frozen import Forwards, FrozenLinear, Layer, Recomputed, WeightOf, forwards_as_found, plain_weight
from ..glance_core.lora_layers import Slot, is_linear
from ..glance_core.objectives import NO_PROMPT, RowVelocity
from ..glance_core.recompute import blocks_of
from ..glance_core.student import Student
from ..glance_core.targets import PRESETS, any_chosen, chosen
from . import host

ROOT = "diffusion_model"
OFFLOADS = ["auto", "all", "none"]


def slots(patcher: Any, targets: str) -> dict[str, Slot]:
    """What gets a LoRA, by the name it is saved under. Raises TrainingError if `targets` finds nothing."""
    here = host.architecture(patcher)
    root = patcher.model.diffusion_model
    own = {name: Slot(name, m.in_features, m.out_features) for name, m in root.named_modules() if is_linear(m)}
    offered = own
    if here in ("flux", tiny.BASE):  # the paper's lists and every other tool know the parts of its fused layers
        parts = diffusers_slots(root)
        if targets in PRESETS or any_chosen(parts, targets, here):
            offered = parts
    return {name: replace(offered[name], module=f"{ROOT}.{offered[name].module}") for name in chosen(offered, targets, here)}


def entries(conditionings: list[Any] | None) -> list[Any]:
    """The prompts of an input list of CONDITIONINGs, each of which may combine several."""
    return [entry for conditioning in conditionings or [] for entry in conditioning or []]


class Conditioned:
    """The guided model on prompts: rows of a training set are prompts of `positive`, in turn."""

    def __init__(self, guider: Any, extra_args: Mapping[str, Any]):
        self.guider, self.extra_args = guider, dict(extra_args)
        self.prompts: list[Any] = list(guider.conds["positive"])
        self.negative: list[Any] = list(guider.conds.get("negative") or [])

    def velocity(self, cfg: float, prompts: range | None = None) -> RowVelocity:
        """noise - data (B, ...), in fp32. prompts: which of them the rows go through; all without it."""
        among = prompts if prompts is not None else range(len(self.prompts))

        def predict(x: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            asked = [NO_PROMPT if row == NO_PROMPT else among[row % len(among)] for row in rows.tolist()]
            out: list[Any] = [None] * len(asked)
            for prompt in dict.fromkeys(asked):
                at = [i for i, other in enumerate(asked) if other == prompt]
                level = sigma[at].reshape(-1, *(1,) * (x.ndim - 1))
                self.guider.conds["positive"] = self.negative if prompt == NO_PROMPT else [self.prompts[prompt]]
                self.guider.set_cfg(cfg)
                denoised = self.guider(x[at], sigma[at], **self.extra_args)
                for i, row in zip(at, (x[at] - denoised) / level, strict=True):
                    out[i] = row
            return torch.stack(out)

        return predict


class _Work(comfy.samplers.Sampler):
    """A sampler that hands the prepared, loaded model over instead of sampling."""

    def __init__(self, work: Callable[[Conditioned, torch.Tensor], None]):
        self.work = work

    def sample(self, model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, latent_image: Any = None, *_: Any) -> Any:
        self.work(Conditioned(model_wrap, extra_args), latent_image)
        return torch.zeros_like(noise)


def run(
    patcher: Any, positive: list[Any], negative: list[Any], latents: torch.Tensor, seed: int, offload: str, room: int,
    work: Callable[[Conditioned, torch.Tensor], None],
) -> None:  # fmt: skip
    """work(conditioned, latents in the model's own scale) with the model loaded, its tensors fit for autograd, gradients possible.

    offload: auto (the host leaves `room` bytes for training and streams the weights that do not fit), all, or none. The model's tensors
    and the host's flags are afterwards what they were, whatever ends the work.
    """
    model = patcher.clone()
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "glance_training", partial(_prepared, offload, room))
    with ExitStack() as afterwards, torch.inference_mode(False), torch.no_grad(), forwards_as_found(model.model):
        afterwards.callback(setattr, comfy.model_management, "in_training", comfy.model_management.in_training)
        comfy.model_management.in_training = True  # without it the host's rotary embedding has no backward
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(_plain(positive), _plain(negative))
        samples = latents.clone()

        def inside(conditioned: Conditioned, scaled: torch.Tensor) -> None:
            with fit_for_autograd(guider.inner_model):
                work(conditioned, scaled)

        noise = torch.zeros_like(samples)
        guider.sample(noise, samples, _Work(inside), torch.tensor([1.0, 0.0]), disable_pbar=True, seed=seed)


def _prepared(offload: str, room: int, executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
    """PREPARE_SAMPLING: let go of every other model, and load this one with room for training."""
    mine = [
        loaded for loaded in comfy.model_management.current_loaded_models if loaded.model is not None and loaded.model.model is model.model
    ]
    comfy.model_management.free_memory(1e30, model.load_device, keep_loaded=mine)
    shape = list(noise_shape)
    if offload == "auto":  # the host's loader leaves what its minimum says, which counts the pictures
        one = max(1, comfy.sampler_helpers.estimate_memory(model, [1, *shape[1:]], conds)[1])
        shape[0] = max(shape[0], -(-room // one))
    kwargs |= {"force_full_load": offload == "none", "force_offload": offload == "all"}
    return executor(model, shape, conds, *args, **kwargs)


@contextmanager
def fit_for_autograd(model: torch.nn.Module) -> Iterator[None]:
    """Models that a node loaded consist of inference tensors, which autograd cannot keep: give it the same memory as normal tensors."""
    changed: list[tuple[dict[str, Any], str, Any, Any]] = []
    for module in model.modules():
        for table, wrap in (
            (module._parameters, partial(torch.nn.Parameter, requires_grad=False)),
            (module._buffers, lambda tensor: tensor),
        ):
            for name, tensor in table.items():
                if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_inference() and tensor.device.type != "meta":
                    changed.append((table, name, tensor, wrap(_same_memory(tensor))))
    try:
        for table, name, _, normal in changed:
            table[name] = normal
        yield
    finally:
        for table, name, before, normal in changed:
            if table.get(name) is normal and normal.data_ptr() == before.data_ptr():  # else the host has moved it meanwhile
                table[name] = before


def _same_memory(tensor: torch.Tensor) -> torch.Tensor:
    shared = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return shared.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def student(patcher: Any, conditioned: Conditioned, cfg: float, trained: Mapping[str, Slot], checkpointing: bool) -> Student:
    """The loaded model as the core trains it."""
    here = host.architecture(patcher)
    model = patcher.model
    return Student(
        model, conditioned.velocity(cfg), trained, f"{type(model).__name__} ({here})", patcher.load_device,
        host.compute_dtype(patcher) == torch.float16, blocks_of(model.diffusion_model) if checkpointing else None, weight_of, partial(_others, model),
    )  # fmt: skip


def weight_of(module: torch.nn.Module) -> WeightOf | None:
    """How to get at a Linear's weight in backward; None where only its own forward knows (GGUF, other quantised kinds)."""
    if type(getattr(module, "weight", None)) not in (torch.Tensor, torch.nn.Parameter):
        return None
    return _cast_weight if isinstance(module, comfy.ops.CastWeightBiasOp) else plain_weight


@contextmanager
def _cast_weight(module: torch.nn.Module, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weight as the host would use it: patched, cast, streamed to the device, and let go again; as it is stored where it lies there."""
    if module.weight.device == like.device and not module.weight_function and not hasattr(module, "_v"):
        yield module.weight
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(module, dtype=like.dtype, device=like.device, bias_dtype=like.dtype, offloadable=True)
    try:
        yield weight
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)


def _others(model: torch.nn.Module, trained: frozenset[str]) -> Forwards:
    """Forwards for the layers without a LoRA whose weights are cast or streamed for each use: autograd must not keep those copies."""
    changed: dict[torch.nn.Module, Callable[..., Any]] = {}
    for name, module in model.named_modules():
        if name in trained or not isinstance(module, comfy.ops.CastWeightBiasOp) or isinstance(module, torch.nn.Embedding):
            continue
        if not (module.comfy_cast_weights or module.weight_function or module.bias_function):
            continue
        if is_linear(module):
            changed[module] = partial(_frozen, Layer(module, module.forward, weight_of(module)))
        elif getattr(module, "weight", None) is not None and getattr(module.weight, "ndim", 0) > 1:
            changed[module] = partial(_recomputed, module.forward)
    return changed


def _frozen(layer: Layer, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if args or kwargs or not (torch.is_grad_enabled() and x.requires_grad):
        return layer.forward(x, *args, **kwargs)
    return FrozenLinear.apply(x, layer)


def _recomputed(forward: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return forward(x, *args, **kwargs)
    return Recomputed.apply(x, lambda value: forward(value, *args, **kwargs))


def _plain(conditioning: list[Any]) -> list[Any]:
    """CONDITIONING whose tensors autograd can keep."""

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.clone() if value.is_inference() else value
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        return type(value)(map(copied, value)) if type(value) in (list, tuple) else value

    return [copied(entry) for entry in conditioning]
