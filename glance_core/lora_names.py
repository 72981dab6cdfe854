"""How the ecosystem names the tensors of a LoRA: suffix styles, prefixes, kohya's flattened names, architectures.

Nothing here touches a tensor. Sources: the writers themselves (peft 0.21, diffusers 0.42, kohya sd-scripts, musubi-tuner, ComfyUI's
TrainLoraNode) and the published Glance files, which mix two styles in one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

DOWN, UP, ALPHA = "down", "up", "alpha"

# (suffix pattern, role, name of the style); the part of the key before the suffix is the module. First match wins.
_SUFFIXES = [
    (re.compile(pattern + r"$"), role, style)
    for pattern, role, style in (
        (r"\.lora_A(\.[^.]+)?\.weight", DOWN, "lora_A/lora_B"),
        (r"\.lora_B(\.[^.]+)?\.weight", UP, "lora_A/lora_B"),
        (r"\.lora_A", DOWN, "lora_A/lora_B"),
        (r"\.lora_B", UP, "lora_A/lora_B"),
        (r"\.lora\.down\.weight", DOWN, "lora.down/lora.up"),
        (r"\.lora\.up\.weight", UP, "lora.down/lora.up"),
        (r"_lora\.down\.weight", DOWN, "lora.down/lora.up"),
        (r"_lora\.up\.weight", UP, "lora.down/lora.up"),
        (r"\.lora_down\.weight", DOWN, "lora_down/lora_up"),
        (r"\.lora_up\.weight", UP, "lora_down/lora_up"),
        (r"\.lora_linear_layer\.down\.weight", DOWN, "lora_linear_layer"),
        (r"\.lora_linear_layer\.up\.weight", UP, "lora_linear_layer"),
        (r"\.alpha", ALPHA, "alpha"),
    )
]

# Anything that changes the meaning of a low-rank update; a file that holds one is refused rather than half applied.
_OTHER_METHODS = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".hada_w": "LoHa",
    ".lokr_w": "LoKr",
    ".oft_": "OFT",
    ".a1.weight": "GLoRA",
    ".lora_mid.weight": "LoCon with a middle (Tucker) factor",
    ".lora_B.bias": "LoRA with a bias",
    ".lora_embedding_": "embedding LoRA",
    ".reshape_weight": "LoRA that resizes the base",
}

_TEXT_ENCODER = ("lora_te", "text_encoder", "text_encoders.", "text_model.", "lycoris_te", "conditioner.")

_WRAPPERS = ("base_model.model.", "unet.base_model.model.")
_PREFIXES = ("diffusion_model.", "model.diffusion_model.", "transformer.", "unet.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# Names that keep their underscores when a flattened kohya name is taken apart (every other underscore was a dot).
_COMPOUNDS = (
    "single_transformer_blocks", "transformer_blocks", "double_blocks", "single_blocks", "joint_blocks", "double_layers",
    "single_layers", "context_refiner", "noise_refiner", "img_attn", "txt_attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod",
    "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_out", "to_q", "to_k", "to_v", "norm_q", "norm_k", "q_proj", "k_proj",
    "v_proj", "out_proj", "self_attn", "cross_attn", "x_block", "context_block", "ff_context", "norm1_context", "norm_out", "proj_out",
    "proj_mlp", "proj_in", "img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer", "adaLN_modulation", "input_blocks",
    "middle_block", "output_blocks", "down_blocks", "up_blocks", "mid_block", "time_embed", "time_text_embed", "context_embedder",
    "x_embedder", "in_layers", "out_layers", "emb_layers", "skip_connection", "linear_1", "linear_2", "individual_token_refiner",
    "k_img", "v_img", "norm_k_img", "feed_forward", "cap_embedder", "t_embedder", "y_embedder", "c_embedder", "input_embedder",
    "in_layer", "out_layer", "in_proj", "distilled_guidance_layer", "patch_embedding", "text_embedding", "time_embedding",
    "time_projection", "img_emb", "timestep_embedder", "pos_embed", "label_emb",
)  # fmt: skip
_FLAT_PART = re.compile("(?:" + "|".join(sorted(_COMPOUNDS, key=len, reverse=True)) + r")(?=_|$)|[^_]+")


@dataclass(frozen=True)
class Key:
    """One tensor name taken apart: `source` is the module as the file writes it, `module` the same without its prefix."""

    source: str
    module: str
    role: str
    style: str


def parse_key(key: str) -> Key | None:
    """The key's parts, or None where it is no part of a plain LoRA."""
    for pattern, role, style in _SUFFIXES:
        found = pattern.search(key)
        if found and found.start() > 0:
            source = key[: found.start()]
            module = module_name(source)
            return Key(source, module, role, style) if module else None  # a prefix alone would mean the whole model
    return None


