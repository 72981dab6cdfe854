"""One trial step before training: layers without an effect are named, and what has no backward is refused."""

import pytest
import torch
from torch import nn

from glance_core.errors import TrainingError
from glance_core.lora.slots import whole_slots
from glance_core.training.preflight import preflight
from glance_core.training.student import Student


class Net(nn.Module):
    """Three layers, of which one is never called."""

    def __init__(self, out=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.unused = (nn.Linear(6, 6) for _ in range(3))
        self.out = out

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return torch.add(x, self.second(hidden), out=self.out)


def student(net, pattern=".*", half=False):
    return Student(net, lambda x, sigma, rows: net(x), whole_slots(net, pattern), "the net", half=half)


def tried(net, pattern=".*", half=False):
    return preflight(student(net, pattern, half), torch.ones(2, 6), 0.5, torch.tensor([0, 1]))


@pytest.mark.parametrize("half", [False, True])
def test_layers_that_no_gradient_reaches_are_named_and_the_model_stays_as_it_was(half):
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    assert tried(net, half=half) == ("unused",)
    assert tried(net, "first|second") == ()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters()) and "forward" not in vars(net.first)


def test_targets_without_any_effect_are_refused():
    with pytest.raises(TrainingError) as refused:
        tried(Net(), "unused")
    assert str(refused.value) == (
        "none of the 1 chosen layers has an effect on the net, for example unused; choose other targets"
    )


def test_a_model_without_a_backward_is_refused_with_the_reason():
    with pytest.raises(TrainingError, match=r"^the net cannot be trained, because PyTorch cannot .* \(.*out="):
        tried(Net(out=torch.empty(2, 6)))


def test_running_out_of_memory_is_not_taken_for_a_missing_backward():
    net = Net()

    def velocity(x, sigma, rows):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        preflight(Student(net, velocity, whole_slots(net)), torch.ones(1, 6), 0.5, torch.tensor([0]))
