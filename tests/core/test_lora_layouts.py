"""Names, dtypes and extra tensors that published LoRA files have beside the common styles."""

import peft
import pytest
import torch
from lora_files import MODULE, edited_tensors, good_tensors, save
from torch import nn

from glance_core.errors import AdapterError
from glance_core.lora.keys import is_text_encoder
from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter, with_alpha
from glance_core.lora.writer import DIFFUSERS, convert
from glance_core.low_rank import LowRank
from glance_core.switch import PhaseSwitch, PhaseWeights

BLOCK = "blocks.22.self_attn.k"
WRAPPED = [
    f"transformer.base_model.model.{BLOCK}",
    f"diffusion_model.base_model.model.{BLOCK}",
    f"base_model.model.transformer.{BLOCK}",
    f"_orig_mod.{BLOCK}",
    f"transformer._orig_mod.{BLOCK}",
    "blocks.22._orig_mod.self_attn.k",
    "lora_unet_blocks_22__orig_mod_self_attn_k",
    f"module.{BLOCK}",
    f"pipe.dit.{BLOCK}",
    f"model.{BLOCK}",
    f"model.diffusion_model.{BLOCK}",
    "lora_unet_blocks_22.self_attn.k",
    "lora_unet__blocks_22_self_attn_k",
]
REJECTED = {
    "diff": "full weight changes",
    "set_weight": "full weights",
    "w_norm": "changes of normalisation layers",
    "b_norm": "changes of normalisation layers",
    "diff_m": "changes of modulation vectors",
    "lora_E": "AdaLoRA",
}
OF_TEXT_ENCODERS = [
    "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q.alpha",
    "lycoris_te_text_model_encoder_layers_0_mlp_fc1.alpha",
    "text_encoder.text_model.encoder.layers.0.q.lora_A.weight",
    "text_encoder_2.encoder.block.0.q.lora_A.weight",
    "text_encoders.clip_l.q.lora_A.weight",
]
OF_DENOISERS = [
    "lycoris_text_fusion_refiner_blocks_0_attn_to_q.lora_down.weight",
    "lycoris_tech_in.lora_down.weight",
    "text_encoder_proj.lora_A.weight",
    "text_fusion.refiner_blocks.0.attn.to_q.lora_A.weight",
]


@pytest.mark.parametrize("source", WRAPPED)
def test_every_prefix_leads_to_the_same_module(source, tmp_path):
    tensors = {f"{source}.lora_A.weight": torch.ones(4, 8), f"{source}.lora_B.weight": torch.ones(6, 4)}
    assert list(read_adapter(save(tmp_path / "a.safetensors", tensors)).factors) == [BLOCK]


def test_only_names_of_text_encoders_are_left_out():
    assert [key for key in OF_TEXT_ENCODERS if not is_text_encoder(key)] == []
    assert [key for key in OF_DENOISERS if is_text_encoder(key)] == []


@pytest.mark.parametrize("key", ["alpha", "lora_alpha", "network_alpha", "transformer.lora_alpha", "ss_network_alpha"])
def test_one_alpha_in_the_metadata_counts_for_every_module(key, tmp_path):
    adapter = read_adapter(save(tmp_path / "a.safetensors", edited_tensors(alpha=None), {key: "1"}))
    assert adapter.factors[MODULE].scale == 0.25
    assert f"no alpha in the tensors: alpha 1 from {key} (1 modules)" in adapter.assumed


def test_alpha_of_the_trainer_counts_before_others_and_the_report_names_both(tmp_path):
    stated = {"lora_alpha": "16", "ss_network_alpha": "2"}
    adapter = read_adapter(save(tmp_path / "a.safetensors", edited_tensors(alpha=None), stated))
    assert adapter.factors[MODULE].scale == 0.5
    assert any("alpha 2 from ss_network_alpha (it also states lora_alpha 16)" in note for note in adapter.assumed)


