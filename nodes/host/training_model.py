"""A model of ComfyUI with gradients: its layers, how to differentiate them, and the host as it was afterwards.

The work runs as a sampler of ComfyUI inside one guided run. So loading, conditioning, patches, wrappers and clean-up
are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import comfy.model_management
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ...glance_core.lora.slots import Slot, fused_slots, is_linear, whole_slots
from ...glance_core.sampling.velocity import RowVelocity
from ...glance_core.training.autograd.checkpointing import blocks_of
from ...glance_core.training.autograd.forward_patches import Forwards, forwards_restored
from ...glance_core.training.autograd.lora_linear import FrozenLinear, Layer, Recomputed, WeightOf, plain_weight
from ...glance_core.training.student import Student
from ...glance_core.training.targets import PRESETS, finds_any, target_modules
from .autograd_fit import fit_for_autograd
from .base_model import base_of, check_needs_no_next_sigma, compute_dtype, describe
from .conditioned import Conditioned, Kept
from .host_caches import clear_caches
from .nested import mapped

T = TypeVar("T")
ROOT = "diffusion_model"
OFFLOADS = ["auto", "all", "none"]
_EVERYTHING = 1e30  # bytes
_KNOWN_FORWARDS = (torch.nn.Linear.forward.__module__, comfy.ops.__name__)  # input @ weight, and nothing else


def trained_slots(patcher: Any, targets: str) -> dict[str, Slot]:
    """Return what gets a LoRA, by the name it is saved under. Raises TrainingError if `targets` finds nothing."""
    base, root = base_of(patcher), patcher.model.diffusion_model
    offered = whole_slots(root)
    if base.fused and base.trains_parts:
        parts = fused_slots(root, base.fused)
        if targets in PRESETS or finds_any(parts, targets, base.name):
            offered = parts
    names = target_modules(offered, targets, base.name)
    return {name: replace(offered[name], module=f"{ROOT}.{offered[name].module}") for name in names}


@dataclass(frozen=True)
class TrainingInputs:
    """What a model runs on.

    mask: noise_mask of the latent, 1 where it is sampled. offload: `auto` (ComfyUI leaves `room` bytes for training and
    streams the weights that do not fit), `all`, or `none`.
    """

    patcher: Any
    positive: list[Any]
    negative: list[Any]
    latents: Any
    seed: int
    offload: str = "auto"
    room: int = 0
    mask: torch.Tensor | None = None


class _Work(comfy.samplers.Sampler):
    """A sampler that hands the loaded model over instead of sampling. result: what the work returned."""

    def __init__(self, work: Callable[[Conditioned, torch.Tensor], Any]):
        self.work, self.result = work, None

    def sample(self, model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, *run: Any) -> Any:
        """Work. run: noise, latent_image, denoise_mask, and more that is not needed."""
        noise, latent_image, denoise_mask, *_ = run
        kept = None if denoise_mask is None else Kept(denoise_mask, latent_image)
        with ExitStack() as afterwards:
            for model in (model_wrap.inner_model, *_control_models(model_wrap.conds)):
                afterwards.enter_context(fit_for_autograd(model))
            self.result = self.work(Conditioned(model_wrap, extra_args, kept), latent_image)
        return torch.zeros_like(noise)


def _control_models(conds: Mapping[str, Any]) -> list[torch.nn.Module]:
    """Return the models of the control nets on the prompts, whose answers depend on the latents too."""
    nets = [entry["control"] for entries in conds.values() for entry in entries if "control" in entry]
    patchers = [patcher for net in nets for patcher in net.get_models()]
    return list(dict.fromkeys(patcher.model for patcher in patchers))


def with_loaded_model(inputs: TrainingInputs, work: Callable[[Conditioned, torch.Tensor], T]) -> T:
    """Return work(model on its prompts, latents in the model's scale), with the model loaded and fit for autograd.

    Afterwards the model's tensors and ComfyUI's flags are what they were, whatever ended the work.
    """
    check_needs_no_next_sigma(inputs.patcher)
    model = inputs.patcher.clone()
    loading = _Loading(inputs.offload, inputs.room, torch.is_inference_mode_enabled())
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "glance_training", loading.prepare)
    with ExitStack() as afterwards, torch.inference_mode(False), torch.no_grad(), forwards_restored(model.model):
        afterwards.callback(setattr, comfy.model_management, "in_training", comfy.model_management.in_training)
        afterwards.callback(clear_caches, model)
        comfy.model_management.in_training = True  # without it ComfyUI's rotary embedding has no backward
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(_normal_tensors(inputs.positive), _normal_tensors(inputs.negative))
        samples, sampler = mapped(inputs.latents, torch.clone), _Work(work)
        sigmas = torch.tensor([1.0, 0.0])
        mask = None if inputs.mask is None else inputs.mask.clone()
        guider.sample(
            mapped(samples, torch.zeros_like), samples, sampler, sigmas, mask, disable_pbar=True, seed=inputs.seed
        )
        return sampler.result


@dataclass(frozen=True)
class _Loading:
    """How to load a model for training.

    as_nodes_run: the inference mode in which ComfyUI loads and frees models elsewhere. Quantised weights that were
    moved in another mode could never be moved again.
    """

    offload: str
    room: int
    as_nodes_run: bool

    def prepare(self, executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        """PREPARE_SAMPLING: free every other model, and load this one with room for training."""
        loaded_models = comfy.model_management.current_loaded_models
        mine = [loaded for loaded in loaded_models if loaded.model is not None and loaded.model.model is model.model]
        shape = list(noise_shape)
        if self.offload == "auto":  # ComfyUI leaves free what it estimates for a batch, so ask for one that needs it
            one = max(1, comfy.sampler_helpers.estimate_memory(model, [1, *shape[1:]], conds)[1])
            shape[0] = max(shape[0], -(-self.room // one))
        kwargs |= {"force_full_load": self.offload == "none", "force_offload": self.offload == "all"}
        with torch.inference_mode(self.as_nodes_run):
            comfy.model_management.free_memory(_EVERYTHING, model.load_device, keep_loaded=mine)
            return executor(model, shape, conds, *args, **kwargs)


def student_of(patcher: Any, velocity: RowVelocity, slots: Mapping[str, Slot], gradient_checkpointing: bool) -> Student:
    """Return the loaded model as the core trains it."""
    model = patcher.model
    return Student(
        model,
        velocity,
        slots,
        name=describe(patcher),
        device=patcher.load_device,
        half=compute_dtype(patcher) == torch.float16,
        blocks=blocks_of(model.diffusion_model) if gradient_checkpointing else None,
        weight_of=weight_of,
        other_forwards=partial(_other_forwards, model),
        learns_sigmas=not base_of(patcher).sigma_as_number,
    )


def weight_of(module: torch.nn.Module) -> WeightOf | None:
    """Return how to get a Linear's weight in backward; None if only its forward knows (GGUF, other quantised kinds).

    A forward of another class may unpack or scale the weight, and one that was put on the layer may add to its output.
    """
    weight, forward = getattr(module, "weight", None), getattr(module.forward, "__func__", None)
    plain = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.is_floating_point()
    if not plain or forward is not type(module).forward or forward.__module__ not in _KNOWN_FORWARDS:
        return None
    return _cast_weight if isinstance(module, comfy.ops.CastWeightBiasOp) else plain_weight


@contextmanager
def _cast_weight(module: torch.nn.Module, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the weight as ComfyUI would use it: patched, cast, streamed to the device, and released again."""
    if module.weight.device == like.device and not module.weight_function and not hasattr(module, "_v"):
        yield module.weight  # as it is stored
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(
        module, dtype=like.dtype, device=like.device, bias_dtype=like.dtype, offloadable=True
    )
    try:
        yield weight
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)


def _other_forwards(model: torch.nn.Module, trained: frozenset[str]) -> Forwards:
    """Return forwards for layers without a LoRA whose weights are cast or streamed for each use.

    Autograd must not keep those copies.
    """
    changed: dict[torch.nn.Module, Callable[..., Any]] = {}
    for name, module in model.named_modules():
        if (
            name in trained
            or not isinstance(module, comfy.ops.CastWeightBiasOp)
            or isinstance(module, torch.nn.Embedding)
        ):
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


def _normal_tensors(conditioning: list[Any]) -> list[Any]:
    """Return CONDITIONING whose tensors autograd can save."""

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.clone() if value.is_inference() else value
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        return type(value)(map(copied, value)) if type(value) in (list, tuple) else value

    return [copied(entry) for entry in conditioning]
