"""The models that families.py makes graphs for: files and settings of ComfyUI's own templates, and what they make."""

from __future__ import annotations

from typing import NamedTuple

from .media import LtxVideos, Pictures, Videos, VideosWithSound
from .models import HUB, QWEN, QWEN_TEXT, QWEN_VAE, WAN_FILES, Model, file_at


class Family(NamedTuple):
    """A model and what it makes."""

    model: Model
    media: Pictures = Pictures()


_Z_IMAGE = f"{HUB}/Comfy-Org/z_image/resolve/main/split_files"
_Z_IMAGE_TURBO = f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files"
_FLUX2 = f"{HUB}/Comfy-Org/flux2-dev/resolve/main/split_files"
_KLEIN = f"{HUB}/Comfy-Org/flux2-klein/resolve/main/split_files"

Z_IMAGE = Model(
    key="z_image",
    name="Z-Image",
    unet=file_at("diffusion_models", f"{_Z_IMAGE}/diffusion_models", "z_image_bf16.safetensors"),
    encoders=(file_at("text_encoders", f"{_Z_IMAGE_TURBO}/text_encoders", "qwen_3_4b.safetensors"),),
    encoder_type="lumina2",
    vae=file_at("vae", f"{_Z_IMAGE_TURBO}/vae", "ae.safetensors"),
    slow="my_glance_z_image_slow.safetensors",
    fast="my_glance_z_image_fast.safetensors",
    cfg=4,
    negative="",
    shift=("ModelSamplingAuraFlow", 3.0),
    steps=25,
    scheduler="BasicScheduler",
)

QWEN_IMAGE_2512 = Model(
    key="qwen_image_2512",
    name="Qwen-Image 2512",
    unet=file_at("diffusion_models", f"{QWEN}/diffusion_models", "qwen_image_2512_fp8_e4m3fn.safetensors"),
    encoders=(QWEN_TEXT,),
    encoder_type="qwen_image",
    vae=QWEN_VAE,
    slow="my_glance_qwen_image_2512_slow.safetensors",
    fast="my_glance_qwen_image_2512_fast.safetensors",
    cfg=4,
    # Low resolution, low quality, deformed limbs and fingers, oversaturated, waxy, no detail in the face, over-smooth,
    # looks generated, chaotic composition, blurred and distorted text.
    negative=(
        "\u4f4e\u5206\u8fa8\u7387\uff0c\u4f4e\u753b\u8d28\uff0c\u80a2\u4f53\u7578\u5f62\uff0c\u624b\u6307"
        "\u7578\u5f62\uff0c\u753b\u9762\u8fc7\u9971\u548c\uff0c\u8721\u50cf\u611f\uff0c\u4eba\u8138\u65e0"
        "\u7ec6\u8282\uff0c\u8fc7\u5ea6\u5149\u6ed1\uff0c\u753b\u9762\u5177\u6709AI\u611f\u3002\u6784"
        "\u56fe\u6df7\u4e71\u3002\u6587\u5b57\u6a21\u7cca\uff0c\u626d\u66f2"
    ),
    side=1328,
)

FLUX2_DEV = Model(
    key="flux2_dev",
    name="FLUX.2 dev",
    unet=file_at("diffusion_models", f"{_FLUX2}/diffusion_models", "flux2_dev_fp8mixed.safetensors"),
    encoders=(file_at("text_encoders", f"{_FLUX2}/text_encoders", "mistral_3_small_flux2_bf16.safetensors"),),
    encoder_type="flux2",
    vae=file_at("vae", f"{_FLUX2}/vae", "flux2-vae.safetensors"),
    slow="my_glance_flux2_dev_slow.safetensors",
    fast="my_glance_flux2_dev_fast.safetensors",
    cfg=1,
    guidance=4.0,
    latent="EmptyFlux2LatentImage",
    steps=20,
    scheduler="Flux2Scheduler",
    split=(4, 4),
)

FLUX2_KLEIN = Model(
    key="flux2_klein",
    name="FLUX.2 klein base 4B",
    unet=file_at("diffusion_models", f"{_KLEIN}/diffusion_models", "flux-2-klein-base-4b.safetensors"),
    encoders=(file_at("text_encoders", f"{_KLEIN}/text_encoders", "qwen_3_4b.safetensors"),),
    encoder_type="flux2",
    vae=file_at("vae", f"{_FLUX2}/vae", "flux2-vae.safetensors"),
    slow="my_glance_flux2_klein_slow.safetensors",
    fast="my_glance_flux2_klein_fast.safetensors",
    cfg=5,
    negative="",
    latent="EmptyFlux2LatentImage",
    steps=20,
    scheduler="Flux2Scheduler",
    split=(4, 4),
)

# Gaudy colours, overexposed, static, blurred details, subtitles, style, work of art, painting, still, grey, worst
# quality, JPEG artefacts, ugly, incomplete, extra fingers, badly drawn hands and faces, deformed, disfigured, fused
# fingers, motionless, cluttered background, three legs, many people behind, going backwards.
WAN_NEGATIVE = (
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca\u4e0d"
    "\u6e05\uff0c\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b\u4f5c\uff0c\u753b\u9762"
    "\uff0c\u9759\u6b62\uff0c\u6574\u4f53\u53d1\u7070\uff0c\u6700\u5dee\u8d28\u91cf\uff0c\u4f4e\u8d28"
    "\u91cf\uff0cJPEG\u538b\u7f29\u6b8b\u7559\uff0c\u4e11\u964b\u7684\uff0c\u6b8b\u7f3a\u7684\uff0c"
    "\u591a\u4f59\u7684\u624b\u6307\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u624b\u90e8\uff0c\u753b\u5f97"
    "\u4e0d\u597d\u7684\u8138\u90e8\uff0c\u7578\u5f62\u7684\uff0c\u6bc1\u5bb9\u7684\uff0c\u5f62\u6001"
    "\u7578\u5f62\u7684\u80a2\u4f53\uff0c\u624b\u6307\u878d\u5408\uff0c\u9759\u6b62\u4e0d\u52a8\u7684"
    "\u753b\u9762\uff0c\u6742\u4e71\u7684\u80cc\u666f\uff0c\u4e09\u6761\u817f\uff0c\u80cc\u666f\u4eba"
    "\u5f88\u591a\uff0c\u5012\u7740\u8d70"
)

