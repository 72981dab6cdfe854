"""Which modules are trained, told by diffusers' own models and PEFT's own matching."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import Conv2d, LayerNorm, Linear

from glance_core import targets
from glance_core.errors import TrainingError
from glance_core.lora_layers import Lora, LoraLayers, Slot, is_linear, whole_slots
from glance_core.targets import TINY
from glance_core.tiny import load_model

# The reference code's lists (CSU-JPG/Glance at 88bac37), as it hands them to PEFT.
PAPER = {
    "qwen-image": ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
                   "img_mlp.net.2", "img_mod.1", "txt_mlp.net.2", "txt_mod.1"],
    "flux": ["to_q", "to_k", "to_v", "to_out.0"],
}  # fmt: skip


def build(architecture):
    if architecture == "flux":
        return FluxTransformer2DModel(
            num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=1, joint_attention_dim=8, pooled_projection_dim=8,
            axes_dims_rope=(4, 6, 6), in_channels=8, guidance_embeds=True,
        )  # fmt: skip
    return QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=1, joint_attention_dim=8, in_channels=8, axes_dims_rope=(4, 6, 6)
    )


def linear_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def by_peft(model, target_modules):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=target_modules), model)
    return {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("architecture", PAPER)
def test_the_papers_targets_are_the_modules_that_peft_finds_for_its_list(architecture):
    model = build(architecture)
    found = targets.chosen(linear_names(model), "paper", architecture)
    assert set(found) == by_peft(model, PAPER[architecture])
    assert len(found) == {"qwen-image": 2 * 12, "flux": 2 * 4 + 2 * 3}[architecture]


@pytest.mark.parametrize("architecture", PAPER)
def test_all_linear_is_every_linear_layer(architecture):
    model = build(architecture)
    assert set(targets.chosen(linear_names(model), "all linear", architecture)) == by_peft(model, linear_names(build(architecture)))


@pytest.mark.parametrize("architecture", PAPER)
def test_attention_is_every_linear_layer_inside_diffusers_attention_modules(architecture):
    model = build(architecture)
    inside = {f"{name}.{inner}" for name, module in model.named_modules() if "Attention" in type(module).__name__
              for inner, layer in module.named_modules() if isinstance(layer, nn.Linear)}  # fmt: skip
    assert len(inside) >= 14
    assert set(targets.chosen(linear_names(model), "attention", architecture)) == inside


def test_attention_of_the_published_flux_layout_takes_its_fused_layers_too():
    found = targets.chosen(linear_names(load_model()), "attention", "glance-tiny")
    assert {name for name in found if name.startswith("double_blocks.0.")} == {
        f"double_blocks.0.{stream}_attn.{layer}" for stream in ("img", "txt") for layer in ("qkv", "proj")}  # fmt: skip
    assert {name for name in found if name.startswith("single_blocks.0.")} == {"single_blocks.0.linear1", "single_blocks.0.linear2"}
    assert all(name.startswith(("double_blocks", "single_blocks")) for name in found)
    assert set(found) == set(whole_slots(load_model(), TINY))  # what the embedded pair trains


@pytest.mark.parametrize("pattern", [r"single_transformer_blocks\.1\.", "to_[qk]$", r"^transformer_blocks\.0\.attn\.to_q$"])
def test_a_pattern_finds_itself_anywhere_in_a_name_as_in_the_re_module(pattern):
    import re

    names = linear_names(build("flux"))
    assert targets.chosen(names, pattern, "flux") == [name for name in names if re.search(pattern, name)] != []


@pytest.mark.parametrize(
    "pattern", ["(", "a{99999999999}", "*", "[z-a]", "(" * 20_000, "(?P<a>x)(?P<a>y)"], ids=lambda pattern: pattern[:20]
)
def test_a_pattern_that_is_none_is_refused_in_one_sentence(pattern):
    with pytest.raises(TrainingError, match="is neither one of paper, attention, all linear nor a regular expression") as told:
        targets.chosen(linear_names(build("flux")), pattern, "flux")
    assert len(str(told.value)) < 300 and "\n" not in str(told.value)


def test_a_pattern_that_finds_nothing_is_refused_with_an_example():
    names = linear_names(build("flux"))
    with pytest.raises(
        TrainingError, match=rf"targets 'to_z' finds none of the model's {len(names)} Linear layers, for example {names[0]}; choose another"
    ):
        targets.chosen(names, "to_z", "flux")
    with pytest.raises(TrainingError, match="finds none of the model's 0 Linear layers; choose"):
        targets.chosen([], "attention", "flux")


def test_the_papers_list_is_refused_where_the_paper_has_none():
    with pytest.raises(TrainingError, match="targets is paper, but the paper trained no sd3; choose attention, all linear or a pattern"):
        targets.chosen(["blocks.0.to_q"], "paper", "sd3")


def test_the_papers_recipes():
    """Facts of CSU-JPG/Glance's training code at 88bac37."""
    qwen, flux = targets.recipe("qwen-image"), targets.recipe("flux")
    assert (qwen.rank, qwen.alpha, qwen.learning_rate, qwen.steps) == (32, 128, 3e-4, 60)
    assert (flux.rank, flux.alpha, flux.learning_rate, flux.steps) == (16, 64, 5e-4, 60)
    assert targets.recipe("sd3").targets == "attention"


