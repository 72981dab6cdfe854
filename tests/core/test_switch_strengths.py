"""Several adapters in one switch, each with a strength in every phase. The truth is their weighted sum as weights."""

import pytest
import torch
from switched_model import CPU, Model, low_rank, merged
from torch import nn

from glance_core.errors import SwitchError
from glance_core.low_rank import LowRank
from glance_core.switch import PhaseSwitch, PhaseWeights, has_active_branch

X = torch.randn((5, 8), generator=torch.Generator().manual_seed(7))


def installed(adapters, strengths, model=None, dtype=torch.float32):
    model = model or Model()
    switch = PhaseSwitch(PhaseWeights(adapters, dtype))
    switch.install(model, CPU, strengths)
    return model, switch


def scaled(update, strength):
    bias = None if update.bias is None else update.bias * strength
    return LowRank(update.down, update.up * strength, update.start, bias)


def weighted(adapters, strengths):
    """Return one adapter that is the weighted sum."""
    total = {}
    for adapter, strength in zip(adapters, strengths, strict=True):
        for name, updates in adapter.items():
            total.setdefault(name, []).extend(scaled(update, strength) for update in updates)
    return total


def four_adapters():
    """Return adapters of other ranks; the second changes only the parts of a fused layer, the third leaves it alone."""
    return [
        {"proj": [low_rank(1, 8, 24, rank=2)], "qkv": [low_rank(2, 24, 8)]},
        {"proj": [low_rank(3, 8, 24, rank=4)], "qkv": [low_rank(4 + i, 8, 8, start=8 * i) for i in range(3)]},
        {"proj": [low_rank(8, 8, 24, rank=1)], "unknown": [low_rank(9, 6, 8)]},
        {"proj": [low_rank(10, 8, 24)], "qkv": [low_rank(11, 24, 8, rank=1)], "unknown": [low_rank(12, 6, 8)]},
    ]


