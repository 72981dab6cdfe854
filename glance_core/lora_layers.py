"""LoRA layers for training: PEFT makes and initialises them, on a stand-in of the model's names; the model's own modules stay in place.

So the model's tree and its state dict are the same at every moment of a training run, and a host may load, unload and stream its weights
by their names meanwhile. A target need not be a whole module: FLUX's fused qkv is trained, and saved, as the to_q, to_k and to_v that
diffusers and the paper know.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Linear

from .errors import TrainingError
from .frozen import Forwards, FrozenLinear, Layer, Part, WeightOf, plain_weight
from .lora_file import Factor
from .phase_switch import LowRank

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

INITS = {"kaiming": True, "gaussian": "gaussian"}  # PEFT's init_lora_weights; the paper's is gaussian: A ~ N(0, 1/r), B = 0


@dataclass(frozen=True)
class Slot:
    """What one LoRA trains: the rows start .. start + outside of a Linear (its path in the model), which takes `inside` features."""

    module: str
    inside: int
    outside: int
    start: int = 0


@dataclass(frozen=True)
class Lora:
    """rank, alpha and initialisation of every LoRA of a run; with rslora the scale is alpha / sqrt(rank) (arXiv 2312.03732)."""

    rank: int
    alpha: float
    init: str = "kaiming"
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise TrainingError(f"rank is {self.rank} and alpha {self.alpha:g}; both must be positive numbers")
        if self.init not in INITS:
            raise TrainingError(f"init is {self.init!r}; choose {' or '.join(INITS)}")
        if self.dora:
            raise TrainingError("DoRA rescales the base's weights, which no switch between phases can follow; train plain LoRA or rslora")


def is_linear(module: nn.Module) -> bool:
    """A Linear, of torch's class or of a host's that is none of it but has its widths."""
    return isinstance(module, nn.Linear) or (
        isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int)
    )


def whole_slots(model: nn.Module, pattern: str) -> dict[str, Slot]:
    """A slot for every Linear whose whole name the regular expression matches, by that name."""
    found = {name: module for name, module in model.named_modules() if is_linear(module) and re.fullmatch(pattern, name)}
    return {name: Slot(name, int(module.in_features), int(module.out_features)) for name, module in found.items()}


def low_rank_updates(factors: Mapping[str, Factor], slots: Mapping[str, Slot]) -> dict[str, list[LowRank]]:
    """A phase's updates by module, as a switch takes them; a name without a slot is itself a module's."""
    updates: dict[str, list[LowRank]] = {}
    for name, factor in factors.items():
        module, start = (slots[name].module, slots[name].start) if name in slots else (name, 0)
        updates.setdefault(module, []).append(LowRank(factor.down, factor.up * factor.scale, start))
    return updates


class LoraLayers:
    """PEFT's layers of one phase by slot name, and the factors they have come to."""

    def __init__(self, slots: Mapping[str, Slot], lora: Lora, phase: str, seed: int, device: torch.device | None = None):
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.slots, self.phase = dict(slots), phase
        names = _stand_in(slots)
        stated: dict[str, Any] = {
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "use_rslora": lora.rslora,
            "init_lora_weights": INITS[lora.init],
        }
        config = LoraConfig(target_modules=list(slots), **stated)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, names, phase)
        self.layers: dict[str, LoraLayer] = {name: module for name, module in names.named_modules() if isinstance(module, LoraLayer)}
        missing = slots.keys() - self.layers.keys()
        if missing:
            raise TrainingError(f"PEFT made no LoRA for {sorted(missing)[0]}; leave it out of the targets")
        for layer in self.layers.values():
            for factors in (layer.lora_A, layer.lora_B):
                factors.to(device=device, dtype=torch.float32).requires_grad_(True)

    def pair(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A (r, inside) and B (outside, r) of one slot."""
        layer = self.layers[name]
        return layer.lora_A[self.phase].get_parameter("weight"), layer.lora_B[self.phase].get_parameter("weight")

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for name in self.slots for parameter in self.pair(name)]

    def factors(self) -> dict[str, Factor]:
        """Copies of the factors as they are now, on the CPU."""
        made = {}
        for name, layer in self.layers.items():
            down, up = (p.detach().to("cpu", copy=True) for p in self.pair(name))
            scale = float(layer.scaling[self.phase])
            made[name] = Factor(down, up, scale * len(down), scale, name)
        return made

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of `tensors()`."""
        for key, parameter in self.tensors().items():
            parameter.detach().copy_(tensors[key])

    def tensors(self) -> dict[str, Tensor]:
        """The parameters themselves by name."""
        return {f"{name}.{which}": p.detach() for name in self.slots for which, p in zip("AB", self.pair(name), strict=True)}

    def forwards_on(self, model: nn.Module, weight_of: Callable[[nn.Module], WeightOf | None] | None = None) -> Forwards:
        """The forwards that the model's modules need to answer with their branches. weight_of: how to get at a weight, if not as it is."""
        at: dict[str, list[str]] = {}
        for name, slot in self.slots.items():
            at.setdefault(slot.module, []).append(name)
        changed: dict[nn.Module, Callable[..., Any]] = {}
        for path, names in at.items():
            module = model.get_submodule(path)
            parts = tuple(Part(self.slots[n].start, self.slots[n].outside, float(self.layers[n].scaling[self.phase])) for n in names)
            layer = Layer(module, module.forward, weight_of(module) if weight_of else plain_weight, parts)
            changed[module] = partial(_with_branches, layer, [p for n in names for p in self.pair(n)])
        return changed


def _with_branches(layer: Layer, factors: list[nn.Parameter], x: Tensor) -> Tensor:
    out: Tensor = FrozenLinear.apply(x, layer, *factors)  # type: ignore[no-untyped-call]
    return out


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model asks for a gradient; afterwards those do that did before."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _stand_in(slots: Mapping[str, Slot]) -> nn.Module:
    """A tree of the slots' names whose leaves have a Linear's widths and one number for all of its weights."""
    root = nn.Module()
    for name, slot in slots.items():
        at, parts = root, name.split(".")
        for part in parts[:-1]:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        leaf = Linear(slot.inside, slot.outside, bias=False, device="meta")
        leaf.weight = nn.Parameter(torch.zeros(1, 1).expand(slot.outside, slot.inside), requires_grad=False)
        at.add_module(parts[-1], leaf)
    return root