@pytest.mark.parametrize("prefix", ["transformer.", "transformer_2.", "unet."])
def test_alpha_of_diffusers_metadata_is_found_under_every_component(prefix, tmp_path):
    stated = {"lora_adapter_metadata": f'{{"{prefix}lora_alpha": 1, "{prefix}r": 4, "text_encoder.lora_alpha": 9}}'}
    adapter = read_adapter(save(tmp_path / "a.safetensors", edited_tensors(alpha=None), stated))
    assert adapter.factors[MODULE].scale == 0.25


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_factors_keep_their_values(dtype, tmp_path):
    tensors = {key: value.to(dtype) if value.ndim else value for key, value in good_tensors().items()}
    factor = read_adapter(save(tmp_path / "a.safetensors", tensors)).factors[MODULE]
    stored = {key.rsplit(".", 2)[1]: value.float() for key, value in tensors.items() if value.ndim}
    assert torch.equal(factor.down.float(), stored["lora_A"])
    assert torch.equal(factor.up.float(), stored["lora_B"])


@pytest.mark.parametrize("ending", REJECTED)
@pytest.mark.parametrize("module", [MODULE, "blocks.0.norm1"])
def test_file_with_other_changes_is_rejected_whole(ending, module, tmp_path):
    path = save(tmp_path / "a.safetensors", good_tensors() | {f"{module}.{ending}": torch.ones(8)})
    with pytest.raises(AdapterError) as rejected:
        read_adapter(path)
    or_use = ", or use Load LoRA by Noise Level" if ending in ("diff", "w_norm", "b_norm") else ""
    assert str(rejected.value) == (
        f"a.safetensors: {module}.{ending} belongs to {REJECTED[ending]}, and a Glance pair is plain LoRA; convert it "
        f"to LoRA first{or_use}"
    )
    if not or_use:
        with pytest.raises(AdapterError, match=r"which cannot change in mid-run; use Load LoRA, or convert the file"):
            read_adapter(path, every_method=True)


def test_unknown_tensor_of_a_lora_module_is_rejected(tmp_path):
    source = f"transformer.{MODULE}"
    tensors = {f"{source}.lora_A.weight": torch.ones(4, 8), f"{source}.lora_B.weight": torch.ones(6, 4)}
    tensors[f"{source}.lora_A.weight_scale"] = torch.ones(1)
    with pytest.raises(AdapterError, match=r"lora_A\.weight_scale changes a LoRA module in an unknown way"):
        read_adapter(save(tmp_path / "a.safetensors", tensors))


def with_bias(folder, key, bias):
    return save(folder / "a.safetensors", edited_tensors(alpha=torch.tensor(8.0)) | {key: bias})


def test_a_difference_of_biases_is_not_scaled_and_survives_conversion(tmp_path):
    adapter = read_adapter(with_bias(tmp_path, f"{MODULE}.diff_b", torch.arange(6.0)))
    assert adapter.factors[MODULE].scale == 2.0 and adapter.biases[MODULE].scale == 1.0
    assert with_alpha(adapter, 16.0).biases[MODULE].scale == 1.0
    again = read_adapter(convert(adapter, tmp_path / "b.safetensors"))
    assert torch.equal(again.biases[MODULE].vector, torch.arange(6.0))
    with pytest.raises(AdapterError, match=r"^a\.safetensors: .* has a bias, which diffusers does not load; convert"):
        convert(adapter, tmp_path / "c.safetensors", layout=DIFFUSERS)


def test_a_bias_of_peft_is_scaled_as_its_factors_and_survives_conversion(tmp_path):
    adapter = read_adapter(with_bias(tmp_path, f"{MODULE}.lora_B.bias", torch.arange(6.0)))
    assert adapter.biases[MODULE].scale == 2.0 and with_alpha(adapter, 16.0).biases[MODULE].scale == 4.0
    again = read_adapter(convert(adapter, tmp_path / "b.safetensors")).biases[MODULE]
    assert torch.equal(again.vector * again.scale, 2 * torch.arange(6.0))


NO_VECTOR = f"bias of {MODULE} has shape"
ONLY_FLOATS = "only float64, float32, float16, bfloat16 and float8 are read"