_KREA2 = f"{HUB}/Comfy-Org/Krea-2/resolve/main"
_WAN_TEXT = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
WAN22_FILES = f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
_MINIMAX = f"{HUB}/Comfy-Org/MiniMax-H3/resolve/main"

KREA2_TURBO = Model(
    key="krea2_turbo",
    name="Krea 2 Turbo",
    unet=file_at("diffusion_models", f"{_KREA2}/diffusion_models", "krea2_turbo_fp8_scaled.safetensors"),
    encoders=(file_at("text_encoders", f"{_KREA2}/text_encoders", "qwen3vl_4b_fp8_scaled.safetensors"),),
    encoder_type="krea2",
    vae=file_at("vae", f"{_KREA2}/vae", "qwen_image_vae.safetensors"),
    slow="my_glance_krea2_turbo_slow.safetensors",
    fast="my_glance_krea2_turbo_fast.safetensors",
    cfg=1,
    latent="EmptyLatentImage",
    steps=8,
    scheduler="BasicScheduler",
    split=(2, 2),
)

WAN21 = Model(
    key="wan",
    name="Wan 2.1 T2V 1.3B",
    unet=file_at("diffusion_models", f"{WAN_FILES}/diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors", 2.8),
    encoders=(file_at("text_encoders", f"{WAN_FILES}/text_encoders", _WAN_TEXT, 6.7),),
    encoder_type="wan",
    vae=file_at("vae", f"{WAN_FILES}/vae", "wan_2.1_vae.safetensors", 0.3),
    slow="my_glance_wan_slow.safetensors",
    fast="my_glance_wan_fast.safetensors",
    cfg=6,
    negative=WAN_NEGATIVE,
    latent="EmptyHunyuanLatentVideo",
    shift=("ModelSamplingSD3", 8.0),
    steps=30,
    scheduler="BasicScheduler",
)

WAN22_5B = Model(
    key="wan22_5b",
    name="Wan 2.2 5B",
    unet=file_at("diffusion_models", f"{WAN22_FILES}/diffusion_models", "wan2.2_ti2v_5B_fp16.safetensors"),
    encoders=(file_at("text_encoders", f"{WAN_FILES}/text_encoders", _WAN_TEXT),),
    encoder_type="wan",
    vae=file_at("vae", f"{WAN22_FILES}/vae", "wan2.2_vae.safetensors"),
    slow="my_glance_wan22_5b_slow.safetensors",
    fast="my_glance_wan22_5b_fast.safetensors",
    cfg=5,
    negative=WAN_NEGATIVE,
    latent="Wan22ImageToVideoLatent",
    shift=("ModelSamplingSD3", 8.0),
    steps=20,
    scheduler="BasicScheduler",
    split=(4, 4),
)

MINIMAX_H3 = Model(
    key="minimax_h3",
    name="MiniMax H3",
    unet=file_at(
        "diffusion_models", f"{_MINIMAX}/diffusion_models", "minimax_h3_fl2va_pruned_int8_convrot.safetensors"
    ),
    encoders=(file_at("text_encoders", f"{_MINIMAX}/text_encoders", "qwen3vl_32b_minimax_h3_nvfp4_awq.safetensors"),),
    encoder_type="minimax",
    vae=file_at("vae", f"{_MINIMAX}/vae", "minimax_h3_video_vae_fp16.safetensors"),
    slow="my_glance_minimax_h3_slow.safetensors",
    fast="my_glance_minimax_h3_fast.safetensors",
    cfg=1,
    latent="EmptyMiniMaxH3LatentAV",
    steps=20,
    scheduler="BasicScheduler",
    split=(4, 4),
)

LTX23 = Model(
    key="ltx23",
    name="LTX-2.3",
    unet=file_at("checkpoints", f"{HUB}/Lightricks/LTX-2.3-fp8/resolve/main", "ltx-2.3-22b-dev-fp8.safetensors"),
    encoders=(
        file_at(
            "text_encoders",
            f"{HUB}/Comfy-Org/ltx-2/resolve/main/split_files/text_encoders",
            "gemma_3_12B_it_fp4_mixed.safetensors",
        ),
    ),
    encoder_type="",
    vae=None,
    slow="my_glance_ltx23_slow.safetensors",
    fast="my_glance_ltx23_fast.safetensors",
    cfg=4,
    negative="pc game, console game, video game, cartoon, childish, ugly",
    steps=20,
    scheduler="LTXVScheduler",
    split=(4, 4),
)

FAMILIES = (
    Family(Z_IMAGE),
    Family(QWEN_IMAGE_2512),
    Family(FLUX2_DEV),
    Family(FLUX2_KLEIN),
    Family(KREA2_TURBO),
    Family(WAN21, Videos(width=832, height=480, frames=33, fps=16.0)),
    Family(WAN22_5B, Videos(with_vae=True)),
    Family(
        MINIMAX_H3,
        VideosWithSound(
            width=864,
            height=480,
            frames=56,
            sound_vae=file_at("vae", f"{_MINIMAX}/vae", "minimax_h3_audio_vae_fp32.safetensors"),
        ),
    ),
    Family(LTX23, LtxVideos(width=768, height=512, frames=97)),
)