PHASES = [[1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5], [1, -0.3, 0, 2], [0, 0, 0.7, 0], [0, 0, 0, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize("gradient", [False, True])
def test_every_phase_equals_the_weighted_sum_in_the_weights(gradient):
    adapters = four_adapters()
    model, switch = installed(adapters, PHASES)
    base = Model()(X)
    x = X.clone().requires_grad_(gradient)
    for phase, strengths in [*enumerate(PHASES), (0, PHASES[0])]:
        switch.select(phase)
        with torch.set_grad_enabled(gradient):
            torch.testing.assert_close(model(x), merged(weighted(adapters, strengths))(x), rtol=1e-5, atol=2e-3)
    switch.select(4)
    assert torch.equal(model(x), base), "a phase without adapters is the base bit for bit"
    assert not any(has_active_branch(module) for module in model.modules() if isinstance(module, nn.Linear))


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def work(strengths, adapters):
    """Return the operations of one call of `proj`, its own first."""
    model, switch = installed(adapters, [strengths, [1] * len(adapters)])  # all of them answer at some time
    switch.select(0)
    x = torch.ones(4, 24)
    with torch.no_grad(), Recorded() as recorded:
        model.proj(x)
    return [name for name in recorded.calls if name not in ("t", "view", "_unsafe_view")]


def test_adapters_that_answer_together_share_one_mm_and_one_addmm():
    adapters = [{"proj": [low_rank(seed, 8, 24)]} for seed in range(4)]
    assert work([0.5] * 4, adapters) == ["mm", "mm", "addmm_"]
    assert work([1, 0.9, 0.8, 0.7], adapters) == ["mm", "mm", "mul", "addmm_"]
    assert work([0, 1, 1, 0], adapters) == ["mm", "mm", "addmm_"]
    assert work([1, 0, 1, 1], adapters) == ["mm", "mm", "addmm_", "mm", "addmm_"], "one that is off costs nothing"
    assert work([0] * 4, adapters) == ["mm"]


def test_phases_share_the_tensors_whatever_their_strengths():
    weights = PhaseWeights(four_adapters(), torch.float32)
    alone = sum(PhaseWeights([adapter], torch.float32).nbytes for adapter in four_adapters())
    assert weights.nbytes == alone
    owned = {tensor.untyped_storage().data_ptr() for tensor in weights.parameters()}
    for phases in weights.on(CPU, PHASES).values():
        for bound in (bound for phase in phases for bound in phase):
            assert {bound.down.untyped_storage().data_ptr()} <= owned
            assert {term.up.untyped_storage().data_ptr() for term in bound.terms} <= owned


def test_an_adapter_without_a_strength_in_this_run_wraps_nothing():
    adapters = [{"proj": [low_rank(1, 8, 24)]}, {"unknown": [low_rank(2, 6, 8)]}]
    model, switch = installed(adapters, [[1, 0], [0.5, 0]])
    assert "forward" in vars(model.proj) and "forward" not in vars(model.unknown)
    assert switch.never_called == ("proj",)


def test_an_adapter_that_is_off_cannot_spoil_the_others():
    huge = LowRank(torch.full((1, 24), 3e38), torch.full((8, 1), 3e38))
    adapters = [{"proj": [low_rank(1, 8, 24)]}, {"proj": [huge]}, {"proj": [low_rank(2, 8, 24)]}]
    model, switch = installed(adapters, [[1, 0, 1], [1, 1, 1]])
    switch.select(0)
    with torch.no_grad():
        expected = merged(weighted([adapters[0], adapters[2]], [1, 1]))(X)
        torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-3)


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gradient", [False, True])
def test_biases_take_the_strength_of_their_adapter(gradient):
    first = LowRank(random(2, 24, seed=1), random(8, 2, seed=2), bias=random(8, seed=3))
    second = LowRank(random(0, 24, seed=4), random(5, 0, seed=5), start=2, bias=random(5, seed=6))
    model, switch = installed([{"proj": [first]}, {"proj": [second]}], [[0.5, -2]])
    x = random(3, 24, seed=8).requires_grad_(gradient)
    expected = model.proj(x) + 0.5 * (x @ first.down.t() @ first.up.t() + first.bias)
    expected = expected + nn.functional.pad(-2 * second.bias, (2, 1))
    switch.select(0)
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(model.proj(x), expected, rtol=1e-5, atol=1e-5)


def test_a_convolution_takes_a_strength_for_each_adapter():
    adapters = [
        {"conv": [LowRank(random(2, 3, 3, 3, seed=i), random(4, 2, seed=i + 1), bias=random(4, seed=i + 2))]}
        for i in (1, 11, 21)
    ]
    strengths = [[0.5, 0.5, 0], [1, -1, 0.3], [0, 0, 2], [1, 0, 1]]
    model, switch = installed(adapters, strengths)
    x = random(2, 3, 9, 9, seed=4)
    for phase, own in enumerate(strengths):
        other = Model().conv
        with torch.no_grad():
            for adapter, strength in zip(adapters, own, strict=True):
                (update,) = adapter["conv"]
                other.weight += strength * torch.einsum("or,rikl->oikl", update.up, update.down)
                other.bias += strength * update.bias
            switch.select(phase)
            torch.testing.assert_close(model.conv(x), other(x), rtol=1e-5, atol=1e-4)


def test_a_convolutions_bias_alone_is_added():
    update = LowRank(torch.zeros(0, 3, 3, 3), torch.zeros(4, 0), bias=random(4, seed=1))
    model, switch = installed([{"conv": [update]}], [[0.5]])
    x = random(2, 3, 9, 9, seed=4)
    with torch.no_grad():
        expected = model.conv(x) + 0.5 * update.bias.view(4, 1, 1)
        switch.select(0)
        torch.testing.assert_close(model.conv(x), expected)


def test_a_phase_without_a_strength_for_every_adapter_is_rejected():
    model = Model()
    with pytest.raises(SwitchError) as error:
        installed(four_adapters(), [[1, 1, 1, 1], [1, 1]], model)
    assert str(error.value) == "every phase needs a strength for each of the 4 adapters"
    assert not any("forward" in vars(module) for module in model.modules())
