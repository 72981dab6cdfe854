"""Gradient checkpointing of blocks that write into their inputs, as FLUX's do."""

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
from glance_core.lora.slots import whole_slots
from glance_core.tiny import load_model
from glance_core.training.autograd.checkpointing import blocks_of, checkpointed
from glance_core.training.autograd.forward_patches import patched_forwards
from glance_core.training.autograd.inplace import InplaceTracker
from glance_core.training.lora_layers import LoraLayers, LoraSettings

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
    """Adds to its inputs in place, and returns a None as well.

    It takes tensors in a dataclass and in a nested tuple, and a host's options.
    """

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
            img, txt, nothing = block(
                Streams(img, txt), (Modulation(scale, gate), shift), torch.tensor(index), options, mask=None
            )
            assert nothing is None
        assert options["calls"] == len(self.blocks)
        return self.out(img) + txt


def prepared(pattern=".+", model=None):
    """Return a model in float64, its layers with factors that are not zero, and a loss of both."""
    model = (model or Model()).double().requires_grad_(False)
    layers = LoraLayers(whole_slots(model, pattern), LoraSettings(2, 2), "slow", 0)
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
    tracker = InplaceTracker()
    with patched_forwards(layers.forwards_on(model)):
        for _ in range(2):  # the second step knows what the first learned
            for parameter in layers.parameters():
                parameter.grad = None
            if blocks is None:
                tracker.run(model, loss).backward()
            else:
                with checkpointed(blocks, "the model", tracker) as check:
                    value = tracker.run(model, loss)
                    check()
                    value.backward()
    return torch.cat([parameter.grad.flatten() for parameter in layers.parameters()])


def finite_differences(model, layers, loss, step=1e-6):
    found = []
    with torch.no_grad(), patched_forwards(layers.forwards_on(model)):
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


def test_gradients_of_in_place_blocks_equal_finite_differences():
    model, layers, loss = prepared()
    truth = finite_differences(model, layers, loss)
    assert truth.abs().min() > 0
    plain = gradients(model, layers, loss, None)
    with_checkpoints = gradients(model, layers, loss, blocks_of(model))
    assert torch.allclose(plain, truth, rtol=1e-6, atol=1e-8)
    assert torch.allclose(with_checkpoints, truth, rtol=1e-6, atol=1e-8)


def test_torchs_own_checkpoint_gives_wrong_gradients_on_in_place_blocks():
    """This is why the package has a checkpoint of its own."""
    model, layers, loss = prepared()
    truth = gradients(model, layers, loss, None)
    for parameter in layers.parameters():
        parameter.grad = None
    torchs_own = {block: partial(checkpoint, block.forward, use_reentrant=False) for block in model.blocks}
    with (
        patched_forwards(layers.forwards_on(model)),
        torch.autograd.graph.allow_mutation_on_saved_tensors(),
        patched_forwards(torchs_own),
    ):
        loss().backward()
    wrong = torch.cat([parameter.grad.flatten() for parameter in layers.parameters()])
    assert (wrong - truth).norm() > 1e-2 * truth.norm()


@pytest.mark.parametrize("pattern", [r"blocks\.2\..+", r"blocks\.1\.txt", r"out", r"into"])
def test_blocks_before_and_after_the_trained_ones_can_be_checkpointed(pattern):
    model, layers, loss = prepared(pattern)
    truth = finite_differences(model, layers, loss)
    assert torch.allclose(gradients(model, layers, loss, blocks_of(model)), truth, rtol=1e-6, atol=1e-8)


def test_a_checkpointed_block_keeps_only_its_inputs():
    model, layers, loss = prepared(model=Model(12))
    sizes_kept = {}
    for name, around in (
        ("all", nullcontext()),
        ("inputs", checkpointed(blocks_of(model), "the model", InplaceTracker())),
    ):
        sizes = []
        counted = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        )
        with patched_forwards(layers.forwards_on(model)), around, counted:
            loss()
        sizes_kept[name] = sum(sizes)
    assert sizes_kept["inputs"] < sizes_kept["all"] / 2


