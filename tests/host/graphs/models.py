"""The full-size models that the workflows are for: their official files, and how they are sampled.

Names, addresses and folders are those of ComfyUI's own templates. Sizes are those that the download pages state.
"""

from __future__ import annotations

from dataclasses import dataclass

from .builder import File

_HUB = "https://huggingface.co"
_QWEN = f"{_HUB}/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
_EDIT = f"{_HUB}/Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files"
_WAN = f"{_HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
_LUMINA = f"{_HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files"
_FLUX_TEXT = f"{_HUB}/comfyanonymous/flux_text_encoders/resolve/main"
PAIR_PAGE = f"{_HUB}/CSU-JPG/Glance"


def _file(folder: str, base: str, name: str, gb: float | None = None) -> File:
    return File(name, f"{base}/{name}", folder, gb)


@dataclass(frozen=True)
class Model:
    """A base model and its files.

    slow, fast: a published pair's files, or placeholders. cfg, guidance, negative: as the base is sampled.
    latent, side: the node for an empty latent, and the size that the model is made for. shift: the ModelSampling node
    that its template has, and the shift. steps: of the full run. scheduler: the node that gives their sigmas, if
    Glance's `auto` does not. split: steps of Slow and Fast.
    """

    key: str
    name: str
    unet: File
    encoders: tuple[File, ...]
    encoder_type: str
    vae: File
    slow: File | str
    fast: File | str
    cfg: float
    guidance: float | None = None
    negative: str = " "
    latent: str = "EmptySD3LatentImage"
    side: int = 1024
    shift: tuple[str, float] | None = None
    steps: int = 50
    scheduler: str | None = None
    split: tuple[int, int] = (5, 5)

    @property
    def base_files(self) -> tuple[File, ...]:
        """The files without a pair."""
        return (self.unet, *self.encoders, self.vae)

    @property
    def files(self) -> tuple[File, ...]:
        """All files that a user downloads."""
        return (*self.base_files, *(each for each in (self.slow, self.fast) if isinstance(each, File)))


_QWEN_TEXT = _file("text_encoders", f"{_QWEN}/text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors", 9.4)
_QWEN_VAE = _file("vae", f"{_QWEN}/vae", "qwen_image_vae.safetensors", 0.3)

QWEN_IMAGE = Model(
    key="qwen_image",
    name="Qwen-Image",
    unet=_file("diffusion_models", f"{_QWEN}/diffusion_models", "qwen_image_fp8_e4m3fn.safetensors", 20.4),
    encoders=(_QWEN_TEXT,),
    encoder_type="qwen_image",
    vae=_QWEN_VAE,
    slow=_file("loras", f"{PAIR_PAGE}/resolve/main", "glance_qwen_slow.safetensors"),
    fast=_file("loras", f"{PAIR_PAGE}/resolve/main", "glance_qwen_fast.safetensors"),
    cfg=4,
)

FLUX_DEV = Model(
    key="flux_dev",
    name="FLUX.1-dev",
    unet=_file("diffusion_models", f"{_HUB}/Comfy-Org/flux1-dev/resolve/main", "flux1-dev.safetensors", 23.8),
    encoders=(
        _file("text_encoders", _FLUX_TEXT, "clip_l.safetensors", 0.2),
        _file("text_encoders", _FLUX_TEXT, "t5xxl_fp16.safetensors", 9.8),
    ),
    encoder_type="flux",
    vae=_file("vae", f"{_LUMINA}/vae", "ae.safetensors"),
    slow="glance_flux_slow.safetensors",
    fast="glance_flux_fast.safetensors",
    cfg=1,
    guidance=3.5,
)

QWEN_IMAGE_EDIT = Model(
    key="qwen_image_edit",
    name="Qwen-Image-Edit",
    unet=_file("diffusion_models", f"{_EDIT}/diffusion_models", "qwen_image_edit_2509_fp8_e4m3fn.safetensors", 20.4),
    encoders=(_QWEN_TEXT,),
    encoder_type="qwen_image",
    vae=_QWEN_VAE,
    slow="my_glance_qwen_image_edit_slow.safetensors",
    fast="my_glance_qwen_image_edit_fast.safetensors",
    cfg=4,
)

WAN = Model(
    key="wan",
    name="Wan 2.1 T2V 1.3B",
    unet=_file("diffusion_models", f"{_WAN}/diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors", 2.8),
    encoders=(_file("text_encoders", f"{_WAN}/text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", 6.7),),
    encoder_type="wan",
    vae=_file("vae", f"{_WAN}/vae", "wan_2.1_vae.safetensors", 0.3),
    slow="my_glance_wan_slow.safetensors",
    fast="my_glance_wan_fast.safetensors",
    cfg=6,
)

_Z_IMAGE = f"{_HUB}/Comfy-Org/z_image/resolve/main/split_files"
_Z_IMAGE_TURBO = f"{_HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files"
_FLUX2 = f"{_HUB}/Comfy-Org/flux2-dev/resolve/main/split_files"
_KLEIN = f"{_HUB}/Comfy-Org/flux2-klein/resolve/main/split_files"

Z_IMAGE = Model(
    key="z_image",
    name="Z-Image",
    unet=_file("diffusion_models", f"{_Z_IMAGE}/diffusion_models", "z_image_bf16.safetensors"),
    encoders=(_file("text_encoders", f"{_Z_IMAGE_TURBO}/text_encoders", "qwen_3_4b.safetensors"),),
    encoder_type="lumina2",
    vae=_file("vae", f"{_Z_IMAGE_TURBO}/vae", "ae.safetensors"),
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
    unet=_file("diffusion_models", f"{_QWEN}/diffusion_models", "qwen_image_2512_fp8_e4m3fn.safetensors"),
    encoders=(_QWEN_TEXT,),
    encoder_type="qwen_image",
    vae=_QWEN_VAE,
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
    unet=_file("diffusion_models", f"{_FLUX2}/diffusion_models", "flux2_dev_fp8mixed.safetensors"),
    encoders=(_file("text_encoders", f"{_FLUX2}/text_encoders", "mistral_3_small_flux2_bf16.safetensors"),),
    encoder_type="flux2",
    vae=_file("vae", f"{_FLUX2}/vae", "flux2-vae.safetensors"),
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
    unet=_file("diffusion_models", f"{_KLEIN}/diffusion_models", "flux-2-klein-base-4b.safetensors"),
    encoders=(_file("text_encoders", f"{_KLEIN}/text_encoders", "qwen_3_4b.safetensors"),),
    encoder_type="flux2",
    vae=_file("vae", f"{_FLUX2}/vae", "flux2-vae.safetensors"),
    slow="my_glance_flux2_klein_slow.safetensors",
    fast="my_glance_flux2_klein_fast.safetensors",
    cfg=5,
    negative="",
    latent="EmptyFlux2LatentImage",
    steps=20,
    scheduler="Flux2Scheduler",
    split=(4, 4),
)

ILLUSTRATION = _file(
    "loras", f"{_HUB}/alvdansen/illustration-1.0-qwen-image/resolve/main", "illustration-1.0-qwen-image.safetensors"
)
CONTROLNET = _file(
    "controlnet",
    f"{_HUB}/Comfy-Org/Qwen-Image-InstantX-ControlNets/resolve/main/split_files/controlnet",
    "Qwen-Image-InstantX-ControlNet-Union.safetensors",
    3.5,
)
