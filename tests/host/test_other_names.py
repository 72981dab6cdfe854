"""LoRAs under diffusers' names, and those of a model's publisher, change the layers that they changed there.

The truth is diffusers' own converter of single files: ComfyUI's weights with our update, converted, must be the
converted weights with the file's update.
"""

import re
from unittest import mock

import comfy.lora
import comfy.sample
import comfyui
import diffusers.loaders.peft as peft_loader
import diffusers_models
import pack
import pytest
import tiny_models
import torch
import write_other_names
from diffusers import WanPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from write_other_names import SOURCES, renamed

lora_match, base_model = (comfyui.pack_module(f"nodes.host.{name}") for name in ("lora_match", "base_model"))
reader, writer, factors, metadata, other_names = (
    comfyui.pack_module(f"glance_core.lora.{name}")
    for name in ("reader", "writer", "factors", "metadata", "other_names")
)
CASES = {name: source for source in SOURCES for name in source.models}


def is_linear(layer):
    return isinstance(layer, torch.nn.Linear)


def random(shape, generator):
    return torch.randn(shape, generator=generator) / shape[1] ** 0.5


def converted(source, model, weights):
    """The weights of a diffusion model as diffusers has them."""
    return source.converter()(renamed({key: value.clone() for key, value in weights.items()}, model.model))


def diffusers_lora(weights, seed=0):
    """A file as diffusers writes it, for every Linear of its weights, and the update of each."""
    generator, tensors, updates = torch.Generator().manual_seed(seed), {}, {}
    for key, value in weights.items():
        if key.endswith(".weight") and value.ndim == 2:
            down, up = random((2, value.shape[1]), generator), random((value.shape[0], 2), generator)
            layer = f"transformer.{key.removesuffix('.weight')}"
            tensors |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
            updates[key] = up @ down
    return tensors, updates


def our_updates(path, model):
    """(update of each weight of the diffusion model, modules that were not found)."""
    matched = lora_match.match(reader.read_adapter(path), model, lora_match.key_map(model))
    updates = {}
    for layer, parts in matched.updates.items():
        weight = model.model.get_submodule(layer).weight
        whole = torch.zeros_like(weight)
        for part in parts:
            whole[part.start : part.start + len(part.up)] += (part.up.flatten(1) @ part.down.flatten(1)).reshape(
                len(part.up), *weight.shape[1:]
            )
        updates[f"{layer.removeprefix('diffusion_model.')}.weight"] = whole
    return updates, matched.unmatched


def added(weights, updates):
    return {key: value + updates[key] if key in updates else value for key, value in weights.items()}


