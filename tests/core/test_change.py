"""Changes that are not low-rank equal the module with the changed weight, as torch itself computes it."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from glance_core.change import InputLowRank, NormDifference, ParameterDifference, WeightDifference, is_norm
from glance_core.errors import SwitchError
from glance_core.low_rank import LowRank
from glance_core.switch import PhaseSwitch, PhaseWeights

F32 = torch.float32


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F32)


class Net(nn.Module):
    """One module, named `it`."""

    def __init__(self, module):
        super().__init__()
        self.it = module
        for number, parameter in enumerate(self.parameters()):
            parameter.data = normal(*parameter.shape, seed=number + 50)
            parameter.requires_grad_(False)

    def forward(self, x):
        return self.it(x)


def answers(net, x, adapters, phases):
    """The net's output in each phase, then without the switch. The base must be what it was."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    switch = PhaseSwitch(PhaseWeights([{"it": each} for each in adapters], F32))
    switch.install(net, torch.device("cpu"), phases)
    found = []
    for phase in range(len(phases)):
        switch.select(phase)
        found.append(net(x))
    switch.remove()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(not set(module.__dict__) & {"weight", "bias", "scale", "forward"} for module in net.modules())
    return [*found, net(x)]


def check(net, x, adapters, phases, changed):
    """changed: the parameters that each phase should act as."""
    *found, bare = answers(net, x, adapters, phases)
    for ours, parameters in zip(found, changed, strict=True):
        expected = functional_call(net, parameters, (x,))
        assert (ours - expected).norm() < 1e-5 * expected.norm()
        assert parameters == {} or not torch.allclose(ours, bare, atol=1e-2)


@pytest.mark.parametrize(
    "module, x",
    [
        (nn.Linear(6, 9), normal(2, 5, 6)),
        (nn.Conv1d(6, 9, 3, padding=1), normal(2, 6, 7)),
        (nn.Conv2d(6, 9, 3, stride=2, padding=1), normal(2, 6, 7, 7)),
        (nn.Conv3d(6, 9, (1, 2, 2), padding_mode="circular", padding=1), normal(1, 6, 3, 4, 4)),
    ],
)
def test_a_difference_of_a_weight_acts_as_the_changed_weight(module, x):
    net = Net(module)
    difference = normal(*module.weight.shape, seed=1)
    phases = [[1.0], [0.0], [-0.5]]
    changed = [{"it.weight": module.weight + s * difference} if s else {} for (s,) in phases]
    check(net, x, [[WeightDifference(difference, F32)]], phases, changed)


def test_a_difference_may_change_some_rows_only():
    net, x, difference = Net(nn.Linear(6, 9)), normal(2, 6), normal(3, 6, seed=1)
    weight = net.it.weight.clone()
    weight[4:7] += difference
    check(net, x, [[WeightDifference(difference, F32, start=4)]], [[1.0]], [{"it.weight": weight}])


@pytest.mark.parametrize(
    "module, x",
    [
        (nn.LayerNorm(8), normal(2, 5, 8)),
        (nn.LayerNorm(8, bias=False), normal(2, 5, 8)),
        (nn.RMSNorm(8, eps=1e-3), normal(2, 5, 8)),
        (nn.GroupNorm(2, 8), normal(2, 8, 3, 3)),
    ],
)
@pytest.mark.parametrize("which", ["weight", "bias", "both"])
def test_a_difference_of_a_norm_acts_as_the_changed_norm(module, x, which):
    net = Net(module)
    assert is_norm(module)
    names = [name for name, value in module.named_parameters() if value is not None and which in (name, "both")]
    given = {name: normal(8, seed=len(name)) for name in names}
    if not given:
        return
    change = NormDifference(given.get("weight"), given.get("bias"), F32)
    changed = {f"it.{name}": getattr(module, name) + 0.7 * given[name] for name in names}
    check(net, x, [[change]], [[0.7]], [changed])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1, 8))

    def forward(self, x, *, twice=False):
        if (x > 1e6).any():
            raise KeyboardInterrupt
        return x * self.scale * (2 if twice else 1)


def test_a_difference_of_a_parameter_lies_in_front_of_it_while_the_module_runs():
    net, difference = Net(Block()), normal(1, 8, seed=1)
    adapters = [[ParameterDifference("scale", difference, F32)], [ParameterDifference("scale", 2 * difference, F32)]]
    phases = [[1.0, 0.0], [0.5, 0.5]]
    changed = [{"it.scale": net.it.scale + s * difference} for s in (1, 1.5)]
    check(net, normal(3, 8), adapters, phases, changed)


def test_the_parameter_is_in_front_again_after_an_interrupt():
    net = Net(Block())
    switch = PhaseSwitch(PhaseWeights([{"it": [ParameterDifference("scale", normal(1, 8), F32)]}], F32))
    switch.install(net, torch.device("cpu"))
    switch.select(0)
    with pytest.raises(KeyboardInterrupt):
        net(torch.full((1, 8), 1e7))
    assert "scale" not in net.it.__dict__ and net.it.scale is dict(net.it.named_parameters())["scale"]


@pytest.mark.parametrize(
    "module, x", [(nn.Linear(6, 9), normal(2, 5, 6)), (nn.Conv2d(6, 9, 3, padding=1), normal(2, 6, 7, 7))]
)
def test_a_low_rank_map_of_the_input_acts_as_the_weight_times_it(module, x):
    net, down, up = Net(module), normal(2, 6, seed=1), normal(6, 2, seed=2)
    changed = [
        {"it.weight": module.weight + s * torch.einsum("oi...,ij->oj...", module.weight, up @ down)} for s in (1, 3)
    ]
    check(net, x, [[InputLowRank(down, up, F32)]], [[1.0], [3.0]], changed)


def test_each_adapter_acts_on_what_those_before_it_make():
    """The order is that in which a host would merge them: W + B1, then (W + B1)(I + A), then + B2."""
    net, x = Net(nn.Linear(6, 9)), normal(2, 5, 6)
    first, last = (LowRank(normal(2, 6, seed=s), normal(9, 2, seed=s + 1)) for s in (1, 3))
    down, up = normal(2, 6, seed=5), normal(6, 2, seed=6)
    adapters = [[first], [InputLowRank(down, up, F32), last], [WeightDifference(normal(9, 6, seed=7), F32)]]
    weight = net.it.weight

    def merged(a, b, c):
        changed = weight + a * first.up @ first.down
        changed = changed + b * changed @ up @ down + b * last.up @ last.down
        return {"it.weight": changed + c * normal(9, 6, seed=7)}

    phases = [[1.0, 1.0, 1.0], [0.5, -1.0, 0.0], [0.0, 2.0, 1.0]]
    check(net, x, adapters, phases, [merged(*strengths) for strengths in phases])


def test_memory_of_all_kinds_is_counted():
    weights = PhaseWeights(
        [{"it": [InputLowRank(normal(2, 6), normal(6, 2), F32), LowRank(normal(1, 6), normal(9, 1))]}], F32
    )
    assert weights.nbytes == 4 * (12 + 12 + 6 + 9) == sum(p.nbytes for p in weights.parameters())


def test_numbers_that_overflow_are_refused():
    with pytest.raises(SwitchError, match=r"overflows torch.float16; run the model in bfloat16 or float32"):
        WeightDifference(torch.full((2, 2), 1e6), torch.float16)
