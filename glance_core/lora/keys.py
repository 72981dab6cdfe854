"""How LoRA files name their tensors: suffixes, prefixes, and kohya's flattened names.

Nothing here touches a tensor. Sources: the writers themselves (peft 0.21, diffusers 0.42, kohya sd-scripts,
musubi-tuner, ComfyUI's TrainLoraNode) and the published Glance files, which mix two styles in one file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..models import base_model
from . import module_names

_OURS, _THEIRS = "diffusion_model.", "transformer."

DOWN, UP, ALPHA, BIAS = "down", "up", "alpha", "bias"
DIFFERENCE = "diff_b"  # the style of biases that no scale applies to

# (suffix pattern, role, style). The part of the key before the suffix is the module. The first match wins.
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
        (r"\.lora_B(\.[^.]+)?\.bias", BIAS, "lora_A/lora_B"),
        (r"\.diff_b", BIAS, DIFFERENCE),
    )
]

# Keys that change the meaning of a low-rank update. A file with one is refused, not half applied.
_OTHER_METHODS = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".hada_w": "LoHa",
    ".lokr_w": "LoKr",
    ".oft_": "OFT",
    ".a1.weight": "GLoRA",
    ".lora_mid.weight": "LoCon with a middle (Tucker) factor",
    ".lora_embedding_": "embedding LoRA",
    ".lora_E": "AdaLoRA",
    ".set_weight": "full weights",
    ".w_norm": "changes of normalisation layers",
    ".b_norm": "changes of normalisation layers",
    ".diff_m": "changes of modulation vectors",
    ".diff": "full weight changes",
}
# Endings that ComfyUI's own adapter classes and its loader read, of methods that act without the base's weight.
_READABLE = re.compile(
    r"\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale|[ab][12]\.weight|lora_mid\.weight"
    r"|diff|w_norm|b_norm)$"
)
# Beside factors, only control LoRAs have these: norms of their own, under their publisher's name or ComfyUI's, and a
# wider input layer.
_OF_CONTROL_LORAS = ("_norm.scale", "_norm.set_weight", ".reshape_weight")
# Marks that are a whole ending, because longer names begin with them.
_ENDINGS = (".diff",)

_TEXT_ENCODER = re.compile(r"^((lora|lycoris)_te\d?_|text_encoders?(_\d)?\.|text_model\.|conditioner\.)")

# What compilers, multi-GPU trainers and PEFT put around a model's names, anywhere and at the start.
_COMPILED = "_orig_mod."
_WRAPPERS = ("module.", "base_model.model.")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "pipe.dit.", "model.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# Names that keep their underscores when a flattened kohya name is split (every other underscore was a dot).
_COMPOUNDS = (
    "single_transformer_blocks", "transformer_blocks", "double_blocks", "single_blocks", "joint_blocks",
    "double_layers", "single_layers", "context_refiner", "noise_refiner", "img_attn", "txt_attn", "img_mlp",
    "txt_mlp", "img_mod", "txt_mod", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_out", "to_q",
    "to_k", "to_v", "norm_q", "norm_k", "q_proj", "k_proj", "v_proj", "out_proj", "self_attn", "cross_attn",
    "x_block", "context_block", "ff_context", "norm1_context", "norm_out", "proj_out", "proj_mlp", "proj_in",
    "img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer", "adaLN_modulation", "input_blocks",
    "middle_block", "output_blocks", "down_blocks", "up_blocks", "mid_block", "time_embed", "time_text_embed",
    "context_embedder", "x_embedder", "in_layers", "out_layers", "emb_layers", "skip_connection", "linear_1",
    "linear_2", "individual_token_refiner", "k_img", "v_img", "norm_k_img", "feed_forward", "cap_embedder",
    "t_embedder", "y_embedder", "c_embedder", "input_embedder", "in_layer", "out_layer", "in_proj",
    "distilled_guidance_layer", "patch_embedding", "text_embedding", "time_embedding", "time_projection", "img_emb",
    "timestep_embedder", "pos_embed", "label_emb",
)  # fmt: skip
_FLAT_PART = re.compile("(?:" + "|".join(sorted(_COMPOUNDS, key=len, reverse=True)) + r")(?=_|$)|[^_]+")


@dataclass(frozen=True)
class Key:
    """The parts of a tensor name. source: the module as the file writes it. module: the same without its prefix."""

    source: str
    module: str
    role: str
    style: str


def parse_key(key: str) -> Key | None:
    """Return the key's parts, or None if it is not part of a plain LoRA."""
    for pattern, role, style in _SUFFIXES:
        found = pattern.search(key)
        if found and found.start() > 0:
            source = key[: found.start()]
            module = module_name(source)
            return Key(source, module, role, style) if module else None  # a prefix alone would mean the whole model
    return None


