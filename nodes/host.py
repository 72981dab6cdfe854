"""What the pack asks of ComfyUI: which model this is, where a LoRA's modules lie in it, its sigmas, one run of its sampler."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ..glance_core import lora_names, schedule, tiny
from ..glance_core.adapter_metadata import Trained
from ..glance_core.errors import AdapterError, ScheduleError
from ..glance_core.lora_file import Adapter, Factor
from ..glance_core.phase_switch import LowRank, check_update, find_module
from ..glance_core.tiny.model import HEAD

SCHEDULES = ["auto", "qwen-image", "flux", "model"]

# ComfyUI's model classes, most derived first where one derives from another; a class not listed here is known by its own name.
_ARCHITECTURES = {
    "Chroma": "chroma", "Flux2": "flux2", "LongCatImage": "longcat-image", "Flux": "flux", "MageFlow": "mageflow", "QwenImage": "qwen-image",
    "SD3": "sd3", "WAN21": "wan", "HunyuanVideo": "hunyuan-video", "Lumina2": "lumina2", "SDXL": "sdxl", "SDXLRefiner": "sdxl",
}  # fmt: skip
# Configurations that share a model class but not its ladder or weights.
_CONFIGURATIONS = {"FluxSchnell": "flux-schnell", "SD15": "sd1", "SD20": "sd2"}


def architecture(patcher: Any) -> str:
    """The model's architecture by the name adapters use, else its class's own name in lower case."""
    model_class = type(patcher.model)
    config = type(getattr(patcher.model, "model_config", None)).__name__
    if config == "FluxSchnell" and _is_embedded(patcher.model.model_config.unet_config):
        return tiny.BASE
    if config in _CONFIGURATIONS:
        return _CONFIGURATIONS[config]
    for parent in model_class.__mro__:
        if parent.__name__ in _ARCHITECTURES:
            return _ARCHITECTURES[parent.__name__]
    return model_class.__name__.lower()


def _is_embedded(unet_config: Mapping[str, Any]) -> bool:
    """By sizes that no other FLUX has: the pack's own model."""
    return (unet_config.get("hidden_size"), unet_config.get("context_in_dim"), unet_config.get("vec_in_dim")) == (
        HEAD, tiny.TEXT_WIDTH, tiny.TEXT_WIDTH,
    )  # fmt: skip


def ladder_of(patcher: Any) -> str:
    """The kind of ladder this model's teacher walks, by its class: its own where that is known, else the model's sigmas."""
    here = architecture(patcher)
    if here == tiny.BASE:
        return tiny.LADDER
    return here if here in schedule.DYNAMIC_SHIFTS else "model"


@dataclass(frozen=True)
class Matched:
    """An adapter's updates by target module of the model (path from the model's root), and the modules found nowhere."""

    updates: Mapping[str, tuple[LowRank, ...]]
    modules: int
    unmatched: tuple[str, ...]


def match(adapter: Adapter, patcher: Any, strength: float, key_map: Mapping[str, Any]) -> Matched:
    """Find each module of the adapter in the model by the host's own key map; strength and scale go into `up`, in fp32, before
    both factors are cast to what the model computes in.

    Raises AdapterError, naming adapter and model, if the adapter is for another architecture or size.
    """
    refuse_other_architecture(adapter, patcher)
    dtype = compute_dtype(patcher)
    updates: dict[str, list[LowRank]] = {}
    unmatched = []
    for module, factor in adapter.factors.items():
        key = next((key_map[name] for name in lora_names.spellings(factor.source, module) if name in key_map), None)
        weight, rows, rearrange = _parts_of(key)
        if weight is None or not weight.endswith(".weight"):
            unmatched.append(module)
            continue
        target = weight.removesuffix(".weight")
        layer = find_module(patcher.model, target)
        update = _update(adapter.name, module, _shaped(factor, layer), strength, rows, rearrange)
        check_update(layer, f"{adapter.name}: {module}", update)
        updates.setdefault(target, []).append(LowRank(update.down.to(dtype), update.up.to(dtype), update.start))
    matched = len(adapter.factors) - len(unmatched)
    if matched == 0 or matched < len(unmatched):
        what = f"only {matched}" if matched else "none"
        raise AdapterError(
            f"{adapter.name} does not fit the model: {what} of its {len(adapter.factors)} modules ({_kind(adapter)}; the first not found is "
            f"{unmatched[0]}) are in this {type(patcher.model).__name__} ({architecture(patcher)}); load a pair made for this model"
        )
    if strength == 0:
        updates = {}
    return Matched({target: tuple(found) for target, found in updates.items()}, matched, tuple(unmatched))


