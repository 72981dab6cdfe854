"""LoRA files for tiny models, in ComfyUI's generic layout: every Linear of the blocks, seeded, big enough to matter."""

import torch
from safetensors.torch import save_file


def targets(model, blocks_only: bool = True) -> dict[str, torch.nn.Linear]:
    return {
        name: module
        for name, module in model.model.diffusion_model.named_modules()
        if isinstance(module, torch.nn.Linear) and (not blocks_only or "block" in name or "layers" in name)
    }


def state_dict(
    model, seed: int, rank: int = 4, alpha: float | None = 8.0, size: float = 0.1, dtype=torch.float32
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in targets(model).items():
        key = f"diffusion_model.{name}"
        down = torch.randn((rank, module.in_features), generator=generator) / module.in_features**0.5
        up = torch.randn((module.out_features, rank), generator=generator) * size
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down.to(dtype), up.to(dtype)
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def save_pair(model, folder, metadata=None, **kwargs) -> tuple[str, str]:
    """Write two files into a folder of LoRAs, and return their names."""
    names = []
    for seed, phase in ((1, "slow"), (2, "fast")):
        name = f"{phase}.safetensors"
        save_file(state_dict(model, seed, **kwargs), folder / name, metadata=(metadata or {}).get(phase))
        names.append(name)
    return names[0], names[1]