def other_method(key: str) -> str | None:
    """Return the adapter method that this key belongs to, if that is not plain LoRA."""
    return next((method for mark, method in _OTHER_METHODS.items() if _is_marked(key, mark)), None)


def parse_other(key: str) -> Key | None:
    """Return the parts of a key of another method than plain LoRA that ComfyUI reads; the role is the key's ending."""
    found = _READABLE.search(key)
    if found is None or found.start() == 0:
        return None
    source = key[: found.start()]
    return Key(source, module_name(source), found[1], other_method(key) or "OFT")


def _is_marked(key: str, mark: str) -> bool:
    return key.endswith(mark) if mark in _ENDINGS else mark in key


def is_of_control_lora(key: str) -> bool:
    """Return whether a LoRA file with this key is a control LoRA, which changes more than low-rank factors can."""
    return key.endswith(_OF_CONTROL_LORAS)


def is_full_change(key: str) -> bool:
    """Return whether the key holds a whole changed weight or bias, or the difference to one."""
    return key.endswith((".diff", ".diff_b", ".set_weight"))


def is_text_encoder(key: str) -> bool:
    """Return whether the key belongs to a text encoder's adapter, which a Glance pair does not use."""
    return bool(_TEXT_ENCODER.match(key))


def module_name(source: str) -> str:
    """Remove the prefix: `transformer.x.y`, `lora_unet_x_y` and `lora_unet_x.y` become `x.y`."""
    source = without_compiler(source)
    for prefix in _FLAT_PREFIXES:
        if source.startswith(prefix):
            return ".".join(unflatten(part) for part in source[len(prefix) :].split("."))
    return _without(_WRAPPERS, _without(_PREFIXES, _without(_WRAPPERS, source)))


def without_compiler(name: str) -> str:
    """Remove what torch.compile puts into the names of a module's layers, flattened too."""
    return name.replace(_COMPILED, "").replace(flatten(_COMPILED), "")


def _without(prefixes: Iterable[str], source: str) -> str:
    found = next((prefix for prefix in prefixes if source.startswith(prefix) and len(source) > len(prefix)), "")
    return source[len(found) :]


def unflatten(name: str) -> str:
    """Put the dots back into a flattened name: `blocks_0_self_attn_q` becomes `blocks.0.self_attn.q`.

    A layer that no known model has is split by what names usually look like.
    """
    return module_names.unflattened(name) or ".".join(_FLAT_PART.findall(name))


def flatten(module: str) -> str:
    """Return the module as kohya's trainers write it, without prefix."""
    return module.replace(".", "_")


def spellings(source: str, module: str) -> list[str]:
    """Return every name under which a host may know the module, the file's own first."""
    flat = flatten(module)
    names = [
        source,
        f"diffusion_model.{source}",  # a model may have modules that are named like a prefix
        f"diffusion_model.{module}",
        f"transformer.{module}",
        module,
        f"lora_unet_{flat}",
        f"lycoris_{flat}",
    ]
    return list(dict.fromkeys(names))


def written_prefix(modules: Collection[str], base: str | None) -> str:
    """Return the prefix that this package writes, under which ComfyUI's own loader and diffusers find the modules.

    ComfyUI knows its own names under `diffusion_model.`, and diffusers' names under `transformer.`. Names that are
    both, of different models, follow the base.

    Args:
        base: the base model, if it is known.
    """
    ours = all(map(module_names.is_hosts, modules))
    theirs = all(map(module_names.is_diffusers, modules))
    if ours != theirs:
        return _OURS if ours else _THEIRS
    possible = base is None or base_model(base).diffusers_names
    return _THEIRS if possible and has_diffusers_names(modules) else _OURS


_DIFFUSERS, _COMFYUI = "diffusers", "https://github.com/comfyanonymous/ComfyUI"  # as ModelSpec files state them


def implementation(modules: Iterable[str]) -> str:
    """Return whose names these modules have, as ModelSpec wants it stated."""
    return _DIFFUSERS if has_diffusers_names(modules) else _COMFYUI


def has_diffusers_names(modules: Iterable[str]) -> bool:
    """Return whether any module is named as in diffusers' transformers."""
    return any(module.startswith(("transformer_blocks.", "single_transformer_blocks.")) for module in modules)
