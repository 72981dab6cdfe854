"""The full-size models that the workflows are for: their official files, and how they are sampled.

Names, addresses and folders are those of ComfyUI's own templates. Sizes are those that the download pages state.
"""

from __future__ import annotations

from dataclasses import dataclass

from .builder import File

HUB = "https://huggingface.co"
QWEN = f"{HUB}/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
EDIT = f"{HUB}/Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files"
WAN_FILES = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
_LUMINA = f"{HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files"
_FLUX_TEXT = f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main"
PAIR_PAGE = f"{HUB}/CSU-JPG/Glance"


def file_at(folder: str, base: str, name: str, gb: float | None = None) -> File:
    """Return the file of this name at an address."""
    return File(name, f"{base}/{name}", folder, gb)


@dataclass(frozen=True)
class Model:
    """A base model and its files.

    slow, fast: a published pair's files, or placeholders. cfg, guidance, negative: as the base is sampled.
    vae: None if the checkpoint has it. latent, side: the node for an empty latent, and the size that the model is made
    for. shift: the ModelSampling node that its template has, and the shift. steps: of the full run. scheduler: the node
    that gives their sigmas, if Glance's `auto` does not. split: steps of Slow and Fast.
    """

    key: str
    name: str
    unet: File
    encoders: tuple[File, ...]
    encoder_type: str
    vae: File | None
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
        return (self.unet, *self.encoders, *([self.vae] if self.vae else []))

    @property
    def files(self) -> tuple[File, ...]:
        """All files that a user downloads."""
        return (*self.base_files, *(each for each in (self.slow, self.fast) if isinstance(each, File)))


QWEN_TEXT = file_at("text_encoders", f"{QWEN}/text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors", 9.4)
QWEN_VAE = file_at("vae", f"{QWEN}/vae", "qwen_image_vae.safetensors", 0.3)

QWEN_IMAGE = Model(
    key="qwen_image",
    name="Qwen-Image",
    unet=file_at("diffusion_models", f"{QWEN}/diffusion_models", "qwen_image_fp8_e4m3fn.safetensors", 20.4),
    encoders=(QWEN_TEXT,),
    encoder_type="qwen_image",
    vae=QWEN_VAE,
    slow=file_at("loras", f"{PAIR_PAGE}/resolve/main", "glance_qwen_slow.safetensors"),
    fast=file_at("loras", f"{PAIR_PAGE}/resolve/main", "glance_qwen_fast.safetensors"),
    cfg=4,
)

FLUX_DEV = Model(
    key="flux_dev",
    name="FLUX.1-dev",
    unet=file_at("diffusion_models", f"{HUB}/Comfy-Org/flux1-dev/resolve/main", "flux1-dev.safetensors", 23.8),
    encoders=(
        file_at("text_encoders", _FLUX_TEXT, "clip_l.safetensors", 0.2),
        file_at("text_encoders", _FLUX_TEXT, "t5xxl_fp16.safetensors", 9.8),
    ),
    encoder_type="flux",
    vae=file_at("vae", f"{_LUMINA}/vae", "ae.safetensors"),
    slow="glance_flux_slow.safetensors",
    fast="glance_flux_fast.safetensors",
    cfg=1,
    guidance=3.5,
)

QWEN_IMAGE_EDIT = Model(
    key="qwen_image_edit",
    name="Qwen-Image-Edit",
    unet=file_at("diffusion_models", f"{EDIT}/diffusion_models", "qwen_image_edit_2509_fp8_e4m3fn.safetensors", 20.4),
    encoders=(QWEN_TEXT,),
    encoder_type="qwen_image",
    vae=QWEN_VAE,
    slow="my_glance_qwen_image_edit_slow.safetensors",
    fast="my_glance_qwen_image_edit_fast.safetensors",
    cfg=4,
)

ILLUSTRATION = file_at(
    "loras", f"{HUB}/alvdansen/illustration-1.0-qwen-image/resolve/main", "illustration-1.0-qwen-image.safetensors"
)
CONTROLNET = file_at(
    "controlnet",
    f"{HUB}/Comfy-Org/Qwen-Image-InstantX-ControlNets/resolve/main/split_files/controlnet",
    "Qwen-Image-InstantX-ControlNet-Union.safetensors",
    3.5,
)
