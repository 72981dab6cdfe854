"""Tiny real models of eight base models: ComfyUI's own classes with seeded weights and conditioning.

Those of every other architecture are in architectures.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.nested_tensor
import comfy.samplers
import comfy.supported_models
import torch

_DIT = {
    "patch_size": 2,
    "context_in_dim": 48,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
}
_FLUX = _DIT | {"axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True}


class Random(tuple):
    """The shape of a tensor of normal numbers."""

    def __new__(cls, *shape):
        return super().__new__(cls, shape)


class Ones(Random):
    """The shape of a tensor of ones."""


class Tokens(Random):
    """The shape of a tensor of token numbers."""


MASK = {"attention_mask": Ones(1, 6)}
CLIP_VISION = {
    "clip_vision_output": {"penultimate_hidden_states": Random(1, 257, 1280), "last_hidden_state": Random(1, 9, 48)}
}


def stable_audio_weights():
    """Return what StableAudio3 takes from its file when it is made: the embedder of the duration."""
    import comfy.ldm.audio.embedders

    embedder = comfy.ldm.audio.embedders.NumberConditioner(768, 0, 384, fourier_features_type="expo")
    generator = torch.Generator().manual_seed(0)
    return {
        f"conditioner.conditioners.seconds_total.{key}": 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in embedder.state_dict().items()
    }


@dataclass(frozen=True)
class Tiny:
    """How to build one: ComfyUI's configuration class, its settings, latent shape, and the conditioning.

    latent: without the batch; a list for a latent of several parts. context, pooled: widths. extra: other values of
    the conditioning. weights: what the model's constructor reads from a file.
    """

    supported: str
    config: dict
    latent: tuple[int, ...] | list[tuple[int, ...]]
    context: int = 48
    pooled: int | None = None
    extra: dict = field(default_factory=dict)
    weights: Callable[[], dict] = dict


MODELS = {
    "flux": Tiny(
        "Flux",
        _FLUX | {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "guidance_embed": True,
                 "txt_ids_dims": []},
        (16, 8, 8), 48, 32, {"guidance": 3.5},
    ),
    "qwen-image": Tiny(
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1,
         "attention_head_dim": 128, "joint_attention_dim": 48},
        (16, 1, 8, 8), 48,
    ),
    "sd3": Tiny(
        "SD3",
        {"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None,
         "adm_in_channels": 2048,
         "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
         "num_patches": 36864, "pos_embed_max_size": 192, "pos_embed_scaling_factor": None,
         "x_block_self_attn_layers": []},
        (16, 8, 8), 4096, 2048,
    ),
    "wan": Tiny(
        "WAN21_T2V",
        {"image_model": "wan2.1", "model_type": "t2v", "dim": 128, "out_dim": 16, "num_heads": 1, "ffn_dim": 256,
         "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True,
         "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16},
        (16, 2, 8, 8), 4096,
    ),
    "hunyuan-video": Tiny(
        "HunyuanVideo",
        _FLUX | {"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
                 "vec_in_dim": 768, "meanflow": False, "depth": 1, "depth_single_blocks": 1, "theta": 256,
                 "byt5": False, "guidance_embed": True, "use_cond_type_embedding": False, "vision_in_dim": None,
                 "meanflow_sum": False},
        (16, 2, 8, 8), 48, 768, {"guidance": 3.5},
    ),
    "chroma": Tiny(
        "Chroma",
        _FLUX | {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 128,
                 "hidden_dim": 96, "n_layers": 2, "vec_in_dim": None, "txt_ids_dims": []},
        (16, 8, 8), 48, 768,
    ),
    "lumina2": Tiny(
        "Lumina2",
        {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": 48, "n_layers": 2,
         "n_heads": 1, "n_kv_heads": 1, "qk_norm": True, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512]},
        (16, 8, 8), 48, None, MASK,
    ),
    "sd1": Tiny(
        "SD15",
        {"use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
         "adm_in_channels": None, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
         "transformer_depth": [1, 1], "channel_mult": [1, 2], "transformer_depth_output": [1, 1, 1, 1],
         "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": 768,
         "use_temporal_attention": False, "use_temporal_resblock": False},
        (4, 8, 8), 768,
    ),
}  # fmt: skip
UNSET = (
    "pos_embed",
    "pos_emb",
    ".rope.inv_freq",
    ".rotary_pos_emb.inv_freq",
    "_conditioning",
)  # buffers that models leave as the memory was
FLOW = [name for name in MODELS if name != "sd1"]


def tiny(name: str) -> Tiny:
    """Return the settings of one of the eight or of architectures.py."""
    from architectures import ARCHITECTURES

    return MODELS[name] if name in MODELS else ARCHITECTURES[name]


def build(name: str, dtype=torch.float32, manual_cast=None, seed: int = 0, **config):
    """Return a MODEL with seeded weights. dtype: what weights are stored in. manual_cast: what they compute in."""
    settings = getattr(comfy.supported_models, tiny(name).supported)({**tiny(name).config, **config})
    settings.unet_config.update(tiny(name).config)  # ComfyUI's own extra settings are those of the full size
    settings.unet_config.update(config)
    settings.set_inference_dtype(dtype, manual_cast)
    model = settings.get_model(tiny(name).weights(), "")
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            random = random / math.sqrt(max(1, parameter[0].numel()))
        else:
            random = 0.02 * random + (0 if parameter_name.endswith("bias") else 1)
        parameter.copy_(random.to(parameter.dtype))
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith(UNSET):
            buffer.copy_(0.02 * torch.randn(buffer.shape, generator=generator))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())


def conditioning(name: str, seed: int = 1, tokens: int = 6):
    generator = torch.Generator().manual_seed(seed)
    extra = {}
    if tiny(name).pooled:
        extra["pooled_output"] = torch.randn((1, tiny(name).pooled), generator=generator)
    extra |= {key: _filled(value, generator) for key, value in tiny(name).extra.items()}
    if "attention_mask" in extra:
        extra["attention_mask"] = torch.ones((1, tokens), dtype=torch.long)
    return [[torch.randn((1, tokens, tiny(name).context), generator=generator), extra]]


def _filled(value: Any, generator: torch.Generator) -> Any:
    """Return the value with tensors in place of shapes."""
    if isinstance(value, Tokens):
        return torch.randint(10, 900, value, generator=generator)
    if isinstance(value, Ones):
        return torch.ones(tuple(value))
    if isinstance(value, Random):
        return torch.randn(tuple(value), generator=generator)
    if isinstance(value, list):
        return [_filled(item, generator) for item in value]
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _filled(item, generator) for key, item in value.items()})
    return value


def empty_latent(name: str, batch: int = 1):
    latent = tiny(name).latent
    if isinstance(latent, list):
        parts = [torch.zeros((batch, *shape)) for shape in latent]
        return {"samples": comfy.nested_tensor.NestedTensor(parts)}
    return {"samples": torch.zeros((batch, *latent))}


def state(model) -> dict[str, torch.Tensor]:
    """Return a copy of every weight and buffer."""
    return {key: value.clone() for key, value in _stored(model).items()}


def _stored(model) -> dict[str, torch.Tensor]:
    """Return every weight and buffer as the model holds it. ComfyUI-GGUF's own state dict has stand-ins on "meta"."""
    held = dict(model.model.named_parameters())
    tensors = {key: held.get(key, value) if value.is_meta else value for key, value in model.model.state_dict().items()}
    return {key: _plain(value) for key, value in tensors.items() if not value.is_meta}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return it without its class, whose `clone` may be no copy; one that wraps other tensors as it is."""
    wraps = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return tensor if wraps else tensor.detach().as_subclass(torch.Tensor)


def assert_bit_exact(model, before: dict[str, torch.Tensor]) -> None:
    after = _stored(model)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(_bytes(value), _bytes(after[key])), key
    wrapped = [
        name for name, module in model.model.named_modules() if not _is_own(module, module.__dict__.get("forward"))
    ]
    assert wrapped == [], f"forwards left wrapped: {wrapped[:3]}"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _is_own(module: torch.nn.Module, forward) -> bool:
    """Return whether it is the class's own. ComfyUI's bypass LoRA leaves that as an attribute, which is harmless."""
    return forward is None or (
        getattr(forward, "__self__", None) is module and forward.__func__ is type(module).forward
    )
