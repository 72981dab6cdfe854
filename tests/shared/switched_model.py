"""A small model with a Linear, a convolution and an unknown layer, and two phases of low-rank updates for it."""

import torch
from torch import nn
from torch.nn import Conv2d, Linear

from glance_core.low_rank import LowRank
from glance_core.switch import PhaseSwitch, PhaseWeights

CPU = torch.device("cpu")


class UnknownLinear(nn.Module):
    """A Linear that the switch does not know: no in_features, one more argument, weights in a private form."""

    def __init__(self, inside, outside):
        super().__init__()
        self.packed = nn.Parameter(torch.randn(outside * inside))
        self.outside = outside

    def forward(self, x, offset=0.0):
        return x @ self.packed.view(self.outside, -1).t() + offset


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = Linear(8, 24)
        self.proj = Linear(24, 8, bias=False)
        self.unknown = UnknownLinear(8, 6)
        self.conv = Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return self.unknown(self.proj(self.qkv(x)), offset=2.0)


def low_rank(seed, outside, inside, rank=3, start=0):
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, inside, generator=generator), torch.randn(outside, rank, generator=generator)
    return LowRank(down, up, start)


def two_phases():
    return [
        {
            "qkv": [low_rank(seed + i, 8, 8, start=8 * i) for i in range(3)],
            "proj": [low_rank(seed + 3, 8, 24)],
            "unknown": [low_rank(seed + 4, 6, 8)],
        }
        for seed in (1, 10)
    ]


def merged(phase):
    """Return the model with the phase added to its weights: what every branch is compared with."""
    model = Model()
    with torch.no_grad():
        for name, updates in phase.items():
            for update in updates:
                delta = update.up @ update.down
                if name == "unknown":
                    model.unknown.packed += delta.flatten()
                else:
                    getattr(model, name).weight[update.start : update.start + len(delta)] += delta
    return model


def install(phases, model, dtype=torch.float32):
    switch = PhaseSwitch(PhaseWeights(phases, dtype))
    switch.install(model, CPU)
    return switch


def has_own_forward(model):
    """Return whether any module below `model` has a forward set on the instance."""
    return any("forward" in module.__dict__ for module in model.modules())
