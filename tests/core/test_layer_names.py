"""Names of layers: where a flattened one had its dots, who named a layer, and the prefix that is written for it."""

import pytest

from glance_core.lora.keys import module_name, written_prefix
from glance_core.lora.module_names import is_diffusers, is_hosts, template, unflattened


@pytest.mark.parametrize("flat, module", [
    ("lora_unet_double_stream_modulation_img_lin", "double_stream_modulation_img.lin"),
    ("lora_unet_txtfusion_layerwise_blocks_1_attn_wq", "txtfusion.layerwise_blocks.1.attn.wq"),
    ("lora_unet_double_stream_blocks_12_block_adaLN_modulation_1", "double_stream_blocks.12.block.adaLN_modulation.1"),
    ("lora_transformer_single_transformer_blocks_37_attn_to_q", "single_transformer_blocks.37.attn.to_q"),
    ("lora_unet_transformer_blocks_2_img_mlp_net_0_proj", "transformer_blocks.2.img_mlp.net.0.proj"),
])  # fmt: skip
def test_flattened_names_get_the_models_own_dots(flat, module):
    assert module_name(flat) == module and unflattened(module.replace(".", "_")) == module


def test_an_unknown_flattened_name_is_left_to_the_usual_words():
    assert unflattened("no_such_layer_3") is None
    assert module_name("lora_unet_new_blocks_3_self_attn_q") == "new.blocks.3.self_attn.q"


def test_a_template_has_a_sign_for_each_number_that_stands_alone():
    assert template("blocks.10.linear_1") == "blocks.#.linear_#"
    assert template("norm1.conv2d.3x.w1_a") == "norm1.conv2d.3x.w1_a"
    assert template("7") == "#"


@pytest.mark.parametrize("module, ours, theirs", [
    ("double_blocks.0.img_attn.qkv", True, False),
    ("single_transformer_blocks.3.attn.to_q", False, True),
    ("transformer_blocks.0.attn.to_q", True, True),  # of two models
    ("no.such.layer", False, False),
])  # fmt: skip
def test_a_name_tells_whose_it_is(module, ours, theirs):
    assert (is_hosts(module), is_diffusers(module)) == (ours, theirs)


SHARED, UNKNOWN = "transformer_blocks.0.attn.to_q", "new_blocks.0.attn"


@pytest.mark.parametrize("modules, base, prefix", [
    (["double_blocks.0.img_attn.qkv"], None, "diffusion_model."),
    (["single_transformer_blocks.3.attn.to_q"], None, "transformer."),
    (["single_transformer_blocks.3.attn.to_q"], "qwen-image", "transformer."),
    (["transformer_blocks.0.attn1.to_q"], None, "diffusion_model."),  # LTX's own
    ([SHARED], None, "transformer."),
    ([SHARED], "flux", "transformer."),
    ([SHARED], "sd3", "transformer."),
    ([SHARED], "qwen-image", "diffusion_model."),
    ([SHARED], "something-new", "diffusion_model."),
    ([UNKNOWN], None, "diffusion_model."),
    ([UNKNOWN], "flux", "diffusion_model."),
    ([UNKNOWN, SHARED], "flux", "transformer."),
    ([UNKNOWN, SHARED], None, "transformer."),
])  # fmt: skip
def test_names_and_base_decide_the_prefix(modules, base, prefix):
    assert written_prefix(modules, base) == prefix