def refuse_other_architecture(adapter: Adapter, patcher: Any) -> None:
    """A pair for FLUX can fit some modules of Qwen-Image by name and size; it is refused by what it is, not by how much fits."""
    here = architecture(patcher)
    stated = adapter.trained.base is not None
    if adapter.bases and here not in adapter.bases and (stated or here in lora_names.KNOWN_BASES):
        raise AdapterError(
            f"{adapter.name} is a {_kind(adapter)} adapter but the model is a {type(patcher.model).__name__} ({here}); load a pair made for {here}"
        )


def _kind(adapter: Adapter) -> str:
    return "/".join(sorted(adapter.bases)) or "unknown architecture"


def _parts_of(key: Any) -> tuple[str | None, tuple[int, int, int] | None, Any]:
    """The host's key: a weight's name, or a tuple with the slice of it and the rearrangement of its rows."""
    if key is None or isinstance(key, str):
        return key, None, None
    return key[0], key[1], key[2] if len(key) > 2 else None


def _shaped(factor: Factor, layer: torch.nn.Module) -> Factor:
    """The factor in the layer's own dimensions: trainers write a convolution's flat, and a Linear's as 1 x 1 convolutions."""
    kernel = getattr(layer, "kernel_size", None)
    down = factor.down
    if kernel is None:
        down = down.flatten(1) if math.prod(down.shape[2:]) == 1 else down
    elif down.ndim == 2 and down.shape[1] % math.prod(kernel) == 0:
        down = down.reshape(len(down), -1, *kernel)
    return replace(factor, down=down)


def _update(name: str, module: str, factor: Factor, strength: float, rows: tuple[int, int, int] | None, rearrange: Any) -> LowRank:
    up = factor.up.float() * (factor.scale * strength)
    if rearrange is not None:
        moved = rearrange(up)
        down = factor.down.float().flatten(1)
        if not torch.allclose(rearrange(up.flatten(1) @ down), moved.flatten(1) @ down, atol=1e-6):
            raise AdapterError(
                f"{name}: {module} is rearranged by the host in a way that no low-rank branch can follow; merge this LoRA instead"
            )
        up = moved
    if rows is None:
        return LowRank(factor.down, up)
    dim, start, length = rows
    if dim != 0 or up.shape[0] != length:
        raise AdapterError(
            f"{name}: {module} gives {up.shape[0]} features where the model has a slice of {length}; the adapter is for another size"
        )
    return LowRank(factor.down, up, start)


def fingerprint(patcher: Any) -> str:
    """A hash of the names and shapes of the model's weights: equal for a model and its fine-tunes."""
    shapes = sorted(f"{name} {tuple(p.shape)}" for name, p in patcher.model.diffusion_model.named_parameters())
    return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]


def key_map(patcher: Any) -> dict[str, Any]:
    """The host's map from the names a LoRA may use to the model's weights, or to slices of them."""
    return comfy.lora.model_lora_keys_unet(patcher.model, {})


def compute_dtype(patcher: Any) -> torch.dtype:
    """The precision the model computes in; never a storage-only one such as fp8."""
    dtype = patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
    return dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.bfloat16


