"""The switch on modules unlike a plain Linear: other dtypes and devices, outputs that autograd keeps, convolutions."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import Conv1d, Conv2d, Linear

from glance_core.errors import SwitchError
from glance_core.low_rank import Branch, LowRank, check_update, features, linear_features
from glance_core.switch import PhaseSwitch, PhaseWeights, find_module

CPU = torch.device("cpu")


def low_rank(outside, inside, rank=3, start=0, seed=0, kernel=()):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn((rank, inside, *kernel), generator=generator),
        torch.randn((outside, rank), generator=generator),
        start,
    )


class Root(nn.Module):
    def __init__(self, module):
        super().__init__()
        torch.manual_seed(0)
        self.it = module


def install(module, *updates, dtype=torch.float32, device=CPU):
    root = Root(module)
    switch = PhaseSwitch(PhaseWeights([{"it": updates}], dtype))
    switch.install(root, device)
    switch.select(0)
    return root, switch


def test_the_switch_holds_its_own_copy_without_gradients():
    update = low_rank(5, 6, rank=1)
    branch = Branch([[update]], torch.float32)
    before = branch.up0.clone()
    update.up.zero_()
    assert torch.equal(branch.up0, before)
    assert not any(tensor.requires_grad for tensor in branch.parameters())


def test_factors_are_contiguous_and_transposed_for_the_product():
    branch = Branch([[low_rank(5, 6), low_rank(7, 6)]], torch.bfloat16)
    assert branch.up0.shape == (3, 5) and branch.up1.shape == (3, 7) and branch.down.shape == (6, 6)
    assert all(tensor.is_contiguous() for tensor in branch.parameters())


def test_a_factor_that_the_models_dtype_cannot_hold_is_rejected():
    update = low_rank(5, 6)
    update.up[0, 0] = 1e30
    with pytest.raises(SwitchError) as error:
        Branch([[update]], torch.float16)
    assert str(error.value) == (
        "a LoRA factor overflows torch.float16, the model's dtype; run the model in bfloat16 or float32"
    )


def test_branches_are_on_the_models_device():
    root, _ = install(Linear(6, 5, device="meta"), low_rank(5, 6), device=torch.device("meta"))
    assert root.it(torch.ones(2, 6, device="meta")).device.type == "meta"


def test_a_switch_that_is_not_installed_ignores_select_and_remove():
    switch = PhaseSwitch(PhaseWeights([{"it": [low_rank(5, 6)]}], torch.float32))
    assert (switch.installed, switch.phase) == (False, None)
    switch.select(0)
    switch.remove()
    assert not switch.installed and switch.phase is None


def test_install_reuses_a_hook_if_its_module_is_still_the_same():
    """A compiled graph recognises the hook that it was compiled with."""
    root, switch = install(Linear(6, 5), low_rank(5, 6))
    first = root.it.forward
    switch.remove()
    switch.install(root, CPU)
    assert root.it.forward is first and switch.never_called == ("it",)
    switch.remove()
    old, root.it = root.it, Linear(6, 5)
    switch.install(root, CPU)
    assert root.it.forward is not first and "forward" not in vars(old)
    switch.select(0)
    base = nn.functional.linear(torch.ones(2, 6), root.it.weight, root.it.bias)
    assert not torch.equal(root.it(torch.ones(2, 6)), base)


class Shifted(Linear):
    def forward(self, x, offset, scale=1.0):
        return super().forward(x) * scale + offset


def test_other_arguments_of_a_forward_reach_it():
    module = Shifted(6, 5)
    x = torch.ones(2, 6)
    with torch.no_grad():
        base = module(x, 3.0, scale=2.0)
        root, switch = install(module, low_rank(5, 6))
        switch.select(None)
        assert torch.equal(root.it(x, 3.0, scale=2.0), base)


class Upcast(Linear):
    """Its weights and input are bfloat16 and its result is float32, as in quantised layers."""

    def forward(self, x):
        return super().forward(x).float()


@pytest.mark.parametrize("gradient", [False, True])
def test_a_module_with_an_output_of_another_dtype_gets_the_same_sum(gradient):
    update = low_rank(5, 6)
    module = Upcast(6, 5, dtype=torch.bfloat16).requires_grad_(gradient)
    x = torch.ones(2, 6, dtype=torch.bfloat16)
    base = module(x).detach()
    root, _ = install(module, update, dtype=torch.bfloat16)
    found = root.it(x)
    assert found.dtype == torch.float32 and found.requires_grad == gradient
    assert torch.allclose(found - base, x.float() @ update.down.t() @ update.up.t(), rtol=0.03, atol=0.05)


class SavesOutput(Linear):
    """Its backward needs its output."""

    def forward(self, x):
        return torch.tanh(super().forward(x))


@pytest.mark.parametrize("trains", ["weight", "input", "both"])
def test_an_output_that_autograd_keeps_is_not_overwritten(trains):
    """Three slices of one output. The expected gradient is that of the same sum, written out."""
    updates = [low_rank(4, 6, start=4 * i, seed=i) for i in range(3)]
    module = SavesOutput(6, 12).requires_grad_(trains != "input")
    x = torch.randn((2, 3, 6), generator=torch.Generator().manual_seed(5)).requires_grad_(trains != "weight")
    expected = torch.tanh(nn.functional.linear(x, module.weight, module.bias)) + torch.cat(
        [x @ u.down.t() @ u.up.t() for u in updates], -1
    )
    trained = [tensor for tensor in (module.weight, x) if tensor.requires_grad]
    gradients = torch.autograd.grad(expected.square().sum(), trained)
    root, _ = install(module, *updates)
    found = root.it(x)
    assert torch.allclose(found, expected, atol=1e-5)
    for gradient, other in zip(torch.autograd.grad(found.square().sum(), trained), gradients, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "module, kernel, shape",
    [
        (Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), (3, 3), (2, 3, 11, 9)),
        (Conv2d(3, 4, 3, padding=0, dilation=1), (3, 3), (1, 3, 8, 8)),
        (Conv1d(3, 4, 5, padding=3), (5,), (2, 3, 12)),
    ],
)
def test_a_convolutions_branch_equals_the_product_added_to_its_weight(module, kernel, shape):
    module = copy.deepcopy(module)
    update = low_rank(4, 3, kernel=kernel)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    convolve = nn.functional.conv2d if len(kernel) == 2 else nn.functional.conv1d
    weight = module.weight + (update.up @ update.down.flatten(1)).view(4, 3, *kernel)
    expected = convolve(x, weight, module.bias, module.stride, module.padding, module.dilation)
    root, _ = install(module, update)
    assert torch.allclose(root.it(x), expected, atol=1e-4)


def test_a_convolution_runs_in_its_own_dtype():
    update, module = low_rank(4, 3, kernel=(1, 1)), Conv2d(3, 4, 1, dtype=torch.float64)
    x = torch.ones((1, 3, 2, 2), dtype=torch.float64)
    weight = (update.up @ update.down.flatten(1)).double()
    expected = module(x) + (x.flatten(2).transpose(1, 2) @ weight.t()).transpose(1, 2).view(1, 4, 2, 2)
    root, _ = install(module, update)
    found = root.it(x)
    assert found.dtype == torch.float64 and torch.allclose(found, expected, atol=1e-5)


def test_an_update_that_fits_is_accepted():
    check_update(Linear(6, 12), "it", low_rank(4, 6, start=8))
    check_update(Conv2d(3, 4, 3), "it", low_rank(4, 3, kernel=(3, 3)))
    check_update(nn.Identity(), "it", low_rank(4, 6))  # only its forward can tell


def test_a_module_with_only_one_known_width_accepts_any_update():
    module = nn.Identity()
    module.in_features = 7
    check_update(module, "it", low_rank(4, 6))


class PackedLinear(nn.Module):
    """A Linear whose weight has another shape than its numbers, in the layout of bitsandbytes."""

    def __init__(self, states_shape=True):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(72.0).view(-1, 1) / 72)
        if states_shape:
            self.weight.quant_state = SimpleNamespace(shape=torch.Size([12, 6]))

    def forward(self, x):
        return x @ self.weight.view(12, 6).t()


class Gate(nn.Module):
    def forward(self, x):
        return x.argmax(-1), x


def test_a_packed_linear_has_the_sizes_of_the_numbers_that_it_means():
    assert linear_features(PackedLinear()) == features(PackedLinear()) == (6, 12)
    assert linear_features(PackedLinear(states_shape=False)) is None
    assert (linear_features(Linear(6, 12)), features(Conv2d(3, 4, 3))) == ((6, 12), (3, 4))
    assert linear_features(Conv2d(3, 4, 3)) is features(nn.Embedding(6, 12)) is None


@pytest.mark.parametrize("states_shape", [True, False])
def test_a_packed_linear_gets_the_product_added(states_shape):
    update, module = low_rank(5, 6, start=7), PackedLinear(states_shape)
    x = torch.randn((2, 3, 6), generator=torch.Generator().manual_seed(1))
    expected = module(x)
    expected[..., 7:12] += x @ (update.up @ update.down).t()
    root, _ = install(module, update)
    assert torch.allclose(root.it(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "module, update, message",
    [
        (
            PackedLinear(False),
            low_rank(4, 7),
            "takes 6 and gives 12 features, but the adapter's factors take 7 and give 4",
        ),
        (
            PackedLinear(False),
            low_rank(5, 6, start=8),
            "factors take 6 and give 13; the adapter is for another model size",
        ),
        (Gate(), low_rank(4, 6), "it is not a Linear, so no LoRA can act on it; use a file without this layer"),
        (nn.Flatten(0), low_rank(4, 6), "it is not a Linear"),
    ],
)
def test_what_does_not_fit_a_layer_of_unknown_sizes_is_told_in_its_first_call(module, update, message):
    root, switch = install(module, update)
    with pytest.raises(SwitchError, match=message):
        root.it(torch.ones(2, 6))
    switch.select(None)
    root.it(torch.ones(2, 6))  # the base alone


DOES_NOT_FIT = [
    (Linear(7, 12), low_rank(4, 6), "7 and gives 12", "(3, 6) and (4, 3) for rows 0..4"),
    (Linear(6, 12), low_rank(4, 6, start=9), "6 and gives 12", "(3, 6) and (4, 3) for rows 9..13"),
    (Linear(6, 12), low_rank(4, 6, kernel=(1,)), "6 and gives 12", "(3, 6, 1) and (4, 3) for rows 0..4"),
    (Conv2d(3, 4, 3), low_rank(4, 3, kernel=(1, 1)), "3 and gives 4", "(3, 3, 1, 1) and (4, 3) for rows 0..4"),
    (
        Conv2d(3, 4, 3),
        low_rank(3, 3, kernel=(3, 3), start=1),
        "3 and gives 4",
        "(3, 3, 3, 3) and (3, 3) for rows 1..4",
    ),
    (
        Conv2d(4, 4, 3, groups=2),
        low_rank(4, 4, kernel=(3, 3)),
        "4 and gives 4",
        "(3, 4, 3, 3) and (4, 3) for rows 0..4",
    ),
]


@pytest.mark.parametrize("module, update, sizes, shapes", DOES_NOT_FIT)
def test_an_update_that_does_not_fit_is_rejected_with_both_sizes(module, update, sizes, shapes):
    with pytest.raises(SwitchError) as error:
        check_update(module, "it", update)
    assert str(error.value) == (
        f"it takes {sizes} features, but the adapter's factors are {shapes}; the adapter is for another model size"
    )


def test_a_missing_module_is_named_with_the_model():
    with pytest.raises(SwitchError) as error:
        find_module(Root(Linear(6, 5)), "it.not")
    assert str(error.value) == "the model Root has no module it.not; the adapter is for another base model"
