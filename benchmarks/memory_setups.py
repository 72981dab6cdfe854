"""What benchmarks.memory predicts and checks: models, sizes and settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
GB = 1e9
GUIDED_CFG = 4.0  # for a student that keeps its guidance


@dataclass(frozen=True)
class Setup:
    """What runs.

    config: of ComfyUI's model class. text_tokens, text_width: of the conditioning. resident: bytes of weights that the
    device may hold; None for all. cfg: 1 means one model call per step. train: False for one model call of the teacher.
    gpu: fused norms and an AdamW over lists of tensors, as on CUDA; else as on a CPU.
    """

    architecture: str
    config: dict
    latent: tuple[int, ...]
    text_tokens: int
    text_width: int
    stored: str = "bf16"
    compute: str = "bf16"
    checkpointing: bool = True
    resident: int | None = None
    cfg: float = 1.0
    train: bool = True
    gpu: bool = True

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype | None]:
        """How weights are stored, and what they are cast to if that differs."""
        return DTYPES[self.stored], None if self.stored == self.compute else DTYPES[self.compute]


def sized(setup: Setup, heads: int, blocks: int, **changed) -> Setup:
    """Return the setup at another size.

    Args:
        blocks: layers of Qwen-Image; double blocks of FLUX, which gets twice as many single blocks.
    """
    if setup.architecture == "flux":
        size = {"hidden_size": 128 * heads, "num_heads": heads, "depth": blocks, "depth_single_blocks": 2 * blocks}
    else:
        size = {"num_attention_heads": heads, "num_layers": blocks}
    return replace(setup, config=setup.config | size, **changed)


# The real sizes, as ComfyUI detects them in the published files, at 1024x1024.
QWEN = Setup(
    "qwen-image",
    {"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584},
    (1, 16, 1, 128, 128),
    256,
    3584,
)
FLUX = Setup(
    "flux",
    {
        "hidden_size": 3072,
        "num_heads": 24,
        "context_in_dim": 4096,
        "vec_in_dim": 768,
        "depth": 19,
        "depth_single_blocks": 38,
    },
    (1, 16, 128, 128),
    512,
    4096,
)
BUDGETS = {"qwen-image": 24 * GB, "flux": 12 * GB}  # bytes of the GPU

# Sizes that a CPU can train for real.
_SMALL = {"text_tokens": 64, "compute": "fp32", "gpu": False}
QWEN_CHECK = replace(QWEN, latent=(1, 16, 1, 64, 64), **_SMALL)
FLUX_CHECK = replace(FLUX, latent=(1, 16, 64, 64), **_SMALL)
CHECKS = [
    # Full width with few blocks.
    sized(QWEN_CHECK, 24, 1, stored="fp8"),
    sized(FLUX_CHECK, 24, 1, stored="fp32", checkpointing=False),
    # Narrower with more blocks, so that checkpointing shows.
    *(sized(QWEN_CHECK, 8, 4, stored="bf16", checkpointing=checkpointing) for checkpointing in (True, False)),
    *(sized(FLUX_CHECK, 8, 2, stored="fp8", checkpointing=checkpointing) for checkpointing in (True, False)),
]
