"""Gradient checkpointing of blocks that change their inputs in place, as FLUX's do."""

from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from torch import nn
from torch.nn import Linear
from torch.utils.checkpoint import checkpoint

from glance_core.errors import TrainingError
from glance_core.frozen import forwards
from glance_core.lora_layers import Lora, LoraLayers, whole_slots
from glance_core.recompute import blocks_of, recomputed
from glance_core.saved import Saves
from glance_core.tiny import load_model

WIDTH = 6


class Modulation(NamedTuple):
    scale: torch.Tensor
    gate: torch.Tensor


@dataclass
class Streams:
    img: torch.Tensor
    txt: torch.Tensor
    where: str = "double"


class Block(nn.Module):
    """Adds to its inputs in place, takes tensors in a dataclass and a nested tuple, a host's options, and gives back a None as well."""

    def __init__(self):
        super().__init__()
        self.img, self.txt = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, streams, vec, index, options=None, *, mask=None):
        (modulation, shift), img, txt = vec, streams.img, streams.txt
        options["calls"] = options.get("calls", 0) + 1
        img += modulation.gate * torch.tanh(self.img(img * modulation.scale + shift))
        img *= options["strength"]
        txt += torch.tanh(self.txt(txt)) * img.mean(1, keepdim=True)
        return img, txt, None


class Model(nn.Module):
    def __init__(self, blocks=3):
        super().__init__()
        torch.manual_seed(0)
        self.into = Linear(WIDTH, WIDTH)
        self.mods = Linear(WIDTH, 3 * WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.out = Linear(WIDTH, WIDTH)

    def forward(self, x):
        options = {"strength": 0.9}
        img, txt = self.into(x), x + 1
        scale, gate, shift = self.mods(x).chunk(3, -1)
        for index, block in enumerate(self.blocks):
            img, txt, nothing = block(Streams(img, txt), (Modulation(scale, gate), shift), torch.tensor(index), options, mask=None)
            assert nothing is None
        assert options["calls"] == len(self.blocks)
        return self.out(img) + txt


def prepared(pattern=".+", model=None):
    """A model in float64 with factors that are nowhere zero, and a loss of it."""
    model = (model or Model()).double().requires_grad_(False)
    layers = LoraLayers(whole_slots(model, pattern), Lora(2, 2), "slow", 0)
    generator = torch.Generator().manual_seed(1)
    for layer in layers.layers.values():
        for factor in (layer.lora_A, layer.lora_B):
            factor.double()
    for parameter in layers.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(4, WIDTH, generator=generator, dtype=torch.float64)

    def loss():
        return model(x.clone()).square().mean()

    return model, layers, loss


def gradients(model, layers, loss, blocks):
    saves = Saves()
    with forwards(layers.forwards_on(model)):
        for _ in range(2):  # the second step knows what the first has learned
            for parameter in layers.parameters():
                parameter.grad = None
            if blocks is None:
                saves.run(model, loss).backward()
            else:
                with recomputed(blocks, "the model", saves) as check:
                    value = saves.run(model, loss)
                    check()
                    value.backward()
    return torch.cat([parameter.grad.flatten() for parameter in layers.parameters()])


def finite_differences(model, layers, loss, step=1e-6):
    found = []
    with torch.no_grad(), forwards(layers.forwards_on(model)):
        for parameter in layers.parameters():
            for at in range(parameter.numel()):
                flat = parameter.view(-1)
                before = flat[at].item()
                flat[at] = before + step
                above = float(loss())
                flat[at] = before - step
                found.append((above - float(loss())) / (2 * step))
                flat[at] = before
    return torch.tensor(found, dtype=torch.float64)


def test_in_place_blocks_get_the_gradients_of_finite_differences_with_and_without_recomputing():
    model, layers, loss = prepared()
    truth = finite_differences(model, layers, loss)
    assert truth.abs().min() > 0
    kept = gradients(model, layers, loss, None)
    again = gradients(model, layers, loss, blocks_of(model))
    assert torch.allclose(kept, truth, rtol=1e-6, atol=1e-8)
    assert torch.allclose(again, truth, rtol=1e-6, atol=1e-8)


def test_torchs_own_checkpoint_is_wrong_on_such_blocks_which_is_why_there_is_another():
    model, layers, loss = prepared()
    truth = gradients(model, layers, loss, None)
    for parameter in layers.parameters():
        parameter.grad = None
    plainly = {block: partial(checkpoint, block.forward, use_reentrant=False) for block in model.blocks}
    with forwards(layers.forwards_on(model)), torch.autograd.graph.allow_mutation_on_saved_tensors(), forwards(plainly):
        loss().backward()
    wrong = torch.cat([parameter.grad.flatten() for parameter in layers.parameters()])
    assert (wrong - truth).norm() > 1e-2 * truth.norm()


@pytest.mark.parametrize("pattern", [r"blocks\.2\..+", r"blocks\.1\.txt", r"out", r"into"])
def test_blocks_before_and_behind_the_trained_ones_may_be_recomputed_too(pattern):
    model, layers, loss = prepared(pattern)
    truth = finite_differences(model, layers, loss)
    assert torch.allclose(gradients(model, layers, loss, blocks_of(model)), truth, rtol=1e-6, atol=1e-8)


def test_a_block_keeps_its_inputs_alone():
    model, layers, loss = prepared(model=Model(12))
    kept = {}
    for name, around in (("all", nullcontext()), ("inputs", recomputed(blocks_of(model), "the model", Saves()))):
        sizes = []
        counted = torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t)
        with forwards(layers.forwards_on(model)), around, counted:
            loss()
        kept[name] = sum(sizes)
    assert kept["inputs"] < kept["all"] / 2


