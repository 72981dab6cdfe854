"""Paint pictures with the tiny model: prompts with their noise, its guided velocity, the teacher's pictures, a pair on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import sampling
from ..errors import GlanceError
from ..flux_names import diffusers_slots
from ..lora_file import Factor
from ..lora_layers import low_rank_updates
from ..objectives import NO_PROMPT, RowVelocity
from ..phase_switch import PhaseSwitch, PhaseWeights, phase_index
from ..schedule import FAST, SLOW, PhaseSchedule
from ..solver import Solver as Fitted
from ..solver import in_batches, solve
from . import FOLDER, GUIDANCE, LATENT, load_model, load_words, teacher_sigmas
from .model import Flux
from .packing import unpack
from .words import ANY, TextTable
from .world import RESOLUTION, Scenes, sample_scenes

REFERENCE_FILE = FOLDER / "teacher.png"
REFERENCES, REFERENCE_SEED = 1024, 777
BATCH = 64
Ticked = Callable[[int], None]
Solver = Callable[[sampling.Velocity, Tensor, Sequence[float], sampling.Callback | None], Tensor]


@dataclass(frozen=True)
class Prompts:
    """n scenes as they are asked for: slots (n, 9) are the word indices, noise (n, 16, 16, 16) the start of each."""

    scenes: Scenes
    slots: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, rows: slice) -> Prompts:
        return Prompts(self.scenes[rows], self.slots[rows], self.noise[rows])


def draw_prompts(count: int, seed: int, pairs: str) -> Prompts:
    """Seeded prompts with seeded noise. pairs: `seen` in training, or `unseen` (the first object's colour and shape were held out)."""
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(count, generator, pairs)
    return Prompts(scenes, scenes.slots(), torch.randn((count, *LATENT), generator=generator))


def reference_prompts(count: int = REFERENCES) -> Prompts:
    """The first `count` of the 1024 unseen prompts that the shipped teacher pictures were painted from."""
    return draw_prompts(REFERENCES, REFERENCE_SEED, "unseen")[:count]


class Painter:
    """The tiny model and its words."""

    def __init__(self, model: Flux | None = None, words: TextTable | None = None) -> None:
        self.model = model or load_model()
        self.words = words or load_words()

    def velocity(self, slots: Tensor, guidance: float) -> RowVelocity:
        """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): u + guidance (c - u), two forwards; one where guidance is 1."""

        def guided(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
            asked = torch.where((rows == NO_PROMPT)[:, None], ANY, slots[rows])
            if guidance == 1:
                out: Tensor = self.model(x, sigma, *self.words(asked))
                return out
            both = torch.cat([asked, torch.full_like(asked, ANY)])
            conditional: Tensor
            free: Tensor
            conditional, free = self.model(torch.cat([x, x]), torch.cat([sigma, sigma]), *self.words(both)).chunk(2)
            return free + guidance * (conditional - free)

        return guided

    @torch.no_grad()
    def paint(
        self,
        prompts: Prompts,
        sigmas: Sequence[float],
        guidance: float = GUIDANCE,
        solver: Solver = sampling.euler,
        callback: sampling.Callback | None = None,
        tick: Ticked | None = None,
    ) -> Tensor:
        """Pictures (n, 3, 32, 32), not clamped. callback(step, x, sigma) before each step; tick(pictures) at each step of a batch."""
        velocity = self.velocity(prompts.slots, guidance)

        def walk(rows: Tensor) -> Tensor:
            def at(x: Tensor, sigma: float) -> Tensor:
                if tick:
                    tick(len(rows))
                return velocity(x, torch.full((len(rows),), sigma), rows)

            return solver(at, prompts.noise[rows], sigmas, callback)

        return _pictures(walk, len(prompts))

    @torch.no_grad()
    def solve(
        self,
        prompts: Prompts,
        sigmas: Sequence[float],
        solver: Fitted,
        callback: sampling.Callback | None = None,
        tick: Ticked | None = None,
    ) -> Tensor:
        """As `paint`, by a solver that has its own guidance."""
        velocity = self.velocity(prompts.slots, 1.0)

        def walk(rows: Tensor) -> Tensor:
            return solve(solver, sigmas, in_batches(velocity, rows, BATCH, tick), prompts.noise[rows], callback)

        return _pictures(walk, len(prompts))


def _pictures(walk: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """walk(rows) gives the latents of some rows."""
    return torch.cat([unpack(walk(rows)) for rows in torch.split(torch.arange(count), BATCH)])


@contextmanager
def carrying(model: torch.nn.Module, pair: Mapping[str, Mapping[str, Factor]], walked: PhaseSchedule) -> Iterator[sampling.Callback]:
    """The pair (phase -> module -> factor) on the model, for this schedule; yields the callback that switches it. Undone at the end."""
    parts = diffusers_slots(model)
    updates = [low_rank_updates(pair[phase], parts) for phase in (SLOW, FAST)]
    switch = PhaseSwitch(PhaseWeights(updates, torch.float32))
    device = next(model.parameters()).device
    switch.install(model, device)
    try:
        yield lambda step, x, sigma: switch.select(phase_index(sigma, (walked.threshold,)))
    finally:
        switch.remove()


def paint_references(count: int = REFERENCES, tick: Ticked | None = None) -> Tensor:
    """The teacher's pictures of the first `count` reference prompts, anew: 50 steps at guidance 4."""
    return Painter().paint(reference_prompts(count), teacher_sigmas(), GUIDANCE, tick=tick)


def load_references(count: int = REFERENCES, path: Path = REFERENCE_FILE) -> Tensor:
    """The shipped pictures of the teacher, (count, 3, 32, 32) in [-1, 1], in 8 bits."""
    from ..pictures import load_grid

    pictures = load_grid(path, RESOLUTION)
    if not 0 < count <= len(pictures):
        raise GlanceError(f"{count} reference pictures were asked for; {path.name} holds {len(pictures)}")
    return pictures[:count]
