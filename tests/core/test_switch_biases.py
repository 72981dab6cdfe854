"""Biases of updates, several updates of one convolution, and whether a branch answers on a module."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from glance_core.low_rank import Branch, LowRank
from glance_core.switch import PhaseSwitch, PhaseWeights, has_active_branch

CPU, META = torch.device("cpu"), torch.device("meta")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def update(outside, inside, rank, start=0, seed=1, kernel=()):
    down, up = random(rank, inside, *kernel, seed=seed), random(outside, rank, seed=seed + 1)
    return LowRank(down, up, start, random(outside, seed=seed + 2))


def without_bias(*shape, **options):
    return replace(update(*shape, **options), bias=None)


def installed(module, *updates, dtype=torch.float32):
    root = nn.Module()
    root.it = module
    switch = PhaseSwitch(PhaseWeights([{"it": updates}], dtype))
    switch.install(root, CPU)
    switch.select(0)
    return root, switch


def expected(base, x, updates):
    for each in updates:
        rows = slice(each.start, each.start + len(each.up))
        base[..., rows] += x @ each.down.t() @ each.up.t()
        if each.bias is not None:
            base[..., rows] += each.bias
    return base


ROWS = [(update(4, 6, 3, 1, seed=1), update(3, 6, 0, 5, seed=11), without_bias(2, 6, 2, 6, seed=21))]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("updates", [*ROWS, (update(8, 6, 2),), (update(8, 6, 0),)])
def test_rows_get_their_products_and_biases(updates, gradient):
    module = nn.Linear(6, 8).requires_grad_(gradient)
    x = random(2, 5, 6)
    truth = expected(module(x).detach().clone(), x, updates)
    root, _ = installed(module, *updates)
    torch.testing.assert_close(root.it(x).detach(), truth)
    with torch.no_grad():
        torch.testing.assert_close(root.it(x), truth)


class Upcast(nn.Linear):
    """Its weights and input are bfloat16 and its result is float32, as in quantised layers."""

    def forward(self, x):
        return super().forward(x).float()


@pytest.mark.parametrize("gradient", [False, True])
def test_a_bias_is_added_in_the_dtype_of_the_output(gradient):
    module = Upcast(6, 8, dtype=torch.bfloat16).requires_grad_(gradient)
    x, only_bias = random(3, 6).to(torch.bfloat16), update(8, 6, 0)
    base = module(x).detach().clone()
    root, _ = installed(module, only_bias, dtype=torch.bfloat16)
    out = root.it(x).detach()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, base + only_bias.bias.to(torch.bfloat16).float())


def test_a_branch_holds_its_own_biases_in_its_dtype_and_moves_them():
    first, second = update(4, 6, 3, 1), without_bias(3, 6, 1, 5)
    third = update(2, 6, 1, 6, seed=31)
    branch = Branch([[first, second, third]], torch.bfloat16)
    held = {name: tensor for name, tensor in branch.named_parameters() if name.startswith("bias")}
    assert {name: tensor.dtype for name, tensor in held.items()} == dict.fromkeys(("bias0", "bias2"), torch.bfloat16)
    first.bias.zero_()
    assert branch.bias0.any() and not any(tensor.requires_grad for tensor in held.values())
    ((found,),) = branch.on(CPU, [[0.5]])
    assert [(start, strength) for start, _, strength in found.biases] == [(1, 0.5), (6, 0.5)]
    assert [bias.data_ptr() for _, bias, _ in found.biases] == [branch.bias0.data_ptr(), branch.bias2.data_ptr()]
    assert not any(bias.requires_grad for _, bias, _ in found.biases)
    ((elsewhere,),) = branch.on(META, [[1.0]])
    assert all(bias.is_meta for _, bias, _ in elsewhere.biases)
    same = Branch([[update(4, 6, 3)]], torch.float32)
    assert same.bias0.data_ptr() != update(4, 6, 3).bias.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_updates_of_a_convolution_add_up(dtype):
    """The truth is one convolution with the products added to its weight and the vectors to its bias."""
    module = nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular", dtype=dtype).requires_grad_(False)
    updates = [update(4, 3, 2, kernel=(3, 3)), update(4, 3, 0, seed=11, kernel=(3, 3)),
               without_bias(4, 3, 1, seed=21, kernel=(3, 3))]  # fmt: skip
    merged = nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular", dtype=dtype).requires_grad_(False)
    product = sum((each.up @ each.down.flatten(1)).view(4, 3, 3, 3) for each in updates)
    merged.weight.copy_(module.weight + product)
    merged.bias.copy_(module.bias + updates[0].bias + updates[1].bias)
    x = random(2, 3, 7, 6).to(dtype)
    root, _ = installed(module, *updates)
    out = root.it(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, merged(x), atol=1e-5, rtol=1e-5)


def test_a_branch_answers_only_while_its_phase_is_selected():
    module = nn.Linear(6, 8)
    assert not has_active_branch(module)
    root, inner = installed(module, update(8, 6, 2))
    assert has_active_branch(module)
    inner.select(None)
    assert not has_active_branch(module)
    outer = PhaseSwitch(PhaseWeights([{"it": (update(8, 6, 1),)}, {}], torch.float32))
    outer.install(root, CPU)
    assert not has_active_branch(module)
    inner.select(0)
    assert has_active_branch(module), "the inner switch answers below one that does not"
    inner.select(None)
    outer.select(0)
    assert has_active_branch(module)
    outer.select(1)
    assert not has_active_branch(module), "a phase without an update on this module"
    outer.remove()
    inner.remove()
    assert not has_active_branch(module)
