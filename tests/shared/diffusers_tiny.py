"""diffusers' own pipelines around tiny transformers, and the code of docs/diffusers.md that samples with them.

The latents are wider than high, so that swapped sides would show.
"""

import math
import re
import runpy
import tempfile
from pathlib import Path

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("flux", "qwen-image")
HEIGHT, WIDTH = 64, 96  # of the picture, in pixels
LATENTS = {"flux": (1, 16, 8, 12), "qwen-image": (1, 16, 1, 8, 12)}
GUIDANCE = 3.5
# Largest difference of equal latents, whose values are 1 to 4. Latents that must differ do so by a hundred times that.
TOLERANCE = 1e-4


def transformer(name, weights=None, seed=0):
    """Return a transformer with the sizes of tests/host/tiny_models.py.

    Args:
        weights: a state dict in diffusers' names. None gives seeded ones.
    """
    if name == "flux":
        model = FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=128,
            num_attention_heads=1,
            joint_attention_dim=48,
            pooled_projection_dim=32,
            axes_dims_rope=(16, 56, 56),
            in_channels=64,
            guidance_embeds=True,
        )
    else:
        model = QwenImageTransformer2DModel(
            num_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=48
        )
    if weights is not None:
        model.load_state_dict(weights, strict=True)
        return model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            random = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(random / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.02 * random + (0 if parameter_name.endswith("bias") else 1))
    return model.eval()


def pipeline(name, model):
    """Return a pipeline with nothing else: prompts come as embeddings, and latents stay latents."""
    if name == "flux":
        pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, model)
    else:
        pipe = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(name, seed):
    """Return a prompt as the pipeline's arguments: embeds (1, 6, 48), and for FLUX also pooled ones (1, 32)."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn((1, 6, 48), generator=generator)
    if name == "flux":
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": torch.randn((1, 32), generator=generator)}
    return {"prompt_embeds": embeds, "prompt_embeds_mask": torch.ones((1, 6), dtype=torch.long)}


def other_inputs(name, noise, negative=None, cfg=1.0):
    """Return the pipeline's other arguments.

    Args:
        noise: (1, 16, [1,] H, W).
        negative: embeddings, for a cfg above 1.
    """
    inputs = {"latents": packed(name, noise), "output_type": "latent"}
    if name == "flux":
        return inputs | {"guidance_scale": GUIDANCE}
    if negative is not None:
        inputs |= {f"negative_{key}": value for key, value in negative.items()}
    return inputs | {"true_cfg_scale": cfg}


def packed(name, latents):
    """Turn latents (1, 16, [1,] H, W) into the pipeline's tokens (1, tokens, 64)."""
    pack = FluxPipeline._pack_latents if name == "flux" else QwenImagePipeline._pack_latents
    return pack(latents.clone(), 1, 16, *latents.shape[-2:])


def unpacked(name, tokens):
    """Do the reverse of `packed`."""
    unpack = FluxPipeline._unpack_latents if name == "flux" else QwenImagePipeline._unpack_latents
    return unpack(tokens, HEIGHT, WIDTH, 8)


def page():
    """Return docs/diffusers.md."""
    return (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")


def page_functions():
    """Return load_pair and paint as the page has them."""
    (code,) = re.findall(r"^```python\n(.*?)^```", page(), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "page.py")
        script.write_text(code, encoding="utf-8")
        functions = runpy.run_path(str(script))
    return functions["load_pair"], functions["paint"]


def painted(name, model, slow, fast, schedule, **inputs):
    """Return the latents (1, 16, [1,] H, W) that diffusers gives with the page's code and these two files."""
    pipe = pipeline(name, model)
    load_pair, _ = page_functions()
    with torch.inference_mode(False):
        load_pair(pipe, str(slow), str(fast))
    return painted_with(name, pipe, schedule, **inputs)


def painted_with(name, pipe, schedule, **inputs):
    """Return the same for a pipeline that has the adapters `slow` and `fast` already."""
    _, paint = page_functions()
    with torch.inference_mode(False):  # tensors made in inference mode cannot be changed outside of it, so copy them
        inputs = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        return unpacked(name, paint(pipe, schedule, **inputs))


def greatest(a, b):
    """Return the largest difference."""
    return float((a - b).abs().max())
