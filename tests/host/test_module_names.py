"""What the pack writes loads whole in ComfyUI's own loader, for every architecture and every spelling of its names."""

import comfy.lora
import comfyui
import pytest
import tiny_models
import torch
import write_module_names
from architectures import ARCHITECTURES
from safetensors.torch import load_file, save_file

from glance_core.lora.keys import module_name
from glance_core.lora.module_names import unflattened

EVERY = [*tiny_models.MODELS, *ARCHITECTURES]
write_adapter, convert = (
    getattr(comfyui.pack_module("glance_core.lora.writer"), n) for n in ("write_adapter", "convert")
)
reader, factors, metadata = (
    comfyui.pack_module(f"glance_core.lora.{name}") for name in ("reader", "factors", "metadata")
)


def linear_layers(model):
    """The names of every linear layer of the diffusion model."""
    return [name for name, layer in model.model.diffusion_model.named_modules() if isinstance(layer, torch.nn.Linear)]


def lost(model, path):
    """The keys of a file that ComfyUI's own loader does not apply, and how many it applies."""
    tensors, keys = load_file(path), comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(dict(tensors), keys, log_missing=False)
    known = {spelling for spelling, target in keys.items() if target in patches}
    return [key for key in tensors if not any(key.startswith(f"{name}.") for name in known)], len(patches)


def low_rank(layer):
    return {"down": torch.ones(1, layer.in_features), "up": torch.ones(layer.out_features, 1)}


@pytest.fixture(scope="module", params=EVERY)
def model(request, node_classes):
    with torch.no_grad():
        return tiny_models.build(request.param)


def test_a_written_adapter_loads_whole(model, tmp_path):
    base = comfyui.pack_module("nodes.host.base_model").base_of(model).name
    layers = linear_layers(model)
    made = {}
    for name in layers:
        pair = low_rank(model.model.diffusion_model.get_submodule(name))
        made[name] = factors.Factor(pair["down"], pair["up"], 1.0, 1.0, name)
    path = write_adapter(tmp_path / "pair.safetensors", made, metadata.PairMetadata(base=base))
    assert lost(model, path) == ([], len(layers))


@pytest.mark.parametrize("prefix, flat", [("diffusion_model.", False), ("lora_unet_", True)])
def test_a_converted_file_loads_whole_and_states_no_base(model, tmp_path, prefix, flat):
    tensors = {}
    for name in linear_layers(model):
        pair = low_rank(model.model.diffusion_model.get_submodule(name))
        written = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {f"{written}.lora_down.weight": pair["down"], f"{written}.lora_up.weight": pair["up"]}
        tensors[f"{written}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "source.safetensors")
    source = reader.read_adapter(tmp_path / "source.safetensors")
    path = convert(source, tmp_path / "converted.safetensors", "slow")
    assert lost(model, path) == ([], len(linear_layers(model)))
    assert reader.read_adapter(path).pair.base is None


def test_the_list_of_names_is_up_to_date(node_classes):
    with torch.no_grad():
        expected = write_module_names.text()
    assert (comfyui.PACK / "glance_core/lora/module_names.txt").read_text(encoding="utf-8") == expected


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
