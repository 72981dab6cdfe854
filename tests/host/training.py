"""TrainGlanceAdapter as short calls for the tests."""

from pathlib import Path

import pack
import tiny
import torch

INPUTS = {
    "objective": "trajectory", "schedule": "auto", "slow_steps": 2, "fast_steps": 2, "steps": 4, "learning_rate": 1e-3, "rank": 2, "alpha": 4.0,
    "targets": "attention", "optimizer": "adamw", "gradient_checkpointing": True, "offload": "auto", "cfg": 1.0, "seed": 0, "save_every": 2,
    "resume": True, "name": "tiny", "teacher_runs": 1, "checks": 1, "preview_every": 0, "keep": "everything",
}  # fmt: skip


def train(model, architecture, latent=None, positive=None, negative=None, check=None, **inputs):
    """The node's outputs: MODEL, slow file, fast file, IMAGE, report."""
    lists = {key: [value] for key, value in (INPUTS | inputs).items()}
    if check is not None:
        lists["check_prompts"] = [check]
    lists["negative"] = [tiny.conditioning(architecture, 2) if negative is None else negative]
    latent = tiny.empty_latent(architecture) if latent is None else latent
    positive = tiny.conditioning(architecture, 1) if positive is None else positive
    return pack.node("TrainGlanceAdapter").execute(model=[model], latent=[latent], positive=[positive], **lists).args


def picture(name, count=1, seed=4):
    """An encoded picture, as VAE Encode would give one."""
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn((count, *tiny.MODELS[name].latent), generator=generator)}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
