"""diffusers' own transformers in the sizes of the tiny models of ComfyUI, to be filled with their converted weights."""

import diffusers
import torch

CONFIGS = {
    "wan": ("WanTransformer3DModel", {
        "num_attention_heads": 1, "attention_head_dim": 128, "text_dim": 4096, "ffn_dim": 256, "num_layers": 2,
    }),
    "lumina2": ("Lumina2Transformer2DModel", {
        "hidden_size": 96, "num_layers": 2, "num_refiner_layers": 2, "num_attention_heads": 3, "num_kv_heads": 1,
        "axes_dim_rope": (8, 12, 12), "cap_feat_dim": 48,
    }),
    "z-image": ("ZImageTransformer2DModel", {
        "dim": 384, "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": 48, "axes_dims": [32, 48, 48],
    }),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", {
        "num_attention_heads": 1, "num_layers": 1, "num_single_layers": 1, "text_embed_dim": 48,
        "pooled_projection_dim": 768,
    }),
    "hunyuan-video15": ("HunyuanVideo15Transformer3DModel", {
        "num_attention_heads": 1, "num_layers": 2, "text_embed_dim": 48, "image_embed_dim": 48,
    }),
    "ltxv": ("LTXVideoTransformer3DModel", {
        "num_attention_heads": 2, "num_layers": 2, "cross_attention_dim": 128, "caption_channels": 48,
    }),
    "flux2-dev": ("Flux2Transformer2DModel", {
        "num_attention_heads": 1, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 48,
    }),
    "sd3": ("SD3Transformer2DModel", {
        "num_attention_heads": 2, "num_layers": 2, "caption_projection_dim": 128, "pos_embed_max_size": 192,
    }),
    "auraflow": ("AuraFlowTransformer2DModel", {
        "num_attention_heads": 1, "attention_head_dim": 128, "num_mmdit_layers": 2, "num_single_dit_layers": 2,
        "caption_projection_dim": 128, "pos_embed_max_size": 256,
    }),
}  # fmt: skip


def build(name, weights=None):
    """Return the model.

    Args:
        weights: a state dict in diffusers' names, of which every tensor must have its place. None leaves its own.
    """
    kind, config = CONFIGS[name]
    with torch.inference_mode(False):
        model = getattr(diffusers, kind)(**config).eval()
        if name == "z-image":  # diffusers states the width of the full size
            model.t_embedder = type(model.t_embedder)(256, mid_size=config["dim"])
        if weights is not None:
            model.load_state_dict({key: value.clone() for key, value in weights.items()}, strict=True)
    return model
