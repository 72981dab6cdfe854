"""The tiny base models in diffusers, in pipelines without text encoders, and a pair that diffusers saves."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.loaders import FluxLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict

from glance_core.models import MODELS

TEXT_WIDTH = MODELS["glance-tiny"].unet_config["context_in_dim"]
FLUX = {"attention_head_dim": 128, "num_attention_heads": 1, "axes_dims_rope": (16, 56, 56), "in_channels": 64}
FLUX_SIZES = {
    "flux": {"num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 48, "pooled_projection_dim": 32},
    "embedded": {"num_layers": 2, "num_single_layers": 6, "joint_attention_dim": TEXT_WIDTH,
                 "pooled_projection_dim": TEXT_WIDTH},
}  # fmt: skip


def build(name):
    """A pipeline of the same sizes as the model of this name: `flux`, `embedded` or `qwen-image`."""
    return _qwen_image() if name == "qwen-image" else _flux(name)


def _qwen_image():
    transformer = QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=48
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=16, dim_mult=[1, 1], num_res_blocks=1, attn_scales=[], temperal_downsample=[False]
    )
    return QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, transformer)


def _flux(name):
    transformer = FluxTransformer2DModel(**FLUX, **FLUX_SIZES[name], guidance_embeds=name == "flux")
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, latent_channels=16)
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, transformer)


def save_flux_pair(folder):
    """Write a pair for FLUX as diffusers saves it, with the paper's targets, and return the names of its files."""
    names = ("slow.safetensors", "fast.safetensors")
    with torch.inference_mode(False):
        for seed, name in enumerate(names, 1):
            torch.manual_seed(seed)
            model = build("flux").transformer
            targets = list(MODELS["flux"].paper_targets)
            model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False))
            layers = get_peft_model_state_dict(model)
            FluxLoraLoaderMixin.save_lora_weights(folder, transformer_lora_layers=layers, weight_name=name)
    return names
