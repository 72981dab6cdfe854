"""Everything that differs between base models, one row each. No other module names a model.

To add a base model, add a row to MODELS. Fields that a row leaves out mean: nothing known, use the general rule.
Sources: the scheduler configurations of Qwen-Image and FLUX.1-dev and the scheduler nodes of ComfyUI 0.33 (sigma
rules), arXiv 2512.02899 and its reference code CSU-JPG/Glance at 88bac37 (targets, recipes), ComfyUI 0.33 (class
names), diffusers' conversion of the published FLUX weights (layer names), kohya's trainers and SwarmUI (ModelSpec
names).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from .model_row import BaseModel, FusedLayout, Recipe
from .sigma_rules import DynamicShift, EmpiricalShift, LinearQuadratic, LogitNormal, MuLine, SigmaRule

_FLUX_SHIFT = DynamicShift("flux", tokens=(256, 4096), mu=(0.5, 1.15))
_LTX_SHIFT = DynamicShift("ltxv", tokens=(1024, 4096), mu=(0.95, 2.05), terminal=0.1)
_FLUX_LAYOUT = FusedLayout(
    blocks={"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"},
    layers={
        "double_blocks": {
            "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",),
            "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn.proj": ("attn.to_add_out",),
            "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",),
            "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
            "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",),
        },
        "single_blocks": {
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",),
            "modulation.lin": ("norm.linear",),
        },
    },
    outside={
        "img_in": "x_embedder", "txt_in": "context_embedder",
        "final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    },
    swapped="final_layer.adaLN_modulation.1",
)  # fmt: skip

# Names in ComfyUI that several models share, and names in diffusers that tell less.
_DOUBLE_STREAM = r"^(double_blocks|single_blocks|single_transformer_blocks)\b"
_CONTEXT_FF = r"^transformer_blocks\.\d+\.ff_context\b"
_ADDED_PROJ = r"^transformer_blocks\.\d+\.attn\.add_[qkv]_proj$"
_FLUX_NAMES = (_DOUBLE_STREAM, _CONTEXT_FF, _ADDED_PROJ)
_LUMINA_NAMES = (r"^(noise_refiner|context_refiner|layers\.\d+\.(attention|feed_forward))\b",)
_UNET_NAMES = (r"^(input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks)\b",)

_ROWS = (
    BaseModel(
        "qwen-image", "Qwen-Image", classes=("QwenImage",), known_configs=("QwenImage",),
        sigma_rule=DynamicShift("qwen-image", tokens=(256, 8192), mu=(0.5, 0.9), terminal=0.02),
        module_patterns=(r"^transformer_blocks\.\d+\.(img|txt)_(mlp|mod)\b", "", _ADDED_PROJ), same_names=True,
        paper_targets=(
            "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
            "img_mlp.net.2", "img_mod.1", "txt_mlp.net.2", "txt_mod.1",
        ),
        recipe=Recipe(32, 128.0, "paper", 3e-4, optimizer="adamw8bit", weight_decay=0.0, caption_dropout=0.1),
        kohya="qwen_image", teacher_cfg=4,
    ),
    BaseModel(
        "flux", "FLUX.1-dev", classes=("Flux",), known_configs=("Flux", "FluxInpaint"), sigma_rule=_FLUX_SHIFT,
        module_patterns=_FLUX_NAMES, diffusers_names=True, fused=_FLUX_LAYOUT, trains_parts=True,
        paper_targets=("to_q", "to_k", "to_v", "to_out.0"), recipe=Recipe(16, 64.0, "paper", 5e-4),
        modelspec="flux-1-dev", kohya="flux1", teacher_cfg=1,
    ),
    BaseModel(
        "flux-schnell", configs=("FluxSchnell",), diffusers_names=True, fused=_FLUX_LAYOUT,
        modelspec="flux-1-schnell", kohya="flux1",
    ),
    BaseModel(
        "glance-tiny", "the embedded model", configs=("FluxSchnell",),
        unet_config={"hidden_size": 128, "context_in_dim": 64, "vec_in_dim": 64}, sigma_rule=_FLUX_SHIFT,
        diffusers_names=True, fused=_FLUX_LAYOUT, trains_parts=True,
        # Measured: attention of the double blocks and all of the single ones, in ComfyUI's and diffusers' names.
        recipe=Recipe(
            16, 16.0,
            r"^(double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear[12]"
            r"|transformer_blocks\.\d+\.attn\..*|single_transformer_blocks\.\d+\.(attn\..*|proj_mlp|proj_out))$",
            2e-3, steps=120, weight_decay=0.0, init="kaiming", batch=8,
        ),
        teacher_cfg=4, latent_size=(16, 16),
    ),
    BaseModel(
        "flux2", classes=("Flux2",), known_configs=("Flux2",), module_patterns=_FLUX_NAMES, diffusers_names=True,
        sigma_rule=EmpiricalShift(
            "flux2", few=MuLine(10, 8.73809524e-05, 1.89833333), many=MuLine(200, 0.00016927, 0.45666666),
            most_tokens=4300,
        ),
        latents_per_token=1,
    ),
    BaseModel("chroma", classes=("Chroma", "ChromaRadiance"), module_patterns=_FLUX_NAMES, diffusers_names=True),
    BaseModel(
        "ltxv", classes=("LTXV",), known_configs=("LTXV",), sigma_rule=_LTX_SHIFT, pixels_per_token=32,
        latents_per_token=1, frames_per_latent=8,
    ),
    BaseModel(
        "ltxav", "LTX-2", classes=("LTXAV",), known_configs=("LTXAV",), sigma_rule=_LTX_SHIFT, pixels_per_token=32,
        latents_per_token=1, frames_per_latent=8, teacher_cfg=4,
    ),
    BaseModel(
        "ideogram4", classes=("Ideogram4",), known_configs=("Ideogram4",), latents_per_token=1,
        sigma_rule=LogitNormal("ideogram4", mean=0.5, spread=1.75, tokens=1024, highest=1 / (1 + math.exp(-9))),
    ),
    BaseModel(
        "genmomochi", classes=("GenmoMochi",), known_configs=("GenmoMochi",),
        sigma_rule=LinearQuadratic("mochi", threshold=0.025),
    ),
    BaseModel("longcat-image", classes=("LongCatImage",), diffusers_names=True),
    BaseModel("mageflow", classes=("MageFlow",)),
    BaseModel(
        "hunyuan-video",
        classes=(
            "HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "HunyuanVideo15",
            "HunyuanVideo15_SR_Distilled",
        ),
        module_patterns=_FLUX_NAMES, kohya="hunyuan_video",
    ),
    BaseModel(
        "sd3", classes=("SD3",), module_patterns=(r"^joint_blocks\b", _CONTEXT_FF, _ADDED_PROJ), diffusers_names=True,
        own_turbo=r"sd3\.5[-_ ]large",
    ),
    BaseModel(
        "wan",
        classes=(
            "WAN21", "WAN21_CausalAR", "WAN21_Vace", "WAN21_Camera", "WAN21_HuMo", "WAN22_Animate", "WAN_Animate2",
            "WAN22_S2V", "WAN22", "WAN21_FlowRVS", "WAN21_SCAIL", "WAN21_SCAIL2", "WAN22_WanDancer",
        ),
        module_patterns=(r"^blocks\.\d+\.(self_attn|cross_attn|ffn)\b",),
    ),
    BaseModel(
        "lumina2", classes=("Lumina2",), module_patterns=_LUMINA_NAMES, modelspec="lumina-2",
        kohya="lumina2",
    ),
    BaseModel(
        "z-image", "Z-Image", classes=("ZImagePixelSpace",), configs=("ZImage",), module_patterns=_LUMINA_NAMES,
        teacher_cfg=4, own_turbo=r"z[-_ ]?image", earlier_names=("lumina2",),
    ),
    BaseModel(
        "minimaxh3", "MiniMax H3", classes=("MiniMaxH3",), one_at_a_time=True, sigma_as_number=True, teacher_cfg=1,
    ),
    BaseModel("acestep", classes=("ACEStep",), pictures=False),
    BaseModel("triposplat", classes=("TripoSplat",), pictures=False),
    BaseModel("sd1", configs=("SD15",), module_patterns=_UNET_NAMES, modelspec="stable-diffusion-v1", kohya="sd_v1"),
    BaseModel("sd2", configs=("SD20",), module_patterns=_UNET_NAMES, own_turbo=r"sd[-_ ]?\d?(\.\d)?"),
    BaseModel(
        "sdxl", classes=("SDXL", "SDXLRefiner"), module_patterns=_UNET_NAMES, modelspec="stable-diffusion-xl-v1-base",
        kohya="sdxl_base_v1-0", own_turbo="sdxl",
    ),
)  # fmt: skip

MODELS: Mapping[str, BaseModel] = MappingProxyType({row.name: row for row in _ROWS})
RULES: Mapping[str, SigmaRule] = MappingProxyType(
    {row.sigma_rule.name: row.sigma_rule for row in _ROWS if row.sigma_rule}
)
# Rules of the models that the paper trained, for which it published moves beside the sigmas.
PAPER_RULES = tuple(row.sigma_rule.name for row in _ROWS if row.sigma_rule and row.paper_targets)
# The base of two models, one for high noise and one for low, and where its authors' code changes from one to the other.
TWO_MODELS = "Wan 2.2 14B"
TWO_MODELS_BOUNDARY = f"{TWO_MODELS}: sigma 0.875 for text to video, 0.9 for image to video"
# Base models that module names alone can tell.
KNOWN_BY_NAMES = frozenset(row.name for row in _ROWS if row.module_patterns)


def base_model(name: str) -> BaseModel:
    """Return the row of this name, or a row of general rules for a model without one."""
    return MODELS.get(name) or BaseModel(name)


def row_of_rule(rule: str) -> BaseModel:
    """Return the first row with this sigma rule, or a row of general rules."""
    return next((row for row in _ROWS if row.sigma_rule and row.sigma_rule.name == rule), BaseModel(rule))


def identify(model_class: str, config_class: str, unet_config: Mapping[str, Any]) -> BaseModel:
    """Return the row of a model of ComfyUI, or general rules under its own name in lower case if no row lists it.

    Args:
        model_class: the class in comfy.model_base.
        config_class: the class in comfy.supported_models.
        unet_config: its settings.
    """
    rows = [
        row for row in _ROWS if config_class in row.configs and row.unet_config.items() <= dict(unet_config).items()
    ]
    if rows:
        return max(rows, key=lambda row: len(row.unet_config))
    found = next((row for row in _ROWS if model_class in row.classes), None)
    if found is None:
        return BaseModel(model_class.lower())
    return found if config_class in (found.known_configs or (config_class,)) else BaseModel(config_class.lower())


def possible_bases(modules: Iterable[str]) -> frozenset[str]:
    """Return the names of the base models whose modules are named like these; empty where names tell nothing."""
    modules = list(modules)
    for place in range(max(len(row.module_patterns) for row in _ROWS)):
        patterns = {row.module_patterns[place] for row in _ROWS if len(row.module_patterns) > place} - {""}
        found = {pattern for pattern in patterns if any(re.search(pattern, module) for module in modules)}
        if found:
            return frozenset(
                r.name for r in _ROWS if len(r.module_patterns) > place and r.module_patterns[place] in found
            )
    return frozenset()


def titles(wanted: Callable[[BaseModel], bool]) -> str:
    """Return the titles of the rows that have one and are wanted, for a sentence: `A, B and C`."""
    *most, last = [row.title for row in _ROWS if row.title and wanted(row)]
    return f"{', '.join(most)} and {last}" if most else last


def cfg_hint() -> str:
    """Return the usual guidance of each known teacher, for a tooltip: `A 4, B 1`."""
    return ", ".join(f"{row.title} {row.teacher_cfg:g}" for row in _ROWS if row.title and row.teacher_cfg is not None)
