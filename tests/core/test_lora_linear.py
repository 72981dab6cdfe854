"""Frozen layers in training: their gradients, what they keep for backward, and PEFT's own layers as reference."""

import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import Linear

from glance_core.lora.slots import whole_slots
from glance_core.training.autograd.forward_patches import forwards_restored, patched_forwards
from glance_core.training.autograd.lora_linear import FrozenLinear, Layer, Part, Recomputed, plain_weight
from glance_core.training.lora_layers import LoraLayers, LoraSettings

# By how many there are. Two parts leave some rows to the base alone.
PARTS = {0: (), 1: (Part(0, 10, 0.5),), 2: (Part(1, 4, 0.5), Part(6, 3, -2.0))}
RANKS = (2, 3)


class CastingLinear(nn.Linear):
    """As a host does with a stored type: it casts the weight when it uses it."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(kind=nn.Linear, dtype=torch.float64):
    made = kind(6, 10, dtype=torch.float64).requires_grad_(False)
    made.weight.copy_(random(10, 6, seed=1))
    made.bias.copy_(random(10, seed=2))
    made.weight.data = made.weight.data.to(dtype)
    return made


def factors(parts, dtype=torch.float64):
    made = [
        random(*shape, dtype=dtype, seed=10 + i)
        for part, rank in zip(parts, RANKS, strict=False)
        for i, shape in enumerate(((rank, 6), (part.length, rank)))
    ]
    return [factor.requires_grad_(True) for factor in made]


def formula(weight, bias, x, parts, made):
    """Return W x + b with each branch added to its rows, in plain torch."""
    y = x @ weight.t() + bias
    for part, down, up in zip(parts, made[::2], made[1::2], strict=True):
        branch = part.scale * (x @ down.t() @ up.t())
        y = y + nn.functional.pad(branch, (part.start, y.shape[-1] - part.start - part.length))
    return y


@pytest.mark.parametrize("weight_of", [plain_weight, None], ids=["weight", "forward only"])
@pytest.mark.parametrize("count", PARTS)
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("input_gradient", [True, False], ids=["input with gradient", "input without"])
def test_gradients_equal_finite_differences(count, shape, input_gradient, weight_of):
    if not count and not input_gradient:
        pytest.skip("nothing to differentiate")
    base, parts = linear(), PARTS[count]
    layer = Layer(base, base.forward, weight_of, parts)
    x = random(*shape).requires_grad_(input_gradient)
    assert torch.autograd.gradcheck(lambda x, *made: FrozenLinear.apply(x, layer, *made), (x, *factors(parts)))


@pytest.mark.parametrize("count", PARTS)
def test_the_output_is_the_base_plus_its_branches(count):
    base, parts, x = linear(), PARTS[count], random(2, 3, 6)
    made = factors(parts)
    out = FrozenLinear.apply(x, Layer(base, base.forward, plain_weight, parts), *made)
    assert torch.allclose(out, formula(base.weight, base.bias, x, parts, made), atol=1e-12)


@pytest.mark.parametrize("weight_of", [plain_weight, None], ids=["weight", "forward only"])
@pytest.mark.parametrize("count", PARTS)
def test_any_memory_layout_of_inputs_and_gradients_works(count, weight_of):
    base, parts, made = linear(), PARTS[count], factors(PARTS[count])
    for x in (random(6, 3, 2).permute(2, 1, 0), random(3, 1, 6).expand(3, 4, 6), random(6, 5).t()):
        x = x.detach().requires_grad_(True)
        weights = random(10, *x.shape[:-1]).movedim(0, -1)
        ours = FrozenLinear.apply(x, Layer(base, base.forward, weight_of, parts), *made)
        theirs = formula(base.weight, base.bias, x, parts, made)
        got = torch.autograd.grad((ours * weights).sum(), [x, *made])
        for one, two in zip(got, torch.autograd.grad((theirs * weights).sum(), [x, *made]), strict=True):
            assert torch.allclose(one, two, atol=1e-11)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn, torch.float16], ids=str)
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_right_for_any_stored_type(stored, computed):
    base, parts = linear(CastingLinear, stored), PARTS[2]
    x, made = random(4, 6, dtype=computed).requires_grad_(True), factors(parts, torch.float32)
    ours = FrozenLinear.apply(x, Layer(base, base.forward, plain_weight, parts), *made)
    assert ours.dtype == computed
    got = torch.autograd.grad(ours.float().square().sum(), [x, *made])
    assert [g.dtype for g in got] == [computed, *[torch.float32] * 4]
    exact = [value.detach().double().requires_grad_(True) for value in (x, *made)]
    theirs = formula(base.weight.double(), base.bias.double(), exact[0], parts, exact[1:])
    tolerance = 1e-5 if computed == torch.float32 else 4e-2
    for one, two in zip(got, torch.autograd.grad(theirs.square().sum(), exact), strict=True):
        assert (one.double() - two).norm() < tolerance * two.norm()


def test_backward_keeps_neither_a_weight_nor_a_second_output():
    base = linear(CastingLinear, torch.float8_e4m3fn)
    for count, parts in PARTS.items():
        kept = []
        x, made = random(4, 6, dtype=torch.float32).requires_grad_(True), factors(parts, torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(tuple(t.shape)) or t, lambda t: t
        ):
            FrozenLinear.apply(x, Layer(base, base.forward, plain_weight, parts), *made)
        assert (10, 6) not in kept and (4, 10) not in kept
        assert not kept if not count else (4, 6) in kept


def test_a_recomputed_layer_has_the_right_gradient_and_keeps_only_its_input():
    base, kept = linear(), []

    def forward(x):
        return torch.tanh(base(x)) * base(x)

    x = random(4, 6).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: Recomputed.apply(x, forward), (x,))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        Recomputed.apply(x, forward)
    assert kept == [(4, 6)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Linear(5, 16), Linear(16, 16)])
        self.out = Linear(16, 4)

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.out(x)


def peft_copy(model, lora, targets, seed):
    theirs = copy.deepcopy(model)
    inits = {"kaiming": True, "gaussian": "gaussian"}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        init_lora_weights=inits[lora.init],
        target_modules=targets,
    )
    torch.manual_seed(seed)
    return inject_adapter_in_model(config, theirs, "theirs")


@pytest.mark.parametrize(
    "lora", [LoraSettings(4, 8.0), LoraSettings(2, 3.0, "gaussian", rslora=True)], ids=["plain", "rslora"]
)
def test_loss_and_gradients_equal_those_of_pefts_layers(lora):
    model = Net().requires_grad_(False)
    slots = whole_slots(model, r"blocks\.\d|out")
    theirs = peft_copy(model, lora, list(slots), seed=7)
    layers = LoraLayers(slots, lora, "slow", seed=7)
    for seed, name in enumerate(slots):
        layer = theirs.get_submodule(name)
        assert torch.equal(layers.pair(name)[0], layer.lora_A["theirs"].weight)  # PEFT's own initialisation
        assert not layers.pair(name)[1].any()
        up = random(*layers.pair(name)[1].shape, dtype=torch.float32, seed=seed)
        layers.pair(name)[1].data.copy_(up)
        layer.lora_B["theirs"].weight.data.copy_(up)
    x, target = random(7, 5, dtype=torch.float32), random(7, 4, dtype=torch.float32, seed=1)
    with patched_forwards(layers.forwards_on(model)):
        ours = (model(x) - target).square().mean()
        ours.backward()
    reference = (theirs(x) - target).square().mean()
    reference.backward()
    assert ours.item() == pytest.approx(reference.item(), rel=1e-6)  # 22: the next float32 is 2e-6 away
    for name in slots:
        layer = theirs.get_submodule(name)
        for mine, other in zip(
            layers.pair(name), (layer.lora_A["theirs"].weight, layer.lora_B["theirs"].weight), strict=True
        ):
            assert (mine.grad - other.grad).norm() < 1e-6 * other.grad.norm()


def test_factors_have_their_own_seed_and_leave_the_global_one_alone():
    slots = whole_slots(Net(), "out")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (LoraLayers(slots, LoraSettings(4, 4), "slow", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.pair("out")[0], two.pair("out")[0])
    assert not torch.equal(one.pair("out")[0], other.pair("out")[0])


def test_forwards_left_by_a_broken_clean_up_are_restored():
    model = torch.nn.Sequential(Linear(2, 2), Linear(2, 2))
    own = model[1].forward = partial(torch.mul, other=2.0)
    with forwards_restored(model):
        model[0].forward = model[1].forward = partial(torch.mul, other=3.0)
    assert "forward" not in vars(model[0]) and model[1].forward is own


def test_patched_forwards_are_undone_last_first_also_after_an_error():
    model = Net()
    plain, own = model.out, model.blocks[0]
    own.forward = hooked = lambda x: x  # a host's own patch

    def patch_and_fail():
        with patched_forwards({plain: lambda x: x + 1, own: lambda x: x + 2}):
            assert float(model.out(torch.zeros(1))) == 1 and float(own(torch.zeros(1))) == 2
            with patched_forwards({plain: lambda x: x + 3}):
                assert float(model.out(torch.zeros(1))) == 3
            assert float(model.out(torch.zeros(1))) == 1
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        patch_and_fail()
    assert "forward" not in vars(plain)
    assert own.forward is hooked


def test_training_layers_appear_neither_in_the_models_tree_nor_in_its_state():
    model = Net().requires_grad_(False)
    names, keys = [name for name, _ in model.named_modules()], list(model.state_dict())
    layers = LoraLayers(whole_slots(model, ".+"), LoraSettings(4, 4), "slow", 0)
    with patched_forwards(layers.forwards_on(model)):
        assert [name for name, _ in model.named_modules()] == names
        assert list(model.state_dict()) == keys
        assert all(type(module) is nn.Linear for module in (model.out, *model.blocks))
    assert not hasattr(model, "peft_config")
