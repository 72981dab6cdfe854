"""Adapter files as peft and diffusers write them, and in every other common style."""

import json

import peft
import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from lora_files import MODULE, STYLES, edited_tensors, factors, good_tensors, save, style_names
from peft import LoraConfig, get_peft_model_state_dict

from glance_core.errors import AdapterError
from glance_core.lora.keys import unflatten
from glance_core.lora.reader import read_adapter, with_alpha
from glance_core.models import possible_bases


@pytest.mark.parametrize("alpha", [None, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_read_to_the_same_module_with_its_scale(style, dtype, alpha, tmp_path):
    down, up = factors(dtype=dtype)
    names = style_names(style)
    tensors = dict(zip(names, (down, up, torch.tensor(alpha or 0)), strict=True))
    if alpha is None:
        tensors.pop(names[2])
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors))
    factor = adapter.factors[MODULE]
    assert torch.equal(factor.down, down)
    assert torch.equal(factor.up, up)
    assert (factor.alpha, factor.scale, factor.rank) == (alpha, 2.0 if alpha else 1.0, 4)
    assert any("scale 1 assumed" in note for note in adapter.assumed) == (alpha is None)
    assert adapter.skipped == ()


def tiny_qwen():
    return QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 12, 12)
    )


def tiny_flux():
    return FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(8, 12, 12),
        in_channels=16,
    )


QWEN_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "img_mlp.net.2",
    "img_mod.1",
]


