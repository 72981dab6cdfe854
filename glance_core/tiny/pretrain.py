"""python -m glance_core.tiny.pretrain --out DIR: train the tiny model and its words from scratch, or resume that.

It does flow matching (Lipman et al., arXiv 2210.02747) on scenes rendered fresh for every step. Muon trains the hidden
matrices, AdamW the rest. Workers of one thread each average their gradients; on two cores that is a third faster than
one worker of two threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import autocast
from torch.multiprocessing.spawn import start_processes

from ..allocator import keep_freed_memory
from ..errors import TrainingError
from ..lora.safetensors_io import write_new
from ..progress import Progress
from ..training.run.checkpoint import load_optimizer, load_run, optimizer_tensors, save_run, valid_checkpoint
from .model import Flux, FluxConfig, initialise
from .packing import pack
from .words import ANY, SLOTS, TextTable
from .world import render, sample_scenes


@dataclass(frozen=True)
class Settings:
    """How to train.

    batch: pictures per step, over all workers. drop: share of empty prompts, for guidance. thin: share of prompts that
    lose each word with even odds.
    """

    steps: int = 13_500
    batch: int = 48
    workers: int = 2
    seed: int = 0
    muon_rate: float = 0.02
    adam_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.4
    ema: float = 0.995
    drop: float = 0.1
    thin: float = 0.1
    depth: int = 2
    depth_single: int = 6


CHECKPOINT = "checkpoint.safetensors"
FILES = {"flux.": "glance_tiny_flux.safetensors", "text.": "glance_tiny_words.safetensors"}  # by part of the model


class TinyModel(nn.Module):
    """The transformer and the words, trained together."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.flux = Flux(FluxConfig(depth=settings.depth, depth_single=settings.depth_single))
        self.text = TextTable()
        generator = torch.Generator().manual_seed(settings.seed)
        initialise(self.flux, generator)
        for table in (self.text.word, self.text.slot):
            nn.init.normal_(table.weight, std=0.5, generator=generator)

    def forward(self, x: Tensor, sigma: Tensor, slots: Tensor) -> Tensor:
        out: Tensor = self.flux(x, sigma, *self.text(slots))
        return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m glance_core.tiny.pretrain", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for checkpoints, the log and the finished weights")
    add("--steps", type=int, default=Settings.steps)
    add("--workers", type=int, default=Settings.workers, help="processes of one thread each (default 2)")
    add("--seed", type=int, default=Settings.seed)
    add("--save-every", type=int, default=250, help="steps between checkpoints (default 250)")
    add("--no-compile", action="store_true", help="do without torch.compile and its C++ compiler; steps are slower")
    options = parser.parse_args(arguments)
    settings = Settings(steps=options.steps, workers=options.workers, seed=options.seed)
    if options.steps < 1 or options.save_every < 1 or not 0 <= options.seed < 2**31:
        parser.error("--steps and --save-every must be at least 1, --seed at least 0 and below 2^31")
    if options.workers < 1 or settings.batch % options.workers:
        parser.error(
            f"--workers {options.workers} cannot share {settings.batch} pictures evenly; choose a divisor of it"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    _check(options.out, settings)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the workers only talk to each other
    with tempfile.TemporaryDirectory() as meeting:
        work = (settings, options, f"file://{meeting}/point")
        start_processes(_work, work, settings.workers, start_method="spawn")  # type: ignore[no-untyped-call]
    return 0


def _check(out: Path, settings: Settings) -> None:
    """Exit with one sentence if this folder holds another run, or a finished one.

    A run with more steps than before is the same run. Its learning rate rises to the longer run's, and falls to zero
    again.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        try:
            with valid_checkpoint(checkpoint):
                written = dict(load_run(checkpoint)[1]["settings"])
                longer = written["steps"] > settings.steps
        except TrainingError as error:
            raise SystemExit(str(error)) from error
        if longer or {**written, "steps": 0} != {**asdict(settings), "steps": 0}:
            raise SystemExit(
                f"{checkpoint} was written with other settings ({written}); choose another --out or the same settings"
            )
    if (out / FILES["flux."]).exists():
        raise SystemExit(
            f"{out / FILES['flux.']} exists already; choose another --out to train a new model, or move it away "
            "to train longer"
        )


def _work(rank: int, settings: Settings, options: argparse.Namespace, meeting: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=settings.workers)
    run = Run(settings, rank, options.out, compiled=not options.no_compile)
    run.resume()
    bar = Progress("training", settings.steps, run.step) if rank == 0 else contextlib.nullcontext()
    with bar as progress:
        while run.step < settings.steps:
            loss = run.one_step()
            if progress:
                progress.step(f"loss {loss:.4f}")
            if rank == 0 and (run.step % options.save_every == 0 or run.step == settings.steps):
                run.save()
    if rank == 0:
        run.finish()
    dist.barrier()
    dist.destroy_process_group()


class Run:
    """One worker's run: the model, its optimizers, the averaged weights and the progress."""

    def __init__(self, settings: Settings, rank: int, out: Path, compiled: bool) -> None:
        self.settings, self.rank, self.out = settings, rank, out
        self.model = TinyModel(settings)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        named = dict(self.model.named_parameters())
        hidden = [p for name, p in named.items() if "_blocks." in name and p.ndim == 2 and "mod" not in name]
        chosen = set(map(id, hidden))
        rest = [p for p in named.values() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, lr=settings.muon_rate, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(rest, settings.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.message = _one_buffer(list(named.values()))
        self.forward = torch.compile(self.model) if compiled else self.model
        self.step, self.seconds, self.loss = 0, 0.0, 1.0
        self.since = time.monotonic()

    def one_step(self) -> float:
        """Do one step of all workers; return the running loss."""
        settings = self.settings
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + self.step) * 64 + self.rank)
        x, sigma, slots, target = batch_of(settings.batch // settings.workers, settings, generator)
        with autocast("cpu", dtype=torch.bfloat16):
            out = self.forward(x, sigma, slots)
        loss = (out.float() - target).square().mean()
        torch.autograd.backward(loss)
        value = self._share(loss.detach())
        rates = (settings.muon_rate, settings.adam_rate)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * pace(self.step, settings)
            optimizer.step()
        self.message.zero_()
        self.step += 1
        if self.rank == 0 and self.step % 4 == 0:
            keep = min(settings.ema, (1 + self.step / 4) / (10 + self.step / 4))
            for name, new in self.model.state_dict().items():
                self.average[name].lerp_(new, 1 - keep)
        self.loss += min(1.0, max(0.01, 1 / self.step)) * (value - self.loss)
        return self.loss

    def _share(self, loss: Tensor) -> float:
        """Average the gradients over the workers in one message; return the average loss."""
        self.message[0] = loss
        dist.all_reduce(self.message)
        self.message /= self.settings.workers
        return float(self.message[0])

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"model": self.model.state_dict(), "average": self.average}
        parts |= {f"{number}": optimizer_tensors(optimizer) for number, optimizer in enumerate(self.optimizers)}
        return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}

    def save(self) -> None:
        """Write a checkpoint and a line of the log."""
        self.seconds += time.monotonic() - self.since
        self.since = time.monotonic()
        facts = {"step": self.step, "loss": self.loss, "seconds": self.seconds, "settings": asdict(self.settings)}
        save_run(self.out / CHECKPOINT, self._tensors(), facts)
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(
                json.dumps({"step": self.step, "loss": round(self.loss, 5), "seconds": round(self.seconds)}) + "\n"
            )

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        tensors, facts = load_run(path)
        with valid_checkpoint(path):
            self.model.load_state_dict(_part("model", tensors))
            for name, value in self.average.items():
                value.copy_(tensors[f"average/{name}"])
            for number, optimizer in enumerate(self.optimizers):
                load_optimizer(optimizer, _part(f"{number}", tensors))
            self.step, self.loss, self.seconds = int(facts["step"]), float(facts["loss"]), float(facts["seconds"])

    def finish(self) -> None:
        """Write the averaged weights in half precision, the transformer and the words as two files."""
        facts = {**asdict(self.settings), "seconds": round(self.seconds), "loss": round(self.loss, 5)}
        notes = {"glance_tiny": json.dumps(facts)}
        for part, file in reversed(FILES.items()):  # the transformer last: its file marks the run as finished
            weights = {
                name.removeprefix(part): value.half() for name, value in self.average.items() if name.startswith(part)
            }
            if not (self.out / file).exists():  # it does if a run was killed between the two
                write_new(self.out / file, weights, notes)


