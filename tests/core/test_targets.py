"""Which modules are trained, compared with diffusers' models and PEFT's matching."""

import re

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import Conv2d, LayerNorm, Linear

from glance_core.errors import TrainingError
from glance_core.lora.slots import Slot, is_linear, whole_slots
from glance_core.models import MODELS, base_model
from glance_core.tiny import load_model
from glance_core.training.lora_layers import LoraLayers, LoraSettings
from glance_core.training.targets import target_modules

# The lists that the reference code (CSU-JPG/Glance at 88bac37) gives to PEFT.
PAPER = {
    "qwen-image": [
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "img_mlp.net.2", "img_mod.1", "txt_mlp.net.2", "txt_mod.1",
    ],
    "flux": ["to_q", "to_k", "to_v", "to_out.0"],
}  # fmt: skip


def build(base):
    if base == "flux":
        return FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 6, 6),
            in_channels=8,
            guidance_embeds=True,
        )
    return QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        in_channels=8,
        axes_dims_rope=(4, 6, 6),
    )


def linear_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def found_by_peft(model, names):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names), model)
    return {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("base", PAPER)
def test_paper_targets_are_the_modules_that_peft_finds(base):
    model = build(base)
    found = target_modules(linear_names(model), "paper", base)
    assert set(found) == found_by_peft(model, PAPER[base])
    assert len(found) == {"qwen-image": 2 * 12, "flux": 2 * 4 + 2 * 3}[base]


@pytest.mark.parametrize("base", PAPER)
def test_all_linear_is_every_linear_layer(base):
    model = build(base)
    assert set(target_modules(linear_names(model), "all linear", base)) == found_by_peft(
        model, linear_names(build(base))
    )


@pytest.mark.parametrize("base", PAPER)
def test_attention_is_every_linear_layer_in_diffusers_attention_modules(base):
    model = build(base)
    inside = {
        f"{name}.{inner}"
        for name, module in model.named_modules()
        if "Attention" in type(module).__name__
        for inner, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    assert len(inside) >= 14
    assert set(target_modules(linear_names(model), "attention", base)) == inside


def test_attention_of_the_published_flux_layout_includes_its_fused_layers():
    found = target_modules(linear_names(load_model()), "attention", "glance-tiny")
    assert {name for name in found if name.startswith("double_blocks.0.")} == {
        f"double_blocks.0.{stream}_attn.{layer}" for stream in ("img", "txt") for layer in ("qkv", "proj")
    }
    assert {name for name in found if name.startswith("single_blocks.0.")} == {
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
    }
    assert all(name.startswith(("double_blocks", "single_blocks")) for name in found)
    trained = whole_slots(load_model(), MODELS["glance-tiny"].recipe.targets)  # by the embedded pair
    assert set(found) == set(trained)


@pytest.mark.parametrize(
    "pattern", [r"single_transformer_blocks\.1\.", "to_[qk]$", r"^transformer_blocks\.0\.attn\.to_q$"]
)
def test_a_pattern_matches_anywhere_in_a_name_like_re_search(pattern):
    names = linear_names(build("flux"))
    assert target_modules(names, pattern, "flux") == [name for name in names if re.search(pattern, name)] != []


ATTENTIONS = [
    "blocks.0.self_attn.q", "blocks.0.cross_attn.k_img", "blocks.0.attn.to_out.0", "blocks.0.attn1.to_q",
    "double_blocks.0.img_attn.qkv", "double_blocks.0.attn.img_attn_qkv", "single_blocks.0.linear1",
    "blocks.0.audio_to_video_attn.to_k", "layers.0.img_instruct_attn.processor.img_to_q",
    "text.0.self_attention.to_key",
    *(f"audio_injector.injector.0.{layer}" for layer in "qkvo"),
    *(f"face_adapter.fuser_blocks.0.{layer}" for layer in ("linear1_q", "linear1_kv", "linear2")),
    *(f"music.0.mix.{layer}" for layer in ("q_proj", "k_proj", "v_proj", "out_proj")),
]  # fmt: skip
OTHERS = [
    "blocks.0.adaln_modulation_self_attn.1", "blocks.0.modulation_cross_attn.1", "blocks.0.norm_attn.linear",
    "tokenizer.attention_pooler.embed_tokens", "tokenizer.attention_pooler.layers.0.mlp.up_proj",
    "blocks.0.ffn.0", "pixel.0.expand_from_attn", "blocks.0.attn_mlp.up", "vector.v", "other.q",
]  # fmt: skip


def test_attention_is_what_is_called_so_or_holds_queries_keys_and_values():
    """The names are those of ComfyUI's models; the last ones have no such name, or only look like it."""
    assert target_modules([*OTHERS, *ATTENTIONS], "attention", "anything") == ATTENTIONS


@pytest.mark.parametrize(
    "pattern", ["(", "a{99999999999}", "*", "[z-a]", "(" * 20_000, "(?P<a>x)(?P<a>y)"], ids=lambda pattern: pattern[:20]
)
def test_an_invalid_pattern_is_rejected_in_one_sentence(pattern):
    with pytest.raises(
        TrainingError, match="is neither one of paper, attention, all linear nor a regular expression"
    ) as caught:
        target_modules(linear_names(build("flux")), pattern, "flux")
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_pattern_that_finds_nothing_is_rejected_with_an_example():
    names = linear_names(build("flux"))
    with pytest.raises(
        TrainingError,
        match=rf"targets 'to_z' finds none of the model's {len(names)} Linear layers, for example {names[0]}; "
        "write another pattern",
    ):
        target_modules(names, "to_z", "flux")
    with pytest.raises(TrainingError, match="finds none of the model's 0 Linear layers; write"):
        target_modules([], "attention", "flux")


def test_paper_targets_are_rejected_for_a_base_that_the_paper_did_not_train():
    with pytest.raises(
        TrainingError,
        match="targets is paper, but the paper did not train sd3; choose attention, all linear or a pattern",
    ):
        target_modules(["blocks.0.to_q"], "paper", "sd3")


def test_recipes_are_the_papers():
    """The numbers come from CSU-JPG/Glance's training code at 88bac37."""
    qwen, flux = base_model("qwen-image").recipe, base_model("flux").recipe
    assert (qwen.rank, qwen.alpha, qwen.learning_rate, qwen.steps) == (32, 128, 3e-4, 60)
    assert (flux.rank, flux.alpha, flux.learning_rate, flux.steps) == (16, 64, 5e-4, 60)
    assert base_model("sd3").recipe.targets == "attention"


class HostLinear(nn.Module):
    """A Linear of a host's own class."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 4, 6


def test_a_hosts_own_linear_counts_as_linear_and_a_convolution_does_not():
    model = nn.ModuleDict({"a": HostLinear(), "b": Linear(4, 6), "c": Conv2d(4, 6, 1), "d": LayerNorm(4)})
    assert [name for name, module in model.items() if is_linear(module)] == ["a", "b"]
    assert whole_slots(model, ".+") == {"a": Slot("a", 4, 6), "b": Slot("b", 4, 6)}


@pytest.mark.parametrize("base", PAPER)
def test_every_target_gets_a_lora_with_its_widths(base):
    model = build(base)
    names = target_modules(linear_names(model), "paper", base)
    slots = {
        name: Slot(name, model.get_submodule(name).in_features, model.get_submodule(name).out_features)
        for name in names
    }
    layers = LoraLayers(slots, LoraSettings(2, 4.0), "slow", 0)
    assert list(layers.factors()) == names
    for name, factor in layers.factors().items():
        linear = model.get_submodule(name)
        assert factor.down.shape == (2, linear.in_features) and factor.up.shape == (linear.out_features, 2)


@pytest.mark.parametrize("pieces", [3, 25])
def test_a_fused_layer_is_trained_in_parts(pieces):
    """The reference is PEFT's layers on separate Linears that hold the same rows."""
    torch.manual_seed(0)
    fused = nn.Sequential(Linear(5, 4 * pieces)).requires_grad_(False)
    separate = nn.ModuleDict({f"to_{i}": Linear(5, 4) for i in range(pieces)}).requires_grad_(False)
    for i, layer in enumerate(separate.values()):
        layer.weight.copy_(fused[0].weight[4 * i : 4 * i + 4])
        layer.bias.copy_(fused[0].bias[4 * i : 4 * i + 4])
    layers = LoraLayers({f"to_{i}": Slot("0", 5, 4, 4 * i) for i in range(pieces)}, LoraSettings(2, 4.0), "slow", 0)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4.0, target_modules=list(separate)), separate)
    for name, layer in separate.items():
        down, up = layers.pair(name)
        torch.nn.init.normal_(up)
        layer.lora_A["default"].weight.data.copy_(down)
        layer.lora_B["default"].weight.data.copy_(up)
    x = torch.randn(7, 5)
    ((module, forward),) = layers.forwards_on(fused).items()
    assert module is fused[0]
    ours, theirs = forward(x), torch.cat([layer(x) for layer in separate.values()], 1)
    assert torch.allclose(ours, theirs, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for name, layer in separate.items():
        down, up = layers.pair(name)
        assert torch.allclose(down.grad, layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-4)
        assert torch.allclose(up.grad, layer.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, is_attention", [
    ("blocks.0.self_attn.q_proj", True), ("blocks.0.cross_attn.output_proj", True),
    ("blocks.0.adaln_modulation_self_attn.1", False), ("blocks.0.adaln_modulation_cross_attn.2", False),
    ("decoder.layers.0.self_attn.q_proj", True), ("tokenizer.attention_pooler.layers.0.mlp.up_proj", False),
    ("audio_injector.injector_adain_layers.0.linear", False),
])  # fmt: skip
def test_attention_is_what_attends_and_not_what_is_named_after_it(name, is_attention):
    """Layers of ComfyUI's models for Cosmos, ACE-Step 1.5 and Wan with sound."""
    found = target_modules([name, "blocks.0.attn.to_q"], "attention", "unknown")
    assert found == ([name] if is_attention else []) + ["blocks.0.attn.to_q"]
