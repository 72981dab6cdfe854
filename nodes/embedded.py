"""The embedded model in ComfyUI: its files, its words as CONDITIONING, its pixels as VAE, its previews."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths
import latent_preview
import torch
from comfy_api.latest import io
from PIL import Image

from ..glance_core import tiny
from ..glance_core.errors import GlanceError
from ..glance_core.tiny import packing, words
from .host.previews import PREVIEWERS
from .inputs import CATEGORY

ZOOM = 4  # one pixel of the model shows as 4 x 4, because ComfyUI expects 8 pixels per latent
_PREVIEW_SIDE = 256
_BYTES_PER_PIXEL, _BYTES_PER_LATENT = 6, 800  # times the size of a number, as ComfyUI estimates memory


def register() -> None:
    """Let ComfyUI's loaders list the embedded model and its pair, and its samplers preview it."""
    folder_paths.add_model_folder_path("diffusion_models", str(tiny.MODEL_FILE.parent))
    folder_paths.add_model_folder_path("loras", str(tiny.LORA_FOLDER))
    PREVIEWERS[tiny.ROW.name] = preview_picture


def preview_picture(latent: torch.Tensor) -> Image.Image:
    """Return a latent (16, h, w) as a picture."""
    pixels = packing.unpack(latent[None])[0].movedim(0, -1)
    picture = latent_preview.preview_to_image(pixels)
    return picture.resize((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.NEAREST)


class GlanceTinyText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceTinyText",
            display_name="Glance Tiny Text",
            category=CATEGORY,
            description="A prompt for the small model that comes with the pack, glance_tiny_flux: one or two coloured "
            "shapes on a pattern. An empty prompt is the negative one. Several lines are several prompts, to train or "
            "calibrate on.",
            search_aliases=["glance prompt", "tiny prompt"],
            inputs=[
                io.String.Input(
                    "prompt",
                    default="a large green star left and a small purple ring on striped pink",
                    multiline=True,
                    tooltip=f"It knows these words: {', '.join(words.WORDS[2:])}.",
                )
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="Only for the pack's small model.")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        try:
            _prompts(prompt or "")
        except GlanceError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, prompt: str) -> io.NodeOutput:
        tokens, pooled = tiny.load_words()(torch.tensor(_prompts(prompt)))
        conditioning = [[tokens[i : i + 1], {"pooled_output": pooled[i : i + 1]}] for i in range(len(tokens))]
        return io.NodeOutput(conditioning)


def _prompts(text: str) -> list[tuple[int, ...]]:
    """Return the words of each line that is not empty, or the empty prompt."""
    return [words.parse(line) for line in text.splitlines() if line.strip()] or [words.parse("")]


class GlanceTinyVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceTinyVAE",
            display_name="Glance Tiny VAE",
            category=CATEGORY,
            description="The VAE of the small model that comes with the pack, for VAE Decode and VAE Encode. Each "
            "pixel of the model shows as 4 x 4.",
            inputs=[],
            outputs=[io.Vae.Output(display_name="vae", tooltip="For VAE Decode and VAE Encode.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(packed_vae())


class PixelPacking(torch.nn.Module):
    """What ComfyUI calls a first-stage model: [-1, 1] pixels to FLUX's scaled latents and back."""

    def __init__(self) -> None:
        super().__init__()
        # ComfyUI recognises the kind of VAE by this name.
        self.pixel_space_vae = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, 8h, 8w) to (B, 16, h, w); other pictures are averaged down to the model's pixels."""
        small = torch.nn.functional.avg_pool2d(pixels, ZOOM)
        return packing.pack(small) / packing.SCALE + packing.SHIFT

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Decode (B, 16, h, w) to (B, 3, 8h, 8w)."""
        small = packing.unpack((samples - packing.SHIFT) * packing.SCALE)
        return small.repeat_interleave(ZOOM, 2).repeat_interleave(ZOOM, 3)


def packed_vae() -> Any:
    """Return ComfyUI's own VAE object around the packing: its pixel-space VAE with another map."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = PixelPacking().to(vae.vae_dtype).eval()
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=vae.patcher.offload_device
    )
    comfy.model_management.archive_model_dtypes(vae.first_stage_model)
    vae.memory_used_encode = _memory(_BYTES_PER_PIXEL)
    vae.memory_used_decode = _memory(_BYTES_PER_LATENT)
    vae.downscale_ratio = vae.upscale_ratio = packing.BLOCK * ZOOM
    vae.latent_channels = packing.CHANNELS
    return vae


def _memory(numbers: int) -> Any:
    """Return ComfyUI's estimate of memory for a shape (B, C, H, W), given the numbers held per place."""
    return lambda shape, dtype: numbers * shape[2] * shape[3] * comfy.model_management.dtype_size(dtype)