def _part(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}/"): value for name, value in tensors.items() if name.startswith(f"{part}/")}


def _one_buffer(parameters: list[nn.Parameter]) -> Tensor:
    """Return a tensor of a loss and all gradients. Gradients are views of it, so workers share them without a copy."""
    message = torch.zeros(1 + sum(p.numel() for p in parameters))
    _, *parts = torch.split(message, [1, *(p.numel() for p in parameters)])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return message


def pace(step: int, settings: Settings) -> float:
    """Return the learning rate's factor: a short warm-up, then flat, then linear to zero."""
    return min(1.0, (step + 1) / settings.warmup, (1 - step / settings.steps) / settings.decay)


def batch_of(count: int, settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return noisy latents, their sigmas, prompts and target velocities."""
    scenes = sample_scenes(count, generator)
    data = pack(render(scenes, generator))
    noise = torch.randn(data.shape, generator=generator)
    sigma = _sigmas(count, generator)
    mixed = sigma[:, None, None, None]
    return (1 - mixed) * data + mixed * noise, sigma, _thinned(scenes.slots(), settings, generator), noise - data


def _sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Return logit-normal sigmas, shifted by 2 towards noise. A fifth is uniform, so that both ends occur.

    Source: Esser et al., arXiv 2403.03206.
    """
    uniform = torch.rand(count, generator=generator)
    logistic = torch.sigmoid(1.2 * torch.randn(count, generator=generator) + math.log(2))
    return torch.where(torch.rand(count, generator=generator) < 0.2, uniform, logistic)


def _thinned(slots: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return prompts that say less: some are empty, some lack words."""
    count = len(slots)
    fate = torch.rand((count, 1), generator=generator)
    lost = torch.rand((count, len(SLOTS)), generator=generator) < 0.5
    lost = torch.where(fate < settings.drop, True, lost & (fate < settings.drop + settings.thin))
    return torch.where(lost, ANY, slots)


if __name__ == "__main__":
    sys.exit(main())
