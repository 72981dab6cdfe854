"""Paint pictures with the embedded model: prompts with noise, guided velocity, the teacher, and a pair on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import GlanceError
from ..lora.factors import Factor
from ..lora.slots import Slot, fused_slots, low_rank_updates
from ..plots.image_grid import load_grid
from ..sampling.samplers import Callback, Velocity, euler
from ..sampling.solver import Solver, solve
from ..sampling.velocity import NO_PROMPT, RowVelocity, Tick, in_batches
from ..schedule.phase_schedule import PhaseSchedule, phase_index
from ..schedule.split import FAST, SLOW
from ..switch import PhaseSwitch, PhaseWeights
from . import FOLDER, GUIDANCE, LATENT, ROW, load_model, load_words, tiny_sigmas
from .model import Flux
from .packing import unpack
from .words import ANY, TextTable
from .world import RESOLUTION, Scenes, sample_scenes

REFERENCE_FILE = FOLDER / "teacher.png"
REFERENCES, REFERENCE_SEED = 1024, 777
BATCH = 64
Sampler = Callable[[Velocity, Tensor, Sequence[float], Callback | None], Tensor]


@dataclass(frozen=True)
class Prompts:
    """n scenes as prompts: slots (n, 9) are word indices, noise (n, 16, 16, 16) the start of each picture."""

    scenes: Scenes
    slots: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, rows: slice) -> Prompts:
        return Prompts(self.scenes[rows], self.slots[rows], self.noise[rows])


def draw_prompts(count: int, seed: int, pairs: str) -> Prompts:
    """Draw prompts with noise.

    Args:
        pairs: `seen` in training, or `unseen`: the first object's colour and shape were held out.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(count, generator, pairs)
    return Prompts(scenes, scenes.slots(), torch.randn((count, *LATENT), generator=generator))


def reference_prompts(count: int = REFERENCES) -> Prompts:
    """Return the first `count` of the 1024 unseen prompts that the shipped teacher pictures show."""
    return draw_prompts(REFERENCES, REFERENCE_SEED, "unseen")[:count]


@dataclass(frozen=True)
class Watch:
    """What runs while pictures are painted: callback(step, x, sigma) before each step, tick(pictures) at each step."""

    callback: Callback | None = None
    tick: Tick | None = None


class Painter:
    """The embedded model and its words."""

    def __init__(self, model: Flux | None = None, words: TextTable | None = None) -> None:
        self.model = model or load_model()
        self.words = words or load_words()

    def velocity(self, slots: Tensor, guidance: float) -> RowVelocity:
        """Return classifier-free guidance u + guidance (c - u) in two model calls, or c in one if guidance is 1.

        Source: Ho & Salimans, arXiv 2207.12598.
        """

        def guided(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
            asked = torch.where((rows == NO_PROMPT)[:, None], ANY, slots[rows])
            if guidance == 1:
                out: Tensor = self.model(x, sigma, *self.words(asked))
                return out
            both = torch.cat([asked, torch.full_like(asked, ANY)])
            cond: Tensor
            uncond: Tensor
            cond, uncond = self.model(torch.cat([x, x]), torch.cat([sigma, sigma]), *self.words(both)).chunk(2)
            return uncond + guidance * (cond - uncond)

        return guided

    @torch.no_grad()
    def paint(
        self,
        prompts: Prompts,
        sigmas: Sequence[float],
        guidance: float = GUIDANCE,
        sampler: Sampler = euler,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return pictures (n, 3, 32, 32), not clamped."""
        velocity, watch = self.velocity(prompts.slots, guidance), watch or Watch()

        def latents(rows: Tensor) -> Tensor:
            def of_rows(x: Tensor, sigma: float) -> Tensor:
                if watch.tick:
                    watch.tick(len(rows))
                return velocity(x, torch.full((len(rows),), sigma), rows)

            return sampler(of_rows, prompts.noise[rows], sigmas, watch.callback)

        return _pictures(latents, len(prompts))

    @torch.no_grad()
    def solve(self, prompts: Prompts, sigmas: Sequence[float], solver: Solver, watch: Watch | None = None) -> Tensor:
        """Do the same with a solver, which has its own guidance."""
        velocity, watch = self.velocity(prompts.slots, 1.0), watch or Watch()

        def latents(rows: Tensor) -> Tensor:
            velocities = in_batches(velocity, rows, BATCH, watch.tick)
            return solve(solver, sigmas, velocities, prompts.noise[rows], watch.callback)

        return _pictures(latents, len(prompts))


def _pictures(latents: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Return the pictures of `latents(rows)`, batch by batch."""
    return torch.cat([unpack(latents(rows)) for rows in torch.split(torch.arange(count), BATCH)])


def tiny_slots(model: torch.nn.Module) -> dict[str, Slot]:
    """Return every Linear in the blocks by diffusers' name."""
    assert ROW.fused is not None
    return fused_slots(model, ROW.fused)


@contextmanager
def with_pair(
    model: torch.nn.Module, pair: Mapping[str, Mapping[str, Factor]], schedule: PhaseSchedule
) -> Iterator[Callback]:
    """Put a pair (phase -> module -> factor) on the model; yield the callback that switches it. Undone at the end."""
    slots = tiny_slots(model)
    updates = [low_rank_updates(pair[phase], slots) for phase in (SLOW, FAST)]
    switch = PhaseSwitch(PhaseWeights(updates, torch.float32))
    switch.install(model, next(model.parameters()).device)
    try:
        yield lambda step, x, sigma: switch.select(phase_index(sigma, (schedule.threshold,)))
    finally:
        switch.remove()


def paint_references(count: int = REFERENCES, tick: Tick | None = None) -> Tensor:
    """Paint the teacher's pictures of the first `count` reference prompts again: 50 steps at guidance 4."""
    return Painter().paint(reference_prompts(count), tiny_sigmas(), GUIDANCE, watch=Watch(tick=tick))


def load_references(count: int = REFERENCES, path: Path = REFERENCE_FILE) -> Tensor:
    """Return the teacher's shipped pictures (count, 3, 32, 32) in [-1, 1], of 8 bits."""
    pictures = load_grid(path, RESOLUTION)
    if not 0 < count <= len(pictures):
        raise GlanceError(f"{count} reference pictures were asked for, but {path.name} holds {len(pictures)}")
    return pictures[:count]
