"""Small LoRA files in the styles that other programs write."""

import torch
from safetensors.torch import save_file

MODULE = "transformer_blocks.0.attn.to_q"
_KOHYA_MODULE = "lora_unet_double_blocks_0_img_attn_qkv"

# (down, up, alpha): {m} stands for the module, {f} for its name without dots.
STYLES = {
    "peft, without prefix": ("{m}.lora_A.weight", "{m}.lora_B.weight", "{m}.alpha"),
    "peft, adapter name": (
        "base_model.model.{m}.lora_A.default.weight", "base_model.model.{m}.lora_B.default.weight",
        "base_model.model.{m}.alpha",
    ),
    "diffusers": ("transformer.{m}.lora_A.weight", "transformer.{m}.lora_B.weight", "transformer.{m}.alpha"),
    "diffusers, old": (
        "transformer.{m}.lora.down.weight", "transformer.{m}.lora.up.weight", "transformer.{m}.alpha",
    ),
    "ComfyUI": (
        "diffusion_model.{m}.lora_A.weight", "diffusion_model.{m}.lora_B.weight", "diffusion_model.{m}.alpha",
    ),
    "ComfyUI, kohya factors": (
        "diffusion_model.{m}.lora_down.weight", "diffusion_model.{m}.lora_up.weight", "diffusion_model.{m}.alpha",
    ),
    "kohya": ("lora_unet_{f}.lora_down.weight", "lora_unet_{f}.lora_up.weight", "lora_unet_{f}.alpha"),
    "OneTrainer": (
        "lora_transformer_{f}.lora_down.weight", "lora_transformer_{f}.lora_up.weight", "lora_transformer_{f}.alpha",
    ),
    "no weight suffix": ("{m}.lora_A", "{m}.lora_B", "{m}.alpha"),
}  # fmt: skip


def style_names(style):
    """Return the names of MODULE's down factor, up factor and alpha."""
    return [pattern.format(m=MODULE, f=MODULE.replace(".", "_")) for pattern in STYLES[style]]


def factors(rank=4, inside=6, outside=5, dtype=torch.float32):
    """Return seeded (down, up)."""
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn((rank, inside), generator=generator)
    up = torch.randn((outside, rank), generator=generator)
    return down.to(dtype), up.to(dtype)


def good_tensors(rank=4):
    """Return the tensors of a good file: one module of scale 2 at rank 4."""
    down, up = factors(rank)
    return {f"{MODULE}.lora_A.weight": down, f"{MODULE}.lora_B.weight": up, f"{MODULE}.alpha": torch.tensor(8.0)}


def edited_tensors(**changes):
    """Return the same with `down`, `up`, `alpha` or other tensors replaced, or left out for None."""
    tensors = good_tensors()
    keys = {"down": f"{MODULE}.lora_A.weight", "up": f"{MODULE}.lora_B.weight", "alpha": f"{MODULE}.alpha"}
    for name, value in changes.items():
        key = keys.get(name, name)
        if value is None:
            tensors.pop(key)
        else:
            tensors[key] = value
    return tensors


def kohya_tensors(module=_KOHYA_MODULE, ends=("lora_down", "lora_up"), seed=0):
    """Return one module as kohya's trainers write it, without alpha."""
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 6), (5, 4)))
    return {f"{module}.{ends[0]}.weight": down, f"{module}.{ends[1]}.weight": up}


def save(path, tensors, metadata=None):
    """Write the file and return its path."""
    save_file(tensors, path, metadata=metadata)
    return path
