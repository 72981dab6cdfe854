"""What the pack writes loads whole in ComfyUI's own loader, for every architecture and every spelling of its names."""

import comfy.lora
import comfyui
import pytest
import tiny_models
import torch
import write_module_names
from architectures import ARCHITECTURES
from safetensors.torch import load_file, save_file

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