def differing(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [key for key, value in theirs.items() if not torch.allclose(ours[key], value, atol=1e-5)]


@pytest.mark.parametrize("name", CASES)
def test_a_lora_under_diffusers_names_changes_the_same_weights(name, tmp_path):
    source, model = CASES[name], tiny_models.build(name, **CASES[name].config)
    weights = model.model.diffusion_model.state_dict()
    theirs = converted(source, model, weights)
    tensors, updates = diffusers_lora(theirs)
    save_file(tensors, tmp_path / "a.safetensors")
    ours, unmatched = our_updates(tmp_path / "a.safetensors", model)
    assert unmatched == () and len(ours) > 10
    assert differing(converted(source, model, added(weights, ours)), added(theirs, updates)) == []


# Two versions of HunyuanVideo differ in the first, and the last block of SD3 in the second.
WITHOUT_ONE_NAME = {
    "hunyuan-video": r"time_in\..*",
    "sd3": r"joint_blocks\.\d+\.context_block\.adaLN_modulation\.1",
}


def written_for_comfyui(model, folder, left_out="", seed=0):
    """A file of ours with every Linear of the model, which states its base; and the updates by weight."""
    generator, made, updates = torch.Generator().manual_seed(seed), {}, {}
    for name, layer in model.model.diffusion_model.named_modules():
        if is_linear(layer) and not re.fullmatch(left_out, name):
            down, up = random((2, layer.in_features), generator), random((layer.out_features, 2), generator)
            made[name] = factors.Factor(down, up, 1.0, 0.5, name)
            updates[f"{name}.weight"] = 0.5 * up @ down
    pair = metadata.PairMetadata(base=base_model.base_of(model).name)
    return writer.write_adapter(folder / "a.safetensors", made, pair), updates


def layers_of(tensors):
    """(layer, (down, up)) of each layer of a file that diffusers reads."""
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return [(name, (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"])) for name in names]


@pytest.mark.parametrize("name", CASES)
def test_a_file_converted_for_diffusers_changes_the_same_weights(name, tmp_path):
    source, model = CASES[name], tiny_models.build(name, **CASES[name].config)
    weights = model.model.diffusion_model.state_dict()
    path, updates = written_for_comfyui(model, tmp_path, WITHOUT_ONE_NAME.get(name, ""))
    out = writer.convert(reader.read_adapter(path), tmp_path / "b.safetensors", layout="diffusers")
    theirs = converted(source, model, weights)
    written = {
        f"{layer.removeprefix('transformer.')}.weight": up @ down for layer, (down, up) in layers_of(load_file(out))
    }
    assert written.keys() <= theirs.keys()
    assert differing(added(theirs, written), converted(source, model, added(weights, updates))) == []


@pytest.mark.parametrize("name", WITHOUT_ONE_NAME)
def test_a_layer_that_diffusers_names_differently_by_version_or_block_is_refused(name, tmp_path):
    path, _ = written_for_comfyui(tiny_models.build(name), tmp_path)
    with pytest.raises(comfyui.pack_module("glance_core.errors").AdapterError) as refused:
        writer.convert(reader.read_adapter(path), tmp_path / "b.safetensors", layout="diffusers")
    assert re.search(rf"diffusers has no name for {WITHOUT_ONE_NAME[name]} with factors", str(refused.value))


def lost_by_comfyui(path, model):
    """(keys that ComfyUI's own loader does not apply, the update of each weight)."""
    tensors, known = load_file(path), comfy.lora.model_lora_keys_unet(model.model, {})
    with mock.patch("logging.warning") as warned:
        patches = comfy.lora.load_lora(dict(tensors), known)
    updates = {}
    for target, adapter in patches.items():
        weight = torch.zeros_like(model.model.state_dict()[target])
        key = target.removeprefix("diffusion_model.")
        updates[key] = comfy.lora.calculate_weight([(1.0, adapter, 1.0, None, None)], weight, target)
    return [call.args[0] for call in warned.call_args_list], updates


@pytest.mark.parametrize("name", [name for name in diffusers_models.CONFIGS if name in CASES])
def test_a_file_converted_for_diffusers_loads_whole_there(name, tmp_path):
    source, model = CASES[name], tiny_models.build(name, **CASES[name].config)
    path, updates = written_for_comfyui(model, tmp_path, WITHOUT_ONE_NAME.get(name, ""))
    tensors = load_file(writer.convert(reader.read_adapter(path), tmp_path / "b.safetensors", layout="diffusers"))
    weights = model.model.diffusion_model.state_dict()
    transformer = diffusers_models.build(name, converted(source, model, weights))
    with torch.inference_mode(False), mock.patch.object(peft_loader.logger, "warning") as warned:
        transformer.load_lora_adapter(tensors, prefix="transformer")
        transformer.fuse_lora()
        transformer.unload_lora()
    assert not warned.called and len(layers_of(tensors)) >= len(updates)
    assert differing(transformer.state_dict(), converted(source, model, added(weights, updates))) == []


COMFYUI_KNOWS = ("flux2-dev", "sd3", "auraflow", "z-image")  # by a map of its own, so that the names stay


@pytest.mark.parametrize("name", [name for name in CASES if name not in COMFYUI_KNOWS])
def test_a_file_of_diffusers_converted_for_comfyui_loads_whole_there(name, tmp_path):
    source, model = CASES[name], tiny_models.build(name, **CASES[name].config)
    weights = model.model.diffusion_model.state_dict()
    tensors, _ = diffusers_lora(converted(source, model, weights))
    stated = metadata.written_metadata(metadata.PairMetadata(base=base_model.base_of(model).name), "a")
    save_file(tensors, tmp_path / "a.safetensors", metadata=stated)
    expected, _ = our_updates(tmp_path / "a.safetensors", model)
    out = writer.convert(reader.read_adapter(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    lost, updates = lost_by_comfyui(out, model)
    assert lost == [] and differing(updates, expected) == []


def test_the_list_of_other_names_is_up_to_date():
    expected = write_other_names.text()
    assert (comfyui.PACK / "glance_core/lora/other_names.txt").read_text(encoding="utf-8") == expected


def test_every_layer_of_hunyuan_video_15_in_diffusers_has_its_place():
    """Its only converter is a script of diffusers' repository, so names and sizes are compared."""
    model = tiny_models.build("hunyuan-video15").model.diffusion_model
    layers = [each for each in diffusers_models.build("hunyuan-video15").named_modules() if is_linear(each[1])]
    assert len(layers) > 40
    for name, layer in layers:
        part = other_names.host_part("hunyuan-video", name)
        ours = model.get_submodule(part.name)
        assert part.rows(ours.in_features, ours.out_features)[1] == layer.out_features, name
        assert ours.in_features == layer.in_features, name


@pytest.mark.parametrize("flat", [False, True])
def test_queries_keys_and_values_apart_act_as_the_merged_layer(flat, loras):
    """HunyuanVideo 1.5 as its publisher names it; ComfyUI's own loader knows the whole layer only."""
    name, generator = "hunyuan-video15", torch.Generator().manual_seed(0)
    model = tiny_models.build(name)
    contents, truths = [], []
    for _ in range(2):
        apart, whole = {}, {}
        for stream in ("img", "txt"):
            layer = f"double_blocks.0.{stream}_attn"
            downs, ups = [random((2, 128), generator) for _ in "qkv"], [random((128, 2), generator) for _ in "qkv"]
            whole[f"diffusion_model.{layer}_qkv.lora_down.weight"] = torch.cat(downs)
            whole[f"diffusion_model.{layer}_qkv.lora_up.weight"] = torch.block_diag(*ups)
            for letter, down, up in zip("qkv", downs, ups, strict=True):
                key = f"lora_unet_{layer.replace('.', '_')}_{letter}" if flat else f"{layer}_{letter}"
                apart |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        contents.append(apart)
        truths.append(pack.merged(model, whole))
    for file, content in zip(("slow.safetensors", "fast.safetensors"), contents, strict=True):
        save_file(content, loras / file)
    carrying, report = pack.load_pair(model, "slow.safetensors", "fast.safetensors")
    assert report.count(" 0 unmatched") == 2
    ours = pack.phase_split(carrying, name)
    assert pack.relative(ours, pack.chained(*truths, name, pack.scheduler(model, name), 5)) < 1e-5
    assert pack.relative(ours, pack.phase_split(model, name)) > 1e-3


def test_a_pair_of_diffusers_gives_the_latents_in_comfyui_that_it_gives_there(loras):
    """Wan's transformer with two adapters of PEFT, in Euler's steps; the second takes over after half of them."""
    name, source = "wan", CASES["wan"]
    model = tiny_models.build(name)
    weights = converted(source, model, model.model.diffusion_model.state_dict())
    sigmas, context = pack.scheduler(model, name), tiny_models.conditioning(name)[0][0].clone()
    latents = comfy.sample.prepare_noise(tiny_models.empty_latent(name)["samples"], 3) * sigmas[0]
    with torch.inference_mode(False), torch.no_grad():
        transformer = diffusers_models.build(name, weights)
        for seed, phase in ((1, "slow"), (2, "fast")):
            torch.manual_seed(seed)
            settings = LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=["to_q", "to_v", "net.2"])
            transformer.add_adapter(settings, adapter_name=phase)
            layers = get_peft_model_state_dict(transformer, adapter_name=phase)
            WanPipeline.save_lora_weights(
                loras, layers, weight_name=f"{phase}.safetensors", transformer_lora_adapter_metadata=settings.to_dict()
            )
        latents, context = latents.clone(), context.clone()
        for step in range(10):
            transformer.set_adapters("slow" if step < 5 else "fast")
            time = 1000 * sigmas[step : step + 1].clone()
            velocity = transformer(latents, time, context, return_dict=False)[0]
            latents = latents + (sigmas[step + 1] - sigmas[step]).item() * velocity
    carrying, report = pack.load_pair(model, "slow.safetensors", "fast.safetensors")
    assert report.count(" 0 unmatched") == 2
    ours = model.model.process_latent_in(pack.phase_split(carrying, name))
    assert pack.relative(ours, latents) < 1e-5
    assert pack.relative(ours, model.model.process_latent_in(pack.phase_split(model, name))) > 1e-3
