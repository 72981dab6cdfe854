"""Train a Slow and a Fast adapter on one frozen model, by PEFT, with the model as it was afterwards."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import GlanceError
from .lora_file import Factor
from .objectives import RowVelocity, Trajectories, trajectory_loss
from .schedule import FAST, SLOW

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


@dataclass(frozen=True)
class TrainingSettings:
    """steps: of each phase; batch: (state, target) pairs per step; warmup: share of the steps. targets: a regular expression that the
    whole name of an adapted module matches, as PEFT takes it."""

    targets: str
    steps: int = 120
    batch: int = 8
    rank: int = 16
    alpha: float = 16.0
    learning_rate: float = 2e-3
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0


Reported = Callable[[str, int, float], None]


def train_pair(
    model: nn.Module, velocity: RowVelocity, data: Trajectories, slow_steps: int, settings: TrainingSettings, report: Reported | None = None
) -> dict[str, dict[str, Factor]]:
    """Factors by phase and module. Slow learns the first `slow_steps` points of `data`, Fast the others, every point equally often.

    velocity runs `model`, guidance included. report(phase, step, loss) is called after every step. Seeded; the same on every run.
    """
    points = len(data.sigmas) - 1
    if not 0 < slow_steps < points:
        raise GlanceError(f"slow_steps = {slow_steps} of {points} leaves a phase without training; choose 1 to {points - 1}")
    with adapters(model, settings) as layers:
        for phase, own in ((SLOW, range(slow_steps)), (FAST, range(slow_steps, points))):
            for layer in layers.values():
                layer.set_adapter(phase)
            parameters = [p for layer in layers.values() for p in _trained(layer, phase)]
            _train(velocity, data, own, parameters, settings, partial(report, phase) if report else None)
        return {phase: {name: _factor(layer, phase, name) for name, layer in layers.items()} for phase in (SLOW, FAST)}


@contextmanager
def adapters(model: nn.Module, settings: TrainingSettings) -> Iterator[dict[str, LoraLayer]]:
    """PEFT's layers `slow` and `fast` on the model's target modules, by module name; taken off again whatever happens."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.targets)  # type: ignore[arg-type]
    layers: dict[str, LoraLayer] = {}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what is wanted
            torch.manual_seed(settings.seed)
            for phase in (SLOW, FAST):
                inject_adapter_in_model(config, model, phase)
        layers.update((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
        yield layers
    finally:
        for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen[name])
        if hasattr(model, "peft_config"):
            del model.peft_config


def _trained(layer: LoraLayer, phase: str) -> tuple[nn.Parameter, nn.Parameter]:
    down, up = layer.lora_A[phase].get_parameter("weight"), layer.lora_B[phase].get_parameter("weight")
    return down, up


def _factor(layer: LoraLayer, phase: str, name: str) -> Factor:
    down, up = (p.detach().clone() for p in _trained(layer, phase))
    return Factor(down, up, float(layer.lora_alpha[phase]), float(layer.scaling[phase]), name)


def _train(
    velocity: RowVelocity,
    data: Trajectories,
    points: Sequence[int],
    parameters: Sequence[nn.Parameter],
    settings: TrainingSettings,
    report: Callable[[int, float], None] | None,
) -> None:
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(settings.seed)
    draws = zip(
        _evenly(torch.tensor(list(points)), settings.batch, generator), _evenly(torch.arange(data.states.shape[1]), settings.batch, generator)
    , strict=True)  # fmt: skip
    warm = max(1, math.ceil(settings.steps * settings.warmup))
    for step in range(settings.steps):
        at, rows = next(draws)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (step + 1) / warm) * (1 - step / settings.steps)
        loss = trajectory_loss(velocity, data, at, rows)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        if report:
            report(step + 1, float(loss.detach()))


def _evenly(values: Tensor, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless draws of `count` values, all of them equally often: one shuffled deck after another."""
    deck = values[:0]
    while True:
        while len(deck) < count:
            deck = torch.cat([deck, values[torch.randperm(len(values), generator=generator)]])
        yield deck[:count]
        deck = deck[count:]