def teacher_ladder(patcher: Any, latent_shape: tuple[int, ...], kind: str, trained: Trained) -> tuple[str, tuple[float, ...]]:
    """The ladder's kind and sigmas for this model at this latent size.

    auto: what the pair was trained on, else by the model's class, else the model's own sigmas. Raises ScheduleError if a kind was
    chosen that the pair was not trained on.
    """
    if kind == "auto":
        kind = trained.ladder or ladder_of(patcher)
    elif trained.ladder not in (None, kind):
        raise ScheduleError(f"schedule is {kind} but the pair was trained on the {trained.ladder} ladder; choose auto")
    if kind != "model":
        refuse_unless_flow(patcher, f"the {kind} ladder")
    steps = trained.teacher_steps or schedule.TEACHER_STEPS
    sigmas = None
    if kind == "model":
        sampling = patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps).tolist()
    return kind, schedule.teacher_ladder(kind, steps, tokens=latent_tokens(latent_shape), shift=trained.shift, sigmas=sigmas)


def latent_tokens(shape: tuple[int, ...]) -> int:
    """Tokens of a latent (..., H, W): 2 x 2 latents each, padded up as the model does."""
    height, width = shape[-2:]
    return -(-height // 2) * -(-width // 2)


def split(trained: Trained, slow_steps: int, fast_steps: int, teacher_steps: str) -> schedule.Split:
    """The teacher steps to walk: as typed, else as trained where the counts agree, else the paper's rule at the trained boundary."""
    total = trained.teacher_steps or schedule.TEACHER_STEPS
    if teacher_steps.strip():
        return schedule.parse_steps(teacher_steps, total)
    known = trained.split
    if known and (len(known.slow), len(known.fast)) == (slow_steps, fast_steps):
        return known
    return schedule.split_steps(slow_steps, fast_steps, total, known.fast[0] if known else None)


def fixed_latent(patcher: Any, latent: Mapping[str, Any]) -> torch.Tensor:
    """The latent's samples as the host's samplers would take them (an empty latent gets the model's channels and scale)."""
    return comfy.sample.fix_empty_latent_channels(
        patcher, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )


def picture_size(patcher: Any, shape: tuple[int, ...]) -> str:
    """Width x height in pixels of what a latent (..., H, W) decodes to."""
    height, width = (side * patcher.model.latent_format.spacial_downscale_ratio for side in shape[-2:])
    return f"{width}x{height}"


def latent_shape(patcher: Any, latent: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of the latent that will be sampled; of a nested one (video with sound) the first part's."""
    samples = fixed_latent(patcher, latent)
    return tuple((samples.unbind()[0] if samples.is_nested else samples).shape)


def sample(
    patcher: Any, positive: Any, negative: Any, latent: Mapping[str, Any], seed: int, cfg: float, sampler: Any, sigmas: torch.Tensor
) -> dict[str, Any]:
    """One run of a SAMPLER of the host on these sigmas; previews, masks, batches and interrupts are the host's."""
    samples = fixed_latent(patcher, latent)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    result = comfy.sample.sample_custom(
        patcher, noise, cfg, sampler, sigmas, positive, negative, samples,
        noise_mask=latent.get("noise_mask"), callback=latent_preview.prepare_callback(patcher, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
    )  # fmt: skip
    out = {name: value for name, value in latent.items() if name not in ("downscale_ratio_spacial", "downscale_ratio_temporal")}
    return out | {"samples": result}


def starting_noise(patcher: Any, ladder: Sequence[float], shape: Sequence[int], count: int, seed: int) -> torch.Tensor:
    """Where the ladder starts (count, ...) for latents of this shape (B, ...), drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    noise = torch.randn((count, *shape[1:]), generator=generator).to(patcher.load_device)
    sigma = torch.tensor([ladder[0]], device=noise.device)
    started: torch.Tensor = patcher.get_model_object("model_sampling").noise_scaling(sigma, noise, torch.zeros_like(noise), True)
    return started


def is_flow(patcher: Any) -> bool:
    """Whether the model's sigmas are those of a flow, from 1 down."""
    return isinstance(patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST)


def refuse_unless_flow(patcher: Any, what: str) -> None:
    """Raise ScheduleError if the model is no flow model."""
    if not is_flow(patcher):
        raise ScheduleError(f"{what} is for flow models, and {type(patcher.model).__name__} is none; choose schedule auto or model")