def other_method(key: str) -> str | None:
    """The name of the adapter method that only this key's kind of file has, if it is not plain LoRA."""
    return next((method for mark, method in _OTHER_METHODS.items() if mark in key), None)


def is_text_encoder(key: str) -> bool:
    """Whether the key belongs to a text encoder's adapter, which a Glance pair has no use for."""
    return key.startswith(_TEXT_ENCODER)


def module_name(source: str) -> str:
    """The module behind a prefix: `transformer.x.y` and `lora_unet_x_y` both become `x.y`."""
    for prefix in _FLAT_PREFIXES:
        if source.startswith(prefix) and "." not in source:
            return unflatten(source[len(prefix) :])
    for prefixes in (_WRAPPERS, _PREFIXES):
        found = next((prefix for prefix in prefixes if source.startswith(prefix) and len(source) > len(prefix)), "")
        source = source[len(found) :]
    return source


def unflatten(name: str) -> str:
    """Dots back into a name that kohya's trainers flattened: `double_blocks_0_img_attn_qkv` -> `double_blocks.0.img_attn.qkv`."""
    return ".".join(_FLAT_PART.findall(name))


def flatten(module: str) -> str:
    """The module as kohya's trainers write it, without prefix."""
    return module.replace(".", "_")


def spellings(source: str, module: str) -> list[str]:
    """Every name under which a host may know the module, the file's own first."""
    flat = flatten(module)
    names = [source, f"diffusion_model.{module}", f"transformer.{module}", module, f"lora_unet_{flat}", f"lycoris_{flat}"]
    return list(dict.fromkeys(names))


# Module names that only some architectures have, most telling first.
_TELLING = (
    (re.compile(r"^transformer_blocks\.\d+\.(img|txt)_(mlp|mod)\b"), ("qwen-image",)),
    (re.compile(r"^(double_blocks|single_blocks|single_transformer_blocks)\b"), ("flux", "flux2", "chroma", "hunyuan-video")),
    (re.compile(r"^joint_blocks\b"), ("sd3",)),
    (re.compile(r"^blocks\.\d+\.(self_attn|cross_attn|ffn)\b"), ("wan",)),
    (re.compile(r"^(noise_refiner|context_refiner|layers\.\d+\.(attention|feed_forward))\b"), ("lumina2", "z-image")),
    (re.compile(r"^(input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks)\b"), ("sd1", "sd2", "sdxl")),
    (re.compile(r"^transformer_blocks\.\d+\.ff_context\b"), ("sd3", "flux", "flux2", "chroma")),
    (re.compile(r"^transformer_blocks\.\d+\.attn\.add_[qkv]_proj$"), ("qwen-image", "sd3", "flux", "flux2", "chroma")),
)
KNOWN_BASES = frozenset(name for _, names in _TELLING for name in names)


def possible_bases(modules: Iterable[str]) -> frozenset[str]:
    """The architectures whose modules carry such names; empty where the names tell nothing."""
    modules = list(modules)
    for pattern, names in _TELLING:
        if any(pattern.search(module) for module in modules):
            return frozenset(names)
    return frozenset()


def written_prefix(modules: Iterable[str], bases: frozenset[str]) -> str:
    """The prefix this package writes, under which ComfyUI's own loader and diffusers find the modules too.

    Names in diffusers' layout keep `transformer.`, the only prefix under which ComfyUI knows them where its own modules are named or
    fused differently (FLUX, SD3); Qwen-Image's modules have the same names in both.
    """
    return "transformer." if implementation(modules) == _DIFFUSERS and bases != {"qwen-image"} else "diffusion_model."


_DIFFUSERS, _COMFYUI = "diffusers", "https://github.com/comfyanonymous/ComfyUI"  # as ModelSpec files state them


def implementation(modules: Iterable[str]) -> str:
    """Whose names these modules have, as the standard for metadata wants it stated."""
    return _DIFFUSERS if is_diffusers(modules) else _COMFYUI


def is_diffusers(modules: Iterable[str]) -> bool:
    return any(module.startswith(("transformer_blocks.", "single_transformer_blocks.")) for module in modules)