@pytest.mark.parametrize("key, bias, why", [
    (f"{MODULE}.diff_b", torch.ones(2, 3), f"{NO_VECTOR} (2, 3); it must be a vector"),
    (f"{MODULE}.diff_b", torch.ones(0), f"{NO_VECTOR} (0,); it must be a vector"),
    (f"{MODULE}.diff_b", torch.tensor(1.0), f"{NO_VECTOR} (); it must be a vector"),
    (
        f"{MODULE}.diff_b", torch.full((6,), float("nan")),
        f"bias of {MODULE} holds NaN or infinity; the training diverged or the file is damaged",
    ),
    (f"{MODULE}.lora_B.bias", torch.ones(6, dtype=torch.int32), f"bias of {MODULE} is torch.int32; {ONLY_FLOATS}"),
    (
        "other.lora_B.bias", torch.ones(6),
        "module other has a bias but no factors; the file is incomplete, get it again",
    ),
])  # fmt: skip
def test_a_bias_that_cannot_act_is_rejected(key, bias, why, tmp_path):
    with pytest.raises(AdapterError) as rejected:
        read_adapter(with_bias(tmp_path, key, bias))
    assert str(rejected.value) == f"a.safetensors: {why}"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
@pytest.mark.parametrize("ending, scaled", [("diff_b", False), ("lora_B.bias", True)])
def test_a_bias_keeps_its_values_and_says_where_it_comes_from(ending, scaled, dtype, tmp_path):
    stored = torch.arange(6.0).to(dtype)
    bias = read_adapter(with_bias(tmp_path, f"{MODULE}.{ending}", stored)).biases[MODULE]
    assert torch.equal(bias.vector.float(), stored.float())
    assert (bias.scale, bias.scaled, bias.source) == (2.0 if scaled else 1.0, scaled, MODULE)


def test_two_files_that_differ_in_a_bias_only_do_switch(tmp_path):
    files = [save(tmp_path / f"{i}.safetensors", good_tensors() | {"x.diff_b": torch.ones(3) * i}) for i in (1, 2)]
    notes = check_pair(*map(read_adapter, files))
    assert not any("the same numbers" in note for note in notes)


def test_a_file_with_bias_acts_as_pefts_own_layer(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("layer", nn.Linear(8, 6))
    base, x = nn.Linear(8, 6), torch.randn(3, 8)
    base.load_state_dict(model.layer.state_dict())
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["layer"], lora_bias=True)
    trained = peft.get_peft_model(model, config)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    tensors = peft.get_peft_model_state_dict(trained)
    adapter = with_alpha(read_adapter(save(tmp_path / "a.safetensors", tensors)), 12.0)
    factor, bias = adapter.factors["layer"], adapter.biases["layer"]
    update = LowRank(factor.down, factor.up * factor.scale, bias=bias.vector * bias.scale)
    root = nn.Module()
    root.layer = base
    switch = PhaseSwitch(PhaseWeights([{"layer": (update,)}], torch.float32))
    switch.install(root, torch.device("cpu"))
    switch.select(0)
    torch.testing.assert_close(root.layer(x), trained(x))


@pytest.mark.parametrize("key, tensor", [
    ("single_blocks.0.norm.key_norm.scale", torch.ones(8)),  # as published
    ("diffusion_model.single_blocks.0.norm.key_norm.set_weight", torch.ones(8)),  # as ComfyUI renames it
    ("diffusion_model.img_in.reshape_weight", torch.tensor([8, 16])),
])  # fmt: skip
def test_a_control_lora_is_rejected_with_what_loads_it(key, tensor, tmp_path):
    path = save(tmp_path / "a.safetensors", good_tensors() | {key: tensor})
    with pytest.raises(AdapterError) as rejected:
        read_adapter(path)
    assert str(rejected.value) == (
        f"a.safetensors: this is a control LoRA ({key}), which replaces norms or widens a layer, so it cannot switch "
        "phases; load it with Load LoRA before Load Glance LoRA"
    )


def test_layers_that_peft_saves_whole_beside_the_lora_are_rejected(tmp_path):
    """PEFT's own file with modules_to_save; its LoRA alone would be another function."""
    settings = peft.LoraConfig(target_modules=["to_q"], modules_to_save=["to_k"])
    model = peft.get_peft_model(nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_k": nn.Linear(4, 4)}), settings)
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"to_k\.bias is of a whole layer that was trained beside the LoRA, and a"):
        read_adapter(tmp_path / "adapter_model.safetensors")
