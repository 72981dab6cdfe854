"""diffusers' own pipelines around tiny transformers, on a latent that is wider than high, and the README's way of painting with them."""

import math
import re
import runpy
import tempfile
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel, QwenImagePipeline, QwenImageTransformer2DModel

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("flux", "qwen-image")
HEIGHT, WIDTH = 64, 96  # of the picture, in pixels
LATENTS = {"flux": (1, 16, 8, 12), "qwen-image": (1, 16, 1, 8, 12)}
GUIDANCE = 3.5
TOLERANCE = 1e-4  # greatest difference of latents of size 1 to 4; what they must differ by where they must is a hundred times as much


def transformer(name, weights=None, seed=0):
    """The sizes of tests/host/tiny.py. weights: a state dict in diffusers' names; without it seeded ones."""
    if name == "flux":
        model = FluxTransformer2DModel(
            num_layers=2, num_single_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=48,
            pooled_projection_dim=32, axes_dims_rope=(16, 56, 56), in_channels=64, guidance_embeds=True,
        )  # fmt: skip
    else:
        model = QwenImageTransformer2DModel(num_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=48)
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
    """The pipeline around this transformer; prompts come as embeddings and latents stay latents, so it needs nothing else."""
    if name == "flux":
        pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, model)
    else:
        pipe = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(name, seed):
    """A prompt as the pipeline's arguments: embeds (1, 6, 48), for FLUX pooled ones (1, 32) too."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn((1, 6, 48), generator=generator)
    if name == "flux":
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": torch.randn((1, 32), generator=generator)}
    return {"prompt_embeds": embeds, "prompt_embeds_mask": torch.ones((1, 6), dtype=torch.long)}


def other_inputs(name, noise, negative=None, cfg=1.0):
    """The rest of the pipeline's arguments. noise (1, 16, [1,] H, W); negative: embeddings for a cfg above 1."""
    inputs = {"latents": packed(name, noise), "output_type": "latent"}
    if name == "flux":
        return inputs | {"guidance_scale": GUIDANCE}
    if negative is not None:
        inputs |= {f"negative_{key}": value for key, value in negative.items()}
    return inputs | {"true_cfg_scale": cfg}


def packed(name, latents):
    """(1, 16, [1,] H, W) as the pipeline has it: (1, tokens, 64)."""
    pack = FluxPipeline._pack_latents if name == "flux" else QwenImagePipeline._pack_latents
    return pack(latents.clone(), 1, 16, *latents.shape[-2:])


def unpacked(name, tokens):
    unpack = FluxPipeline._unpack_latents if name == "flux" else QwenImagePipeline._unpack_latents
    return unpack(tokens, HEIGHT, WIDTH, 8)


def section():
    """What the README says under `With diffusers`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"^## With diffusers$(.*?)^## ", text, re.M | re.S)[1]


def readme_functions():
    """load_pair and paint, as the README has them."""
    (code,) = re.findall(r"^```python\n(.*?)^```", section(), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "readme.py")
        script.write_text(code, encoding="utf-8")
        made = runpy.run_path(str(script))
    return made["load_pair"], made["paint"]


def painted(name, model, slow, fast, ladder, **inputs):
    """The latents (1, 16, [1,] H, W) that diffusers comes to with the README's functions and these two files."""
    pipe = pipeline(name, model)
    load_pair, _ = readme_functions()
    with torch.inference_mode(False):
        load_pair(pipe, str(slow), str(fast))
    return painted_with(name, pipe, ladder, **inputs)


def painted_with(name, pipe, ladder, **inputs):
    """The same with adapters `slow` and `fast` that are on the pipeline already."""
    _, paint = readme_functions()
    with torch.inference_mode(False):  # what was made under it cannot be changed outside of it: copies
        inputs = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        return unpacked(name, paint(pipe, ladder, **inputs))


def greatest(a, b):
    return float((a - b).abs().max())