def test_a_block_runs_as_usual_without_gradients():
    model, _, loss = prepared()
    with torch.no_grad():
        expected = loss()
        with checkpointed(blocks_of(model), "the model", InplaceTracker()) as check:
            assert torch.equal(loss(), expected)
            check()


def test_a_model_without_blocks_or_that_never_calls_them_is_rejected():
    no_blocks = checkpointed(blocks_of(nn.Sequential(Linear(2, 2))), "the plain one", InplaceTracker())
    with pytest.raises(TrainingError, match="the plain one has no blocks for gradient_checkpointing; switch it off"):
        no_blocks.__enter__()
    model, _, _ = prepared()
    with checkpointed(blocks_of(model), "the model", InplaceTracker()) as check:
        model.into(torch.zeros(1, WIDTH, dtype=torch.float64))
        with pytest.raises(TrainingError, match="the model never called its blocks as modules"):
            check()
    assert all("forward" not in vars(block) for block in model.blocks)


class UnusualModel(nn.Module):
    """A model whose one block takes or returns its tensors in an unusual container."""

    def __init__(self, takes, returns):
        super().__init__()
        torch.manual_seed(0)
        self.into = Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([UnusualBlock(takes[1], returns[0])])
        self.takes, self.returns = takes, returns

    def forward(self, x):
        return self.returns[1](self.blocks[0](self.takes[0](self.into(x))))


class UnusualBlock(nn.Module):
    def __init__(self, unpack, returns):
        super().__init__()
        self.inner = Linear(WIDTH, WIDTH)
        self.unpack, self.returns = unpack, returns

    def forward(self, given):
        return self.returns(torch.tanh(self.inner(self.unpack(given))))


def as_is(value):
    return value


@pytest.mark.parametrize("takes, returns", [
    ((lambda t: {"x": t}, lambda d: d["x"]), (as_is, as_is)),
    ((lambda t: {"deep": {"x": [t]}}, lambda d: d["deep"]["x"][0]), (as_is, as_is)),
    ((as_is, as_is), (lambda t: {"x": t}, lambda d: d["x"])),
    ((as_is, as_is), (lambda t: ((2 * t, None), t), lambda p: p[0][0] + p[1])),
    ((as_is, as_is), (lambda t: Streams(t, t), lambda s: s.img)),
    ((as_is, as_is), (lambda t: Modulation(2 * t, t), lambda m: m.scale + m[1])),
    ((as_is, as_is), (lambda t: [t, 2 * t], lambda m: m[0] + m[1])),
], ids=[
    "takes a dictionary", "takes a deep dictionary", "returns a dictionary", "returns a tuple of tuples",
    "returns a dataclass", "returns a named tuple", "returns a list",
])  # fmt: skip
def test_a_gradient_is_right_or_its_container_is_rejected(takes, returns):
    model, layers, loss = prepared(model=UnusualModel(takes, returns))
    truth = finite_differences(model, layers, loss)
    with suppress(TrainingError):  # a rejection is the other right answer
        assert torch.allclose(gradients(model, layers, loss, blocks_of(model)), truth, rtol=1e-6, atol=1e-8)


def small_flux():
    return FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
        in_channels=8,
    )


def small_qwen_image():
    return QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        in_channels=8,
        axes_dims_rope=(4, 6, 6),
    )


@pytest.mark.parametrize("make, lists", [
    (small_flux, {"transformer_blocks": 2, "single_transformer_blocks": 3}),
    (small_qwen_image, {"transformer_blocks": 2}),
    (load_model, {"double_blocks": 2, "single_blocks": 6}),
], ids=["diffusers flux", "diffusers qwen-image", "the embedded model"])  # fmt: skip
def test_the_blocks_of_real_models_are_found(make, lists):
    assert list(blocks_of(make())) == [f"{name}.{i}" for name, count in lists.items() for i in range(count)]
