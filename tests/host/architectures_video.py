"""Tiny models of ComfyUI 0.33's flow architectures for video, sound and shapes, beside those of tiny_models.py."""

from tiny_models import CLIP_VISION, MASK, Ones, Random, Tiny, Tokens, stable_audio_weights

HUNYUAN = {
    "image_model": "hunyuan_video", "context_in_dim": 48, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1,
    "theta": 256, "qkv_bias": True, "meanflow": False, "byt5": False, "use_cond_type_embedding": False,
    "vision_in_dim": None, "meanflow_sum": False, "guidance_embed": False,
}  # fmt: skip
HUNYUAN_15_PROMPT = {"conditioning_byt5small": Random(1, 3, 1472)} | CLIP_VISION
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "out_dim": 16, "num_heads": 1, "ffn_dim": 256,
    "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True,
    "cross_attn_norm": True, "eps": 1e-06, "in_dim": 16, "text_dim": 48,
}  # fmt: skip

VIDEO_AND_SOUND = {
    "ltxv": Tiny(
        "LTXV", {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
        "cross_attention_dim": 128, "caption_channels": 48, "in_channels": 128},
        (128, 2, 4, 4), extra=MASK,
    ),
    "ltxav": Tiny(
        "LTXAV", {"image_model": "ltxav", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
        "cross_attention_dim": 128, "caption_channels": 128, "connector_num_attention_heads": 1,
        "connector_num_layers": 1, "audio_attention_head_dim": 32, "audio_num_attention_heads": 2,
        "audio_cross_attention_dim": 64},
        [(128, 2, 4, 4), (8, 6, 16)], context=128,
    ),
    "ltxav-video": Tiny(
        "LTXAV", {"image_model": "ltxav", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
        "cross_attention_dim": 128, "caption_channels": 128, "connector_num_attention_heads": 1,
        "connector_num_layers": 1, "audio_attention_head_dim": 32, "audio_num_attention_heads": 2,
        "audio_cross_attention_dim": 64},
        (128, 2, 4, 4), context=128,
    ),
    "hunyuan-video15": Tiny(
        "HunyuanVideo15", HUNYUAN | {"in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1],
        "vec_in_dim": None, "depth": 2, "depth_single_blocks": 0, "axes_dim": [16, 56, 56], "byt5": True,
        "use_cond_type_embedding": True, "vision_in_dim": 48, "meanflow_sum": True},
        (32, 2, 6, 6), pooled=32, extra=HUNYUAN_15_PROMPT,
    ),
    "hunyuan-video15-meanflow": Tiny(
        "HunyuanVideo15", HUNYUAN | {"in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1],
        "vec_in_dim": None, "depth": 2, "depth_single_blocks": 0, "axes_dim": [16, 56, 56], "byt5": True,
        "use_cond_type_embedding": True, "vision_in_dim": 48, "meanflow_sum": True, "meanflow": True},
        (32, 2, 6, 6), pooled=32, extra=HUNYUAN_15_PROMPT,
    ),
    "wan22-5b": Tiny(
        "WAN22_T2V", _WAN | {"in_dim": 48, "out_dim": 48}, (48, 2, 8, 8),
    ),
    "wan21-i2v": Tiny(
        "WAN21_I2V", _WAN | {"model_type": "i2v", "in_dim": 36}, (16, 2, 8, 8),
        extra=CLIP_VISION | {"concat_latent_image": Random(1, 16, 2, 8, 8), "concat_mask": Ones(1, 1, 2, 8, 8)},
    ),
    "wan21-vace": Tiny(
        "WAN21_Vace", _WAN | {"model_type": "vace", "vace_layers": 2, "vace_in_dim": 96},
        (16, 2, 8, 8),
    ),
    "wan22-s2v": Tiny(
        "WAN22_S2V", _WAN | {"model_type": "s2v", "audio_inject_layers": [0, 1], "audio_dim": 64},
        (16, 2, 8, 8),
        extra={"audio_embed": Random(1, 25, 64, 8), "reference_latents": [Random(1, 16, 1, 8, 8)]},
    ),
    "kandinsky5": Tiny(
        "Kandinsky5", {"image_model": "kandinsky5", "model_dim": 64, "axes_dims": (16, 24, 24), "time_dim": 32,
        "ff_dim": 128, "visual_embed_dim": 132, "num_text_blocks": 1, "num_visual_blocks": 2, "in_text_dim": 48,
        "in_text_dim2": 24},
        (16, 2, 8, 8), pooled=24,
    ),
    "ace-step": Tiny(
        "ACEStep", {"audio_model": "ace", "attention_head_dim": 128, "in_channels": 8, "inner_dim": 128,
        "max_height": 16, "max_position": 4096, "max_width": 4096, "mlp_ratio": 2.5, "num_attention_heads": 1,
        "num_layers": 2, "out_channels": 8, "patch_size": [16, 1], "rope_theta": 1000000.0,
        "speaker_embedding_dim": 512, "text_embedding_dim": 48, "ssl_encoder_depths": [8, 8],
        "ssl_latent_dims": [32, 24], "ssl_names": ["mert", "m-hubert"], "lyric_encoder_vocab_size": 6693,
        "lyric_hidden_size": 1024},
        (8, 16, 20), extra={"conditioning_lyrics": Tokens(1, 6)},
    ),
    "ace-step15": Tiny(
        "ACEStep15", {"audio_model": "ace1.5", "hidden_size": 128, "intermediate_size": 128, "num_heads": 1,
        "num_kv_heads": 1, "encoder_hidden_size": 128, "encoder_num_heads": 1, "encoder_intermediate_size": 128,
        "num_dit_layers": 2, "num_lyric_layers": 1, "num_timbre_layers": 1, "num_tokenizer_layers": 1,
        "text_hidden_dim": 48, "fsq_dim": 128},
        (64, 20), extra={"conditioning_lyrics": Random(1, 6, 48)},
    ),
    "stable-audio3": Tiny(
        "StableAudio3", {"audio_model": "dit1.0", "global_cond_shared_embed": True, "io_channels": 256,
        "embed_dim": 128, "cond_token_dim": 768, "global_cond_dim": 768, "depth": 2, "num_heads": 2,
        "project_cond_tokens": True, "timestep_features_type": "expo", "global_cond_type": "adaLN",
        "local_add_cond_dim": 257, "input_concat_dim": 0},
        (256, 20), context=768, weights=stable_audio_weights,
    ),
    "mochi": Tiny(
        "GenmoMochi", {"image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 1,
        "hidden_size_x": 128, "hidden_size_y": 64, "mlp_ratio_x": 96.0, "mlp_ratio_y": 4.0,
        "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True,
        "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True, "timestep_mlp_bias": True,
        "attend_to_padding": False, "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 48,
        "t5_token_length": 6, "rope_theta": 10000.0},
        (12, 2, 8, 8), extra=MASK,
    ),
    "hunyuan3d2": Tiny(
        "Hunyuan3Dv2", {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": 48,
        "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
        "qkv_bias": True, "guidance_embed": False},
        (64, 32),
    ),
    "hunyuan3d21": Tiny(
        "Hunyuan3Dv2_1", {"image_model": "hunyuan3d2_1", "in_channels": 64, "context_dim": 48,
        "hidden_size": 128, "num_heads": 2, "depth": 3, "qkv_bias": False, "guidance_cond_proj_dim": None,
        "num_moe_layers": 1, "num_experts": 4},
        (64, 32),
    ),
    "minimax-h3": Tiny(
        "MiniMaxH3", {"image_model": "minimax_h3", "hidden_size": 128, "num_layers": 2,
        "token_refiner_num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 128,
        "ffn_hidden_size": 128, "text_dim": 48, "time_embed_hidden_size": 64, "time_embed_dim": 32},
        [(24, 2, 4, 4), (32, 2, 6)],
    ),
    "seedvr2": Tiny(
        "SeedVR2", {"image_model": "seedvr2", "vid_dim": 128, "heads": 1, "num_layers": 2, "norm_eps": 1e-05,
        "mlp_type": "swiglu", "vid_out_norm": True, "mm_layers": 1, "txt_in_dim": 48},
        (16, 2, 8, 8), extra={"condition": Random(1, 17, 2, 8, 8)},
    ),
    "triposplat": Tiny(
        "TripoSplat", {"image_model": "triposplat", "q_token_length": 16, "model_channels": 128,
        "cond_channels": 48, "num_blocks": 2, "num_refiner_blocks": 1},
        [(16, 16), (1, 5)], extra={"reference_latents": [Random(1, 128, 4, 4)]},
    ),
    "wan22-animate": Tiny(
        "WAN22_Animate", _WAN | {"model_type": "animate", "in_dim": 36}, (16, 2, 8, 8), extra=CLIP_VISION,
    ),
    "wan21-camera": Tiny(
        "WAN21_Camera", _WAN | {"model_type": "camera", "in_dim": 32}, (16, 2, 8, 8), extra=CLIP_VISION,
    ),
    "wan21-humo": Tiny(
        "WAN21_HuMo", _WAN | {"model_type": "humo", "in_dim": 36}, (16, 2, 8, 8),
        extra={"audio_embed": Random(1, 8, 8, 5, 1280)},
    ),
    "hunyuan-video-i2v": Tiny(
        "HunyuanVideoI2V", HUNYUAN | {"in_channels": 33, "out_channels": 16, "patch_size": [1, 2, 2],
        "vec_in_dim": 768, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56]},
        (16, 2, 8, 8), pooled=768,
        extra={"concat_latent_image": Random(1, 16, 2, 8, 8), "concat_mask": Ones(1, 1, 2, 8, 8)},
    ),
    "wan21-flowrvs": Tiny(
        "WAN21_FlowRVS", _WAN | {"model_type": "flow_rvs"}, (16, 2, 8, 8),
    ),
    "wan21-causal-ar": Tiny(
        "WAN21_CausalAR_T2V", _WAN, (16, 2, 8, 8),
    ),
}  # fmt: skip
