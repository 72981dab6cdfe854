"""The embedded model in ComfyUI: its file among the diffusion models, its words as CONDITIONING, its packing as VAE."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io

from ..glance_core import tiny
from ..glance_core.errors import GlanceError
from ..glance_core.tiny import packing, words
from .loader import CATEGORY

ZOOM = 4  # a picture's pixel is shown as 4 x 4, so that the host's 8 pixels per latent hold


def offer_files() -> None:
    """Let the stock loaders list the embedded model and its pair."""
    folder_paths.add_model_folder_path("diffusion_models", str(tiny.MODEL_FILE.parent))
    folder_paths.add_model_folder_path("loras", str(tiny.LORA_FOLDER))


class GlanceTinyText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceTinyText",
            display_name="Glance Tiny Text",
            category=CATEGORY,
            description="A prompt for the embedded model glance_tiny_flux: one or two coloured shapes on a patterned ground. "
            "An empty prompt is the negative one; several lines are several prompts, to train or calibrate on.",
            search_aliases=["glance prompt", "tiny prompt"],
            inputs=[
                io.String.Input(
                    "prompt",
                    default="a large green star left and a small purple ring on striped pink",
                    multiline=True,
                    tooltip=f"Words it knows: {', '.join(words.WORDS[2:])}.",
                )
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For the embedded model alone.")],
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
        return io.NodeOutput([[tokens[i : i + 1], {"pooled_output": pooled[i : i + 1]}] for i in range(len(tokens))])


def _prompts(text: str) -> list[tuple[int, ...]]:
    """The words of each line that has some; of nothing at all, the empty prompt."""
    return [words.parse(line) for line in text.splitlines() if line.strip()] or [words.parse("")]


class GlanceTinyVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceTinyVAE",
            display_name="Glance Tiny VAE",
            category=CATEGORY,
            description="The embedded model's latents as pixels and back: a fixed map, nothing learned. For VAE Decode and VAE Encode; each of "
            "the model's pixels is shown as 4 x 4.",
            inputs=[],
            outputs=[io.Vae.Output(display_name="vae", tooltip="For VAE Decode and VAE Encode.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(packed_vae())


class PixelPacking(torch.nn.Module):
    """What the host calls a first-stage model: encode and decode between [-1, 1] pixels and FLUX's scaled latents."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel_space_vae = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)  # by which the host knows its kind

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, 8h, 8w) -> (B, 16, h, w); a picture of any other origin is averaged down to the model's pixels."""
        small = torch.nn.functional.avg_pool2d(pixels, ZOOM)
        return packing.pack(small) / packing.SCALE + packing.SHIFT

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """(B, 16, h, w) -> (B, 3, 8h, 8w)."""
        small = packing.unpack((samples - packing.SHIFT) * packing.SCALE)
        return small.repeat_interleave(ZOOM, 2).repeat_interleave(ZOOM, 3)


def packed_vae() -> Any:
    """The host's own VAE object around the packing: it starts as the host's pixel-space VAE, which it differs from by its map alone."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = PixelPacking().to(vae.vae_dtype).eval()
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, load_device=vae.device, offload_device=vae.patcher.offload_device)
    comfy.model_management.archive_model_dtypes(vae.first_stage_model)
    vae.memory_used_encode = lambda shape, dtype: 6 * shape[2] * shape[3] * comfy.model_management.dtype_size(dtype)  # numbers per pixel
    vae.memory_used_decode = lambda shape, dtype: 800 * shape[2] * shape[3] * comfy.model_management.dtype_size(dtype)  # and per latent
    vae.downscale_ratio = vae.upscale_ratio = packing.BLOCK * ZOOM
    vae.latent_channels = packing.CHANNELS
    return vae
