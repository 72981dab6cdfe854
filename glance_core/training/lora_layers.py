"""LoRA layers for training. PEFT makes and initialises them on a stand-in; the model's own modules stay in place.

So the model's tree and its state dict never change during training, and a host may load, unload and stream its weights
by name meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Linear

from ..errors import TrainingError
from ..lora.factors import Factor
from ..lora.slots import Slot
from .autograd.forward_patches import Forwards
from .autograd.lora_linear import FrozenLinear, Layer, Part, WeightOf, plain_weight

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

# PEFT's init_lora_weights. The paper's is gaussian: A ~ N(0, 1/r), B = 0.
INITS = {"kaiming": True, "gaussian": "gaussian"}


@dataclass(frozen=True)
class LoraSettings:
    """Rank, alpha and initialisation of every LoRA of a run. rslora: scale alpha / sqrt(rank), arXiv 2312.03732."""

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
            raise TrainingError(
                "DoRA rescales the base's weights, which cannot switch between phases; train plain LoRA or rslora"
            )


class LoraLayers:
    """PEFT's layers of one phase by slot name, and their factors."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        lora: LoraSettings,
        phase: str,
        seed: int,
        device: torch.device | None = None,
    ):
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.slots, self.phase = dict(slots), phase
        stand_in = _stand_in(slots)
        settings: dict[str, Any] = {
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "use_rslora": lora.rslora,
            "init_lora_weights": INITS[lora.init],
        }
        config = LoraConfig(target_modules=list(slots), **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, stand_in, phase)
        self.layers: dict[str, LoraLayer] = {
            name: module for name, module in stand_in.named_modules() if isinstance(module, LoraLayer)
        }
        missing = slots.keys() - self.layers.keys()
        if missing:
            raise TrainingError(f"PEFT made no LoRA for {sorted(missing)[0]}; leave it out of the targets")
        for layer in self.layers.values():
            for factors in (layer.lora_A, layer.lora_B):
                factors.to(device=device, dtype=torch.float32).requires_grad_(True)

    def pair(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A (r, inside) and B (outside, r) of one slot."""
        layer = self.layers[name]
        return layer.lora_A[self.phase].get_parameter("weight"), layer.lora_B[self.phase].get_parameter("weight")

    def parameters(self) -> list[nn.Parameter]:
        """Return every A and B."""
        return [parameter for name in self.slots for parameter in self.pair(name)]

    def factors(self) -> dict[str, Factor]:
        """Return copies of the factors as they are now, on the CPU."""
        copies = {}
        for name, layer in self.layers.items():
            down, up = (p.detach().to("cpu", copy=True) for p in self.pair(name))
            scale = float(layer.scaling[self.phase])
            copies[name] = Factor(down, up, scale * len(down), scale, name)
        return copies

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters themselves by name."""
        return {
            f"{name}.{which}": p.detach() for name in self.slots for which, p in zip("AB", self.pair(name), strict=True)
        }

    def forwards_on(
        self, model: nn.Module, weight_of: Callable[[nn.Module], WeightOf | None] | None = None
    ) -> Forwards:
        """Return the forwards with which the model's modules answer with their branches.

        Args:
            weight_of: how to get a module's weight, if not as it is.
        """
        slots_of: dict[str, list[str]] = {}
        for name, slot in self.slots.items():
            slots_of.setdefault(slot.module, []).append(name)
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        for path, names in slots_of.items():
            module = model.get_submodule(path)
            parts = tuple(self._part(name) for name in names)
            layer = Layer(module, module.forward, weight_of(module) if weight_of else plain_weight, parts)
            forwards[module] = partial(_with_branches, layer, [p for name in names for p in self.pair(name)])
        return forwards

    def _part(self, name: str) -> Part:
        slot = self.slots[name]
        return Part(slot.start, slot.outside, float(self.layers[name].scaling[self.phase]))


def _with_branches(layer: Layer, factors: list[nn.Parameter], x: Tensor) -> Tensor:
    out: Tensor = FrozenLinear.apply(x, layer, *factors)  # type: ignore[no-untyped-call]
    return out


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep gradients off the model's parameters; afterwards those require one that did before."""
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)


def _stand_in(slots: Mapping[str, Slot]) -> nn.Module:
    """Return a tree of the slots' names whose leaves have a Linear's widths and one number for all weights."""
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
