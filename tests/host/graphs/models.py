"""The models of full size that the workflows are for: their official files, and how they are sampled.

Names, addresses and folders as in ComfyUI's own templates; sizes as the download pages state them, left out where none was seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from .builder import File

_HUB = "https://huggingface.co"
_QWEN, _EDIT, _WAN = (f"{_HUB}/Comfy-Org/{name}/resolve/main/split_files" for name in ("Qwen-Image_ComfyUI", "Qwen-Image-Edit_ComfyUI", "Wan_2.1_ComfyUI_repackaged"))  # fmt: skip
_FLUX_TEXT = f"{_HUB}/comfyanonymous/flux_text_encoders/resolve/main"
PAIR_PAGE = f"{_HUB}/CSU-JPG/Glance"


def _file(folder: str, base: str, name: str, gb: float | None = None) -> File:
    return File(name, f"{base}/{name}", folder, gb)


@dataclass(frozen=True)
class Model:
    """slow, fast: a published pair's files, or placeholders; cfg, guidance: as the bare model is sampled;
    memory: what training it is predicted to take."""

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
    memory: str = ""

    @property
    def files(self) -> tuple[File, ...]:
        pair = [each for each in (self.slow, self.fast) if isinstance(each, File)]
        return (self.unet, *self.encoders, self.vae, *pair)

    @property
    def bare_files(self) -> tuple[File, ...]:
        return (self.unet, *self.encoders, self.vae)


_QWEN_TEXT = _file("text_encoders", f"{_QWEN}/text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors", 9.4)
_QWEN_VAE = _file("vae", f"{_QWEN}/vae", "qwen_image_vae.safetensors", 0.3)

QWEN_IMAGE = Model(
    "qwen_image", "Qwen-Image",
    _file("diffusion_models", f"{_QWEN}/diffusion_models", "qwen_image_fp8_e4m3fn.safetensors", 20.4), (_QWEN_TEXT,), "qwen_image", _QWEN_VAE,
    *(_file("loras", f"{PAIR_PAGE}/resolve/main", f"glance_qwen_{phase}.safetensors") for phase in ("slow", "fast")),
    cfg=4, memory="23.9 GB on a card of 24 GB, 6.2 GB with `offload` all, which streams every weight",
)  # fmt: skip

FLUX_DEV = Model(
    "flux_dev", "FLUX.1-dev",
    _file("diffusion_models", f"{_HUB}/Comfy-Org/flux1-dev/resolve/main", "flux1-dev.safetensors", 23.8),
    (_file("text_encoders", _FLUX_TEXT, "clip_l.safetensors", 0.2), _file("text_encoders", _FLUX_TEXT, "t5xxl_fp16.safetensors", 9.8)), "flux",
    _file("vae", f"{_HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae", "ae.safetensors"),
    "glance_flux_slow.safetensors", "glance_flux_fast.safetensors",
    cfg=1, guidance=3.5, memory="11.8 GB on a card of 12 GB; 3.6 GB, stored in fp8, with `offload` all, which streams every weight",
)  # fmt: skip

QWEN_IMAGE_EDIT = Model(
    "qwen_image_edit", "Qwen-Image-Edit",
    _file("diffusion_models", f"{_EDIT}/diffusion_models", "qwen_image_edit_2509_fp8_e4m3fn.safetensors", 20.4), (_QWEN_TEXT,), "qwen_image", _QWEN_VAE,
    "my_glance_qwen_image_edit_slow.safetensors", "my_glance_qwen_image_edit_fast.safetensors", cfg=4,
)  # fmt: skip

WAN = Model(
    "wan", "Wan 2.1 T2V 1.3B",
    _file("diffusion_models", f"{_WAN}/diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors", 2.8),
    (_file("text_encoders", f"{_WAN}/text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", 6.7),), "wan",
    _file("vae", f"{_WAN}/vae", "wan_2.1_vae.safetensors", 0.3),
    "my_glance_wan_slow.safetensors", "my_glance_wan_fast.safetensors", cfg=6,
)  # fmt: skip

ILLUSTRATION = _file("loras", f"{_HUB}/alvdansen/illustration-1.0-qwen-image/resolve/main", "illustration-1.0-qwen-image.safetensors")
CONTROLNET = _file("controlnet", f"{_HUB}/Comfy-Org/Qwen-Image-InstantX-ControlNets/resolve/main/split_files/controlnet", "Qwen-Image-InstantX-ControlNet-Union.safetensors", 3.5)  # fmt: skip
