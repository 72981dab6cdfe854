"""python -m glance_core.tiny.pretrain_evaluator --out FILE: train the judge of the tiny model's pictures.

It takes ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear

from ..lora.safetensors_io import write_new
from ..progress import Progress
from .evaluator import FEATURES, Evaluator, Reading, judge, objects_of, places_of, read
from .words import COLOURS, SHAPES, TEXTURES
from .world import Scenes, render, sample_scenes

BATCH, LEARNING_RATE, STEPS, SEED = 128, 3e-3, 4000, 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the judge, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m glance_core.tiny.pretrain_evaluator", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new .safetensors file")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    if options.out.exists() or not options.out.parent.is_dir():
        raise SystemExit(f"{options.out} must be a new file in an existing folder; choose another name")
    started = time.monotonic()
    evaluator = train(options.steps, options.seed)
    state = {k: v.half() if v.is_floating_point() else v for k, v in evaluator.state_dict().items()}
    evaluator.load_state_dict(state)  # test what is stored
    right = accuracy(evaluator, 4096, options.seed + 1)
    settings = {
        "steps": options.steps,
        "seed": options.seed,
        "batch": BATCH,
        "seconds": round(time.monotonic() - started),
        "accuracy": right,
    }
    write_new(options.out, state, {"glance_tiny": json.dumps(settings)})
    print(json.dumps(settings))
    return 0


def train(steps: int, seed: int) -> Evaluator:
    """Return a trained judge."""
    torch.manual_seed(seed)
    evaluator = Evaluator()
    probe = Linear(
        FEATURES, 2 + len(COLOURS) + len(SHAPES) + len(TEXTURES)
    )  # makes the features distinguish attributes
    parameters = [*evaluator.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    with Progress("evaluator", steps) as progress:
        for _ in range(steps):
            scenes = sample_scenes(BATCH, generator, "all")
            pixels = render(scenes, generator)
            strength = 0.15 * torch.rand((BATCH, 1, 1, 1), generator=generator)
            pixels += strength * torch.randn(pixels.shape, generator=generator)
            reading = evaluator(pixels)
            loss = _loss(reading, scenes) + F.mse_loss(probe(reading.features), _attributes(scenes))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            progress.step(f"loss {loss.item():.4f}")
    return evaluator.eval()


def _loss(reading: Reading, scenes: Scenes) -> Tensor:
    return (
        10 * F.binary_cross_entropy_with_logits(reading.objects, objects_of(scenes).float())
        + 3 * F.binary_cross_entropy_with_logits(reading.places, places_of(scenes).float())
        + F.cross_entropy(reading.texture, scenes.texture)
        + F.cross_entropy(reading.ground, scenes.ground)
    )


def _attributes(scenes: Scenes) -> Tensor:
    hot = [
        F.one_hot(scenes.colour[:, 0], len(COLOURS)),
        F.one_hot(scenes.shape[:, 0], len(SHAPES)),
        F.one_hot(scenes.texture, len(TEXTURES)),
    ]
    return torch.cat([scenes.size[:, :1], scenes.two[:, None], *hot], 1).float()


def accuracy(evaluator: Evaluator, count: int, seed: int) -> dict[str, float]:
    """Return the share of new rendered pictures, of all colour-shape pairs, that the evaluator reads right."""
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(count, generator, "all")
    found = judge(read(evaluator, render(scenes, generator)), scenes)
    return {name: float(right.float().mean()) for name, right in found.items()}


if __name__ == "__main__":
    sys.exit(main())
