"""One trial step before training: layers without an effect are named, and what has no backward is refused."""

import re

import pytest
import torch
from torch import nn

from glance_core.errors import TrainingError
from glance_core.lora.slots import whole_slots
from glance_core.training.preflight import gradient_error, preflight
from glance_core.training.student import Student


class Net(nn.Module):
    """Three layers, of which one is never called."""

    def __init__(self, out=None, stopped=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.unused = (nn.Linear(6, 6) for _ in range(3))
        self.out, self.stopped = out, stopped

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        hidden = (1 - self.stopped) * hidden + self.stopped * hidden.detach()
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


@pytest.mark.parametrize("stopped", [0.1, 0.5])
def test_a_gradient_that_is_partly_stopped_is_refused(stopped):
    net = Net(stopped=stopped)
    with pytest.raises(TrainingError) as refused:
        tried(net, "first|second")
    assert re.fullmatch(
        r"the net cannot be trained, because its gradient is \d+ % wrong: something in the model stops or changes "
        r"gradients; nothing was run yet, please report the model",
        str(refused.value),
    )
    assert tried(net, "second") == (), "the gradient of this layer is right"


def test_a_gradient_that_is_stopped_on_its_way_to_a_layer_is_refused():
    with pytest.raises(TrainingError) as refused:
        tried(Net(stopped=1.0))
    assert str(refused.value) == (
        "the net cannot be trained, because no gradient reaches some of the chosen layers though they change its "
        "answer; choose other targets, or report the model"
    )


def error_of(loss, gradient):
    """Return the error of this gradient at ones, and check that the tensor comes back."""
    tensor = nn.Parameter(torch.ones(4))
    found = gradient_error(lambda: float(loss(tensor.detach().double())), {tensor: gradient})
    assert torch.equal(tensor, torch.ones(4))
    return found


def test_the_error_of_a_gradient_is_the_missing_share_of_its_slope():
    right = torch.tensor([4.0, 8.0, 12.0, 16.0]).double()  # of the sum of k x^4 at x = 1

    def loss(x):
        return (torch.arange(1, 5) * x**4).sum()

    assert error_of(loss, right) == 0.0
    assert error_of(loss, right / 1.05) == pytest.approx(0.05, abs=1e-4)
    assert error_of(loss, right * 2) == pytest.approx(-0.5, abs=1e-4)
    assert error_of(loss, right / 1.005) == 0.0, "within the tolerance"


@pytest.mark.parametrize("seed", range(20))
def test_a_gradient_that_rounding_hides_is_not_called_wrong(seed):
    random = torch.Generator().manual_seed(seed)

    def loss(x):
        noise = 1 + 0.02 * torch.randn((), generator=random)
        return 100 + x.square().sum() * noise

    assert error_of(loss, 2 * torch.ones(4).double()) == 0.0


def test_running_out_of_memory_is_not_taken_for_a_missing_backward():
    net = Net()

    def velocity(x, sigma, rows):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        preflight(Student(net, velocity, whole_slots(net)), torch.ones(1, 6), 0.5, torch.tensor([0]))
