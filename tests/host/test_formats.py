"""Adapters made by peft and diffusers reach every part of ComfyUI's modules. Converted ones load everywhere."""

import adapters
import comfyui
import pack
import pytest
import tiny_models
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin, QwenImageLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from glance_core.lora.keys import flatten, unflatten
from glance_core.lora.reader import read_adapter
from glance_core.lora.writer import convert
from glance_core.models import MODELS


def diffusers_flux():
    return FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        axes_dims_rope=(16, 56, 56),
        in_channels=64,
        guidance_embeds=True,
    )


def diffusers_qwen():
    return QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=48
    )


LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
FLUX_ALL = [
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out"),
]
MADE_BY = {
    "flux": (diffusers_flux, FluxLoraLoaderMixin, list(MODELS["flux"].paper_targets)),
    "flux, more targets": (diffusers_flux, FluxLoraLoaderMixin, FLUX_ALL),
    "qwen-image": (diffusers_qwen, QwenImageLoraLoaderMixin, list(MODELS["qwen-image"].paper_targets)),
}


def save_pair(made_by, folder, mix_styles=False):
    """Write a pair as diffusers does. mix_styles: name the image stream as the published Qwen files do."""
    make, mixin, modules = MADE_BY[made_by]
    with torch.inference_mode(False):
        for seed, phase in ((1, "slow"), (2, "fast")):
            torch.manual_seed(seed)
            model = make()
            model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=modules, init_lora_weights=False))
            layers = get_peft_model_state_dict(model)
            mixin.save_lora_weights(folder, transformer_lora_layers=layers, weight_name=f"{phase}.safetensors")
            if mix_styles:
                mix(folder / f"{phase}.safetensors")
    return "slow.safetensors", "fast.safetensors"


def mix(path):
    image = ("to_q", "to_k", "to_v", "to_out.0")
    tensors = {}
    for key, value in load_file(path).items():
        module = key.split(".lora_")[0]
        old = key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
        tensors[old if module.endswith(image) else key] = value
    save_file(tensors, path)


@pytest.mark.parametrize("made_by, mix_styles", [(name, False) for name in MADE_BY] + [("qwen-image", True)])
def test_every_module_of_a_diffusers_adapter_is_matched_and_acts_as_merged(made_by, mix_styles, loras):
    name = made_by.split(",")[0]
    model = tiny_models.build(name)
    slow, fast = save_pair(made_by, loras, mix_styles)
    with_pair, report = pack.load_pair(model, slow, fast)
    modules = len(load_file(loras / slow)) // 2
    assert report.count(f"{modules} matched") == 2
    assert report.count(" 0 unmatched") == 2
    sigmas = pack.scheduler(model, name)
    merged = [pack.merged(model, load_file(loras / file)) for file in (slow, fast)]
    theirs = pack.chained(*merged, name, sigmas, 5)
    ours = pack.phase_split(with_pair, name)
    assert pack.relative(ours, theirs) < 1e-5
    assert pack.relative(ours, pack.phase_split(model, name)) > 1e-3


def test_each_part_of_a_fused_qkv_gets_its_own_update(loras):
    model = tiny_models.build("flux")
    slow, fast = save_pair("flux, more targets", loras)
    with_pair, _ = pack.load_pair(model, slow, fast)
    weights = comfyui.pack_module("nodes.host.patcher").adapters_of(with_pair).switch.weights
    bound = weights.on(torch.device("cpu"), [[1, 0], [0, 1]])
    rows = {name: [term.start for term in phases[0][0].terms] for name, phases in bound.items()}
    for block in range(2):
        assert sorted(rows[f"diffusion_model.double_blocks.{block}.img_attn.qkv"]) == [0, 128, 256]
        assert sorted(rows[f"diffusion_model.double_blocks.{block}.txt_attn.qkv"]) == [0, 128, 256]
        assert sorted(rows[f"diffusion_model.single_blocks.{block}.linear1"]) == [0, 128, 256, 384]


def kohya(tensors):
    """Return the tensors under the names of kohya's trainers."""
    endings = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "alpha": "alpha"}
    renamed = {}
    for key, value in tensors.items():
        ending = next(ending for ending in endings if key.endswith(f".{ending}"))
        module = key.removeprefix("diffusion_model.").removesuffix(f".{ending}").replace(".", "_")
        renamed[f"lora_unet_{module}.{endings[ending]}"] = value
    return renamed


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_kohya_names_reach_the_same_modules_as_comfyuis_generic_ones(name, loras):
    model = tiny_models.build(name)
    slow, fast = adapters.save_pair(model, loras)
    expected = pack.phase_split(pack.load_pair(model, slow, fast)[0], name)
    for file in (slow, fast):
        tensors = load_file(loras / file)
        save_file(kohya(tensors), loras / f"kohya_{file}")
    with_pair, report = pack.load_pair(model, f"kohya_{slow}", f"kohya_{fast}")
    assert report.count(" 0 unmatched") == 2
    assert torch.equal(pack.phase_split(with_pair, name), expected)


@pytest.mark.parametrize("made_by, mix_styles", [("flux", False), ("flux, more targets", False), ("qwen-image", True)])
def test_converted_file_loads_completely_in_the_pack_and_in_comfyui(made_by, mix_styles, loras, caplog):
    name = made_by.split(",")[0]
    model = tiny_models.build(name)
    names = save_pair(made_by, loras, mix_styles)
    expected = pack.phase_split(pack.load_pair(model, *names)[0], name)
    for phase, file in zip(("slow", "fast"), names, strict=True):
        convert(read_adapter(loras / file), loras / f"converted_{file}", phase=phase)
    converted = [f"converted_{file}" for file in names]
    assert torch.equal(pack.phase_split(pack.load_pair(model, *converted)[0], name), expected)
    caplog.clear()
    with caplog.at_level("WARNING"):
        pack.merged(model, load_file(loras / converted[0]))
    assert "not loaded" not in caplog.text


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_flattened_names_of_every_layer_get_their_dots_back(name):
    modules = tiny_models.build(name).model.diffusion_model.named_modules()
    layers = [layer for layer, module in modules if isinstance(module, LAYERS)]
    assert [unflatten(flatten(layer)) for layer in layers] == layers


def test_convolutions_of_sd1_work(loras):
    model = tiny_models.build("sd1")
    key = "diffusion_model.input_blocks.1.1.proj_in"
    other = "diffusion_model.input_blocks.0.0"  # 3 x 3, with flat factors, as ComfyUI's own trainer writes them
    for seed, phase in ((1, "slow"), (2, "fast")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"{key}.lora_down.weight": torch.randn((4, 32, 1, 1), generator=generator),
            f"{key}.lora_up.weight": torch.randn((32, 4, 1, 1), generator=generator),
            f"{other}.lora_down.weight": torch.randn((4, 36), generator=generator),
            f"{other}.lora_up.weight": torch.randn((32, 4), generator=generator) / 10,
        }
        save_file(tensors, loras / f"{phase}.safetensors")
    with_pair, _ = pack.load_pair(model, "slow.safetensors", "fast.safetensors")
    sigmas = pack.scheduler(model, "sd1")
    merged = [pack.merged(model, load_file(loras / f"{phase}.safetensors")) for phase in ("slow", "fast")]
    assert pack.relative(pack.phase_split(with_pair, "sd1"), pack.chained(*merged, "sd1", sigmas, 5)) < 1e-5
