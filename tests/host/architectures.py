"""Tiny models of every flow architecture of ComfyUI 0.33, beside the eight of tiny_models.py."""

from architectures_video import HUNYUAN, VIDEO_AND_SOUND
from tiny_models import MASK, Ones, Random, Tiny, Tokens

_FLUX = {
    "patch_size": 2, "context_in_dim": 48, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "txt_ids_dims": [],
}  # fmt: skip
_FLUX2 = {
    "image_model": "flux2", "axes_dim": [32, 32, 32, 32], "num_heads": 1, "mlp_ratio": 3.0, "theta": 2000,
    "out_channels": 128, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False,
    "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3], "patch_size": 1,
    "in_channels": 128, "hidden_size": 128, "context_in_dim": 48, "vec_in_dim": None, "depth": 2,
    "depth_single_blocks": 2, "yak_mlp": False, "txt_norm": False,
}  # fmt: skip
_Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "cap_feat_dim": 48, "n_layers": 2,
    "n_heads": 2, "n_kv_heads": 2, "qk_norm": True, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
_COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 128, "concat_padding_mask": True,
    "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 32,
    "num_blocks": 2, "num_heads": 1, "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0, "rope_enable_fps_modulation": False,
}  # fmt: skip

PICTURES = {
    "flux2-dev": Tiny(
        "Flux2", _FLUX2 | {"guidance_embed": True}, (128, 8, 8), extra={"guidance": 4.0},
    ),
    "flux2-klein": Tiny(
        "Flux2", _FLUX2 | {"guidance_embed": False}, (128, 8, 8),
    ),
    "z-image": Tiny(
        "ZImage", _Z_IMAGE, (16, 8, 8), extra=MASK,
    ),
    "z-image-pixel": Tiny(
        "ZImagePixelSpace", _Z_IMAGE | {"image_model": "zimage_pixel", "patch_size": 8, "in_channels": 3,
        "decoder_hidden_size": 32, "decoder_num_res_blocks": 2, "decoder_max_freqs": 4,
        "decoder_in_channels": 192},
        (3, 32, 32), extra=MASK,
    ),
    "hunyuan-image21": Tiny(
        "HunyuanImage21", HUNYUAN | {"in_channels": 64, "out_channels": 64, "patch_size": [1, 1],
        "vec_in_dim": None, "depth": 2, "depth_single_blocks": 2, "axes_dim": [64, 64], "byt5": True},
        (64, 6, 6), extra={"conditioning_byt5small": Random(1, 3, 1472)},
    ),
    "hunyuan-image21-distilled": Tiny(
        "HunyuanImage21", HUNYUAN | {"in_channels": 64, "out_channels": 64, "patch_size": [1, 1],
        "vec_in_dim": None, "depth": 2, "depth_single_blocks": 2, "axes_dim": [64, 64], "byt5": True,
        "meanflow": True, "guidance_embed": True},
        (64, 6, 6), extra={"conditioning_byt5small": Random(1, 3, 1472), "guidance": 3.25},
    ),
    "hidream": Tiny(
        "HiDream", {"image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32],
        "caption_channels": [48, 48], "max_resolution": [128, 128], "in_channels": 16,
        "llama_layers": [0, 1, 1, 1], "num_attention_heads": 1, "num_routed_experts": 4,
        "num_activated_experts": 2, "num_layers": 2, "num_single_layers": 2, "out_channels": 16,
        "patch_size": 2, "text_emb_dim": 32},
        (16, 8, 8), pooled=32, extra={"conditioning_llama3": Random(1, 2, 6, 48)},
    ),
    "hidream-o1": Tiny(
        "HiDreamO1", {"image_model": "hidream_o1",
        "text_config_overrides": {
            "vocab_size": 151936, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 1, "num_key_value_heads": 1},
        "vision_config_overrides": {
            "hidden_size": 64, "num_heads": 1, "depth": 1, "intermediate_size": 64, "deepstack_visual_indexes": []}},
        (3, 64, 64), extra={"text_input_ids": Tokens(1, 6)},
    ),
    "chroma-radiance": Tiny(
        "ChromaRadiance", _FLUX | {"image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3,
        "patch_size": 16, "in_dim": 64, "out_dim": 128, "hidden_dim": 96, "n_layers": 2, "vec_in_dim": None,
        "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 2, "nerf_max_freqs": 8,
        "nerf_tile_size": 512, "nerf_final_head_type": "conv", "nerf_embedder_dtype": None, "use_x0": False,
        "use_sequential_txt_ids": False},
        (3, 64, 64),
    ),
    "omnigen2": Tiny(
        "Omnigen2", {"image_model": "omnigen2", "axes_dim_rope": [40, 40, 40], "axes_lens": [1024, 1664, 1664],
        "ffn_dim_multiplier": None, "hidden_size": 120, "in_channels": 16, "multiple_of": 32, "norm_eps": 1e-05,
        "num_attention_heads": 1, "num_kv_heads": 1, "num_layers": 2, "num_refiner_layers": 1,
        "out_channels": None, "patch_size": 2, "text_feat_dim": 48, "timestep_scale": 1000.0},
        (16, 8, 8), extra=MASK,
    ),
    "boogu": Tiny(
        "Boogu", {"image_model": "boogu", "hidden_size": 120, "num_layers": 2, "num_double_stream_layers": 1,
        "num_refiner_layers": 1, "instruction_feat_dim": 48, "num_attention_heads": 1, "num_kv_heads": 1,
        "multiple_of": 32},
        (16, 8, 8), extra=MASK,
    ),
    "ideogram4": Tiny(
        "Ideogram4", {"image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 1,
        "attention_head_dim": 128, "intermediate_size": 256, "adaln_dim": 64, "llm_features_dim": 48,
        "mrope_section": (24, 20, 20)},
        (128, 8, 8),
    ),
    "krea2": Tiny(
        "Krea2", {"image_model": "krea2", "features": 128, "channels": 16, "patch": 2, "layers": 2, "heads": 1,
        "kvheads": 1, "txtlayers": 3, "txtdim": 48, "txtheads": 1, "txtkvheads": 1},
        (16, 1, 8, 8), context=144,
    ),
    "mage-flow": Tiny(
        "MageFlow", {"image_model": "mage_flow", "in_channels": 128, "num_layers": 2, "num_attention_heads": 1,
        "joint_attention_dim": 48},
        (128, 8, 8),
    ),
    "joyimage": Tiny(
        "JoyImage", {"image_model": "joyimage", "hidden_size": 128, "num_attention_heads": 1, "text_dim": 48,
        "num_layers": 2},
        (16, 1, 8, 8),
    ),
    "lens": Tiny(
        "Lens", {"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2,
        "num_attention_heads": 2, "enc_hidden_dim": 48, "multi_layer_encoder_feature": True,
        "selected_layer_index": (0, 1)},
        (128, 8, 8), context=96, extra=MASK,
    ),
    "kandinsky5-image": Tiny(
        "Kandinsky5Image", {"image_model": "kandinsky5", "model_dim": 128, "axes_dims": (32, 48, 48),
        "rope_scale_factor": (1.0, 1.0, 1.0), "time_dim": 32, "ff_dim": 128, "visual_embed_dim": 64,
        "num_text_blocks": 1, "num_visual_blocks": 2, "in_text_dim": 48, "in_text_dim2": 24},
        (16, 8, 8), pooled=24,
    ),
    "longcat-image": Tiny(
        "LongCatImage", _FLUX | {"image_model": "flux", "in_channels": 16, "out_channels": 16,
        "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2], "yak_mlp": False,
        "txt_norm": False},
        (16, 8, 8),
    ),
    "anima": Tiny(
        "Anima", _COSMOS | {"image_model": "anima"}, (16, 1, 8, 8), context=1024,
        extra={"t5xxl_ids": Tokens(6), "t5xxl_weights": Ones(6)},
    ),
    "cosmos-predict2": Tiny(
        "CosmosT2IPredict2", _COSMOS | {"image_model": "cosmos_predict2"}, (16, 1, 8, 8), context=1024,
    ),
    "auraflow": Tiny(
        "AuraFlow", {"cond_seq_dim": 2048, "max_seq": 256, "dim": 128, "n_layers": 4, "n_double_layers": 2,
        "n_heads": 1, "global_conddim": 128},
        (4, 8, 8), context=2048,
    ),
    "pixeldit": Tiny(
        "PixelDiTT2I", {"image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 128,
        "pixel_hidden_size": 8, "pixel_attn_hidden_size": 64, "pixel_num_groups": 1, "patch_depth": 2,
        "pixel_depth": 1, "txt_embed_dim": 48, "txt_max_length": 32},
        (3, 64, 64),
    ),
    "flux-inpaint": Tiny(
        "FluxInpaint", _FLUX | {"image_model": "flux", "in_channels": 96, "out_channels": 16, "vec_in_dim": 32,
        "guidance_embed": True},
        (16, 8, 8), pooled=32,
        extra={"guidance": 30.0, "concat_latent_image": Random(1, 16, 8, 8), "concat_mask": Ones(1, 1, 64, 64)},
    ),
    "flux-schnell": Tiny(
        "FluxSchnell", _FLUX | {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32,
        "guidance_embed": False},
        (16, 8, 8), pooled=32,
    ),
    "ernie-image": Tiny(
        "ErnieImage", {"image_model": "ernie", "hidden_size": 128, "num_attention_heads": 1, "num_layers": 2,
        "ffn_hidden_size": 256, "text_in_dim": 48},
        (128, 8, 8),
    ),
    "newbie": Tiny(
        "Lumina2", {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": 48,
        "n_layers": 2, "n_heads": 1, "n_kv_heads": 1, "qk_norm": True, "axes_dims": [32, 32, 32],
        "axes_lens": [1024, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0, "clip_text_dim": 32},
        (16, 8, 8), pooled=32, extra=MASK,
    ),
}  # fmt: skip
ARCHITECTURES = PICTURES | VIDEO_AND_SOUND