def test_without_gradients_a_block_just_runs():
    model, _, loss = prepared()
    with torch.no_grad():
        expected = loss()
        with recomputed(blocks_of(model), "the model", Saves()) as check:
            assert torch.equal(loss(), expected)
            check()


def test_a_model_that_has_no_blocks_or_does_not_call_them_is_told():
    none = recomputed(blocks_of(nn.Sequential(Linear(2, 2))), "the plain one", Saves())
    with pytest.raises(TrainingError, match="the plain one has no blocks that gradient_checkpointing could take; switch it off"):
        none.__enter__()
    model, _, _ = prepared()
    with recomputed(blocks_of(model), "the model", Saves()) as check:
        model.into(torch.zeros(1, WIDTH, dtype=torch.float64))
        with pytest.raises(TrainingError, match="the model never called its blocks as modules"):
            check()
    assert all("forward" not in vars(block) for block in model.blocks)


class Odd(nn.Module):
    """A model whose one block takes or gives back its tensors in a way of its own."""

    def __init__(self, takes, gives):
        super().__init__()
        torch.manual_seed(0)
        self.into = Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([OddBlock(takes[1], gives[0])])
        self.takes, self.gives = takes, gives

    def forward(self, x):
        return self.gives[1](self.blocks[0](self.takes[0](self.into(x))))


class OddBlock(nn.Module):
    def __init__(self, unpack, gives):
        super().__init__()
        self.inner = Linear(WIDTH, WIDTH)
        self.unpack, self.gives = unpack, gives

    def forward(self, given):
        return self.gives(torch.tanh(self.inner(self.unpack(given))))


def plain(value):
    return value


@pytest.mark.parametrize("takes, gives", [
    ((lambda t: {"x": t}, lambda d: d["x"]), (plain, plain)),
    ((lambda t: {"deep": {"x": [t]}}, lambda d: d["deep"]["x"][0]), (plain, plain)),
    ((plain, plain), (lambda t: {"x": t}, lambda d: d["x"])),
    ((plain, plain), (lambda t: ((2 * t, None), t), lambda p: p[0][0] + p[1])),
    ((plain, plain), (lambda t: Streams(t, t), lambda s: s.img)),
    ((plain, plain), (lambda t: Modulation(2 * t, t), lambda m: m.scale + m[1])),
    ((plain, plain), (lambda t: [t, 2 * t], lambda m: m[0] + m[1])),
], ids=["in a dictionary", "deep in a dictionary", "out in a dictionary", "out in a tuple of tuples", "out in a dataclass", "out in a named tuple", "out in a list"])  # fmt: skip
def test_a_gradient_is_never_lost_without_a_word(takes, gives):
    model, layers, loss = prepared(model=Odd(takes, gives))
    truth = finite_differences(model, layers, loss)
    with suppress(TrainingError):  # a plain refusal is the other right answer
        assert torch.allclose(gradients(model, layers, loss, blocks_of(model)), truth, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make, lists", [
    (lambda: FluxTransformer2DModel(
        num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=1, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6), in_channels=8), {"transformer_blocks": 2, "single_transformer_blocks": 3}),
    (lambda: QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=1, joint_attention_dim=8, in_channels=8, axes_dims_rope=(4, 6, 6)),
     {"transformer_blocks": 2}),
    (load_model, {"double_blocks": 2, "single_blocks": 6}),
], ids=["diffusers flux", "diffusers qwen-image", "the embedded model"])  # fmt: skip
def test_the_blocks_of_real_models_are_found(make, lists):
    assert list(blocks_of(make())) == [f"{name}.{i}" for name, count in lists.items() for i in range(count)]