def trained_by_peft(model, targets, **config):
    """Give the model a PEFT adapter whose B is not zero."""
    model.add_adapter(LoraConfig(r=4, target_modules=targets, **config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_file_from_diffusers_is_read_whole_with_the_alpha_of_its_metadata(tmp_path):
    model = trained_by_peft(tiny_flux(), ["to_q", "to_k", "to_v", "to_out.0"], lora_alpha=16)
    layers = get_peft_model_state_dict(model)
    config = model.peft_config["default"].to_dict()
    FluxLoraLoaderMixin.save_lora_weights(
        tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config
    )
    adapter = read_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert len(adapter.factors) == len(layers) // 2 == 7
    assert {f.scale for f in adapter.factors.values()} == {4.0}
    assert "flux" in adapter.bases
    assert adapter.skipped == ()
    FluxLoraLoaderMixin.save_lora_weights(tmp_path / "plain", transformer_lora_layers=layers)
    plain = read_adapter(tmp_path / "plain" / "pytorch_lora_weights.safetensors")
    assert {f.scale for f in plain.factors.values()} == {1.0}


@pytest.mark.parametrize("rslora, scale", [(False, 4.0), (True, 8.0)])
def test_file_from_peft_takes_alpha_from_the_configuration_beside_it(rslora, scale, tmp_path):
    config = LoraConfig(r=4, lora_alpha=16, use_rslora=rslora, target_modules=QWEN_TARGETS)
    peft.get_peft_model(tiny_qwen(), config).save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path / "adapter_model.safetensors")
    assert len(adapter.factors) == 2 * len(QWEN_TARGETS)
    assert {f.scale for f in adapter.factors.values()} == {scale}
    assert adapter.bases == {"qwen-image"}


ALPHAS = {
    r"^transformer_blocks\.0\.attn\.to_q": 2, "1.attn.to_q": 8, "img_mlp.net.2": 32, "add_q_proj$": 3, "add_k_proj": 3,
    "to_k": 5, "q_proj": 7,
}  # fmt: skip


def test_alphas_by_name_are_those_that_peft_gives_its_own_layers(tmp_path):
    """q_proj ends add_q_proj without a dot before it, so it names no layer."""
    config = LoraConfig(r=4, lora_alpha=16, alpha_pattern=ALPHAS, target_modules=QWEN_TARGETS)
    model = peft.get_peft_model(tiny_qwen(), config)
    model.save_pretrained(tmp_path)
    layers = model.base_model.model.named_modules()
    expected = {name: layer.scaling["default"] for name, layer in layers if hasattr(layer, "scaling")}
    assert len(set(expected.values())) == 6
    adapter = read_adapter(tmp_path / "adapter_model.safetensors")
    assert {name: factor.scale for name, factor in adapter.factors.items()} == expected


PATTERNS = ["(", "(a+)+$", "(?=.*x)", ".*.*.*.*.*.*x", "x" * 10_000, r"^transformer_blocks\.0\..*", "add_(q|k)_proj"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_regular_expression_is_rejected_because_it_decides_an_alpha(pattern, tmp_path):
    config = json.dumps({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {pattern: 2}})
    tensors = edited_tensors(alpha=None)
    with pytest.raises(AdapterError, match="alpha_pattern cannot be read") as rejected:
        read_adapter(save(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": config}))
    assert len(str(rejected.value)) < 300 and "\n" not in str(rejected.value)


def mixed_like_the_published_qwen_files(model):
    """Return the image stream as lora.down and lora.up and the rest as lora_A and lora_B, without alpha.

    The published files CSU-JPG/Glance are like that.
    """
    image = ("to_q", "to_k", "to_v", "to_out.0")
    tensors = {}
    for key, value in get_peft_model_state_dict(model).items():
        module, _, factor = key.rpartition(".lora_")
        if module.endswith(image):
            key = f"{module}.lora.{'down' if factor.startswith('A') else 'up'}.weight"
        tensors[f"transformer.{key}"] = value.contiguous()
    return tensors


def test_both_styles_of_the_published_qwen_files_are_read(tmp_path):
    tensors = mixed_like_the_published_qwen_files(trained_by_peft(tiny_qwen(), QWEN_TARGETS))
    adapter = read_adapter(save(tmp_path / "glance_qwen_slow.safetensors", tensors))
    assert adapter.styles == ("lora.down/lora.up", "lora_A/lora_B")
    assert len(adapter.factors) == len(tensors) // 2 == 2 * len(QWEN_TARGETS)
    assert adapter.describe()["scale"] == [1.0]


@pytest.mark.parametrize(
    "flat, module",
    [
        ("double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv"),
        ("single_blocks_37_linear1", "single_blocks.37.linear1"),
        ("transformer_blocks_59_attn_add_q_proj", "transformer_blocks.59.attn.add_q_proj"),
        ("transformer_blocks_0_attn_to_out_0", "transformer_blocks.0.attn.to_out.0"),
        ("transformer_blocks_0_img_mlp_net_0_proj", "transformer_blocks.0.img_mlp.net.0.proj"),
        ("blocks_3_cross_attn_k_img", "blocks.3.cross_attn.k_img"),
        ("input_blocks_1_1_transformer_blocks_0_attn2_to_k", "input_blocks.1.1.transformer_blocks.0.attn2.to_k"),
        ("down_blocks_0_attentions_1_proj_in", "down_blocks.0.attentions.1.proj_in"),
    ],
)
def test_flattened_names_get_their_dots_back(flat, module):
    assert unflatten(flat) == module


def test_base_models_are_recognised_by_their_module_names():
    assert possible_bases(["transformer_blocks.0.img_mod.1"]) == {"qwen-image"}
    assert "flux" in possible_bases(["single_transformer_blocks.0.attn.to_q"])
    assert "qwen-image" not in possible_bases(["double_blocks.0.img_attn.qkv"])
    assert possible_bases(["blocks.0.self_attn.q"]) == {"wan"}
    assert possible_bases(["something.else"]) == frozenset()


def test_alpha_of_any_number_type_is_read(tmp_path):
    for alpha in (torch.tensor(8), torch.tensor([8.0], dtype=torch.float64), torch.tensor(8, dtype=torch.int8)):
        path = save(tmp_path / "a.safetensors", edited_tensors(alpha=alpha))
        assert read_adapter(path).factors[MODULE].scale == 2.0


def test_text_encoder_and_unknown_tensors_are_left_out_and_reported(tmp_path):
    extra = {"lora_te_text_model.lora_down.weight": torch.ones(2, 2), "x.trigger": torch.ones(2)}
    adapter = read_adapter(save(tmp_path / "a.safetensors", good_tensors() | extra))
    assert list(adapter.factors) == [MODULE]
    assert adapter.skipped == ("x.trigger",)
    assert any("1 text-encoder" in note for note in adapter.assumed)
    assert any("x.trigger" in note for note in adapter.assumed)


def test_old_kohya_file_takes_alpha_from_ss_network_alpha(tmp_path):
    tensors = edited_tensors(alpha=None)
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors, {"ss_network_alpha": "2.0"}))
    assert adapter.factors[MODULE].scale == 0.5
    assert any("ss_network_alpha" in note for note in adapter.assumed)


def test_with_alpha_sets_the_scale(tmp_path):
    adapter = with_alpha(read_adapter(save(tmp_path / "a.safetensors", edited_tensors(alpha=None))), 16.0)
    assert adapter.factors[MODULE].scale == 4.0
    assert not any("assumed" in note and "alpha" in note for note in adapter.assumed)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AdapterError, match=str(bad)):
            with_alpha(adapter, bad)


def test_description_is_plain_json(tmp_path):
    adapter = read_adapter(save(tmp_path / "a.safetensors", good_tensors()))
    described = json.loads(json.dumps(adapter.describe()))
    assert described["modules"] == 1
    assert described["rank"] == [4]
    assert described["scale"] == [2.0]
    assert described["parameters"] == 44
