"""Layers that no gradient reaches in one trial step may still be reached in others."""

import pytest
import torch
from torch import nn

from glance_core.lora.slots import whole_slots
from glance_core.training.called import reachable_slots
from glance_core.training.student import Student

TRIAL = (0.9, 0)
NAMES = ("always", "edits", "late", "never", "thrown_away")


class Net(nn.Module):
    """Layers that run always, for prompt 1 only, at low noise only, never, and without an effect."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in NAMES})

    def forward(self, x, sigma, rows):
        self.layers["thrown_away"](x)
        out = self.layers["always"](x)
        if rows.tolist() == [1]:
            out = self.layers["edits"](out)
        return self.layers["late"](out) if float(sigma) < 0.5 else out


def reachable(calls, half=False):
    net = Net()
    slots = {name: slot for name, slot in whole_slots(net).items() if not name.endswith("always")}
    student = Student(net, net, slots, half=half)
    state = torch.random.get_rng_state()
    found = reachable_slots(student, list(slots), torch.ones(1, 4), calls)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any("forward" in vars(module) for module in net.modules())
    return {name.removeprefix("layers.") for name in found}


@pytest.mark.parametrize(
    "others, found",
    [([], set()), ([(0.9, 1)], {"edits"}), ([(0.1, 0)], {"late"}), ([(0.9, 1), (0.1, 0)], {"edits", "late"})],
)
def test_layers_of_other_prompts_and_noise_levels_are_reachable(others, found):
    assert reachable([TRIAL, *others]) == found


def test_a_layer_that_runs_may_be_reachable_in_float16_where_gradients_underflow():
    assert reachable([TRIAL, (0.1, 0)], half=True) == {"late", "thrown_away"}