# Layers


class HostLinear(nn.Module):
    """A Linear of a host's own class."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 4, 6


def test_a_hosts_own_linear_is_one_and_a_convolution_is_none():
    model = nn.ModuleDict({"a": HostLinear(), "b": Linear(4, 6), "c": Conv2d(4, 6, 1), "d": LayerNorm(4)})
    assert [name for name, module in model.items() if is_linear(module)] == ["a", "b"]
    assert whole_slots(model, ".+") == {"a": Slot("a", 4, 6), "b": Slot("b", 4, 6)}


@pytest.mark.parametrize("architecture", PAPER)
def test_a_lora_is_made_for_every_chosen_name_with_its_widths(architecture):
    model = build(architecture)
    names = targets.chosen(linear_names(model), "paper", architecture)
    slots = {name: Slot(name, model.get_submodule(name).in_features, model.get_submodule(name).out_features) for name in names}
    layers = LoraLayers(slots, Lora(2, 4.0), "slow", 0)
    assert list(layers.factors()) == names
    for name, factor in layers.factors().items():
        linear = model.get_submodule(name)
        assert factor.down.shape == (2, linear.in_features) and factor.up.shape == (linear.out_features, 2)


@pytest.mark.parametrize("pieces", [3, 25])
def test_a_fused_layer_is_trained_in_its_slices(pieces):
    """Beside PEFT's own layers on separate Linears that hold the same rows."""
    torch.manual_seed(0)
    fused = nn.Sequential(Linear(5, 4 * pieces)).requires_grad_(False)
    apart = nn.ModuleDict({f"to_{i}": Linear(5, 4) for i in range(pieces)}).requires_grad_(False)
    for i, layer in enumerate(apart.values()):
        layer.weight.copy_(fused[0].weight[4 * i : 4 * i + 4])
        layer.bias.copy_(fused[0].bias[4 * i : 4 * i + 4])
    layers = LoraLayers({f"to_{i}": Slot("0", 5, 4, 4 * i) for i in range(pieces)}, Lora(2, 4.0), "slow", 0)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4.0, target_modules=list(apart)), apart)
    for name, layer in apart.items():
        down, up = layers.pair(name)
        torch.nn.init.normal_(up)
        layer.lora_A["default"].weight.data.copy_(down)
        layer.lora_B["default"].weight.data.copy_(up)
    x = torch.randn(7, 5)
    ((module, forward),) = layers.forwards_on(fused).items()
    assert module is fused[0]
    ours, theirs = forward(x), torch.cat([layer(x) for layer in apart.values()], 1)
    assert torch.allclose(ours, theirs, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for name, layer in apart.items():
        down, up = layers.pair(name)
        assert torch.allclose(down.grad, layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-4)
        assert torch.allclose(up.grad, layer.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-4)
