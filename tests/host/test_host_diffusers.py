"""A pair of this pack gives the same latents in ComfyUI and in diffusers."""

import adapters
import comfy.utils
import diffusers_tiny as peer
import pack
import pytest
import tiny_models
import torch
from diffusers_compare import LATENT, SEED, difference, in_comfyui, in_diffusers, prompt, rows_of
from safetensors.torch import load_file

from glance_core.lora.factors import Factor
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.reader import read_adapter
from glance_core.lora.writer import convert, write_adapter

SWAPPED = ("fast.safetensors", "slow.safetensors")  # these state no phase


def own_layout(name, model, folder):
    """Write a pair on every Linear of the blocks under ComfyUI's names, as this pack writes it."""
    for file in adapters.save_pair(model, folder):
        phase = file.removesuffix(".safetensors")
        write_adapter(folder / f"my_{file}", read_adapter(folder / file).factors, PairMetadata(phase=phase, base=name))
    return "my_slow.safetensors", "my_fast.safetensors"


@pytest.mark.parametrize("name", peer.NAMES)
def test_diffusers_gives_the_same_latents_with_a_pair_of_this_pack(name, loras, tmp_path):
    model = tiny_models.build(name)
    files = own_layout(name, model, loras)
    converted = [convert(read_adapter(loras / file), tmp_path / file, layout="diffusers") for file in files]
    ours = in_comfyui(name, model, files)
    theirs = in_diffusers(name, model, converted)
    assert difference(f"{name}, a pair of this pack", ours, theirs) < peer.TOLERANCE
    without, swapped = in_comfyui(name, model), in_comfyui(name, model, SWAPPED)
    print(f"{name}: without the pair {peer.greatest(ours, without):.2e}, swapped {peer.greatest(ours, swapped):.2e}")
    assert peer.greatest(ours, without) > 100 * peer.TOLERANCE
    assert peer.greatest(ours, swapped) > 100 * peer.TOLERANCE


def test_pair_of_this_pack_for_qwen_image_needs_no_conversion(loras):
    model = tiny_models.build("qwen-image")
    files = own_layout("qwen-image", model, loras)
    theirs = in_diffusers("qwen-image", model, [loras / file for file in files])
    assert difference("qwen-image, not converted", in_comfyui("qwen-image", model, files), theirs) < peer.TOLERANCE


@pytest.mark.parametrize("name", peer.NAMES)
def test_converted_pair_is_the_same_pair_in_comfyui(name, loras):
    model = tiny_models.build(name)
    files = own_layout(name, model, loras)
    converted = [f"converted_{file}" for file in files]
    for file, target in zip(files, converted, strict=True):
        convert(read_adapter(loras / file), loras / target, layout="diffusers")
    expected = in_comfyui(name, model, files)
    assert peer.greatest(in_comfyui(name, model, converted), expected) < peer.TOLERANCE
    merged = [pack.merged(model, load_file(loras / file)) for file in converted]  # ComfyUI's own loader needs no alpha
    sigmas = pack.scheduler(model, name, latent=LATENT[name])
    chained = pack.chained(*merged, name, sigmas, 5, latent=LATENT[name], seed=SEED)
    assert peer.greatest(model.model.process_latent_in(chained), expected) < peer.TOLERANCE


def test_layers_of_flux_outside_of_its_blocks_have_the_names_of_comfyuis_map(tmp_path):
    model = tiny_models.build("flux")
    layers = {
        name: layer
        for name, layer in adapters.targets(model, blocks_only=False).items()
        if "block" not in name or name == "double_blocks.0.img_attn.proj"
    }
    assert len(layers) == 11
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for name, layer in layers.items():
        down = torch.randn((2, layer.in_features), generator=generator)
        up = torch.randn((layer.out_features, 2), generator=generator)
        factors[name] = Factor(down, up, 2.0, 1.0, name)
    source = read_adapter(write_adapter(tmp_path / "in.safetensors", factors, PairMetadata(base="flux")))
    written = read_adapter(convert(source, tmp_path / "out.safetensors", layout="diffusers"))
    assert len(written.factors) == 11
    merged = {f"{name}.weight": factor.up @ factor.down for name, factor in factors.items()}
    known = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config)
    for name, factor in written.factors.items():
        assert torch.allclose(factor.up @ factor.down, rows_of(merged, known[f"{name}.weight"]), atol=1e-5), name


def norm_rescaled(args):
    """QwenImagePipeline's guidance, as a function for ComfyUI.

    Each token's guided velocity becomes as long as the one without guidance.
    """
    cond, uncond = (args[key] for key in ("cond", "uncond"))  # (B, 16, 1, H, W), sigma times the velocity
    cond, uncond = (peer.packed("qwen-image", value) for value in (cond, uncond))  # (B, T, 64)
    mixed = uncond + args["cond_scale"] * (cond - uncond)
    return peer.unpacked("qwen-image", mixed * cond.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))


def test_under_true_cfg_diffusers_differs_only_by_its_rescaling(loras):
    name = "qwen-image"
    model = tiny_models.build(name)
    files = own_layout(name, model, loras)
    theirs = in_diffusers(name, model, [loras / file for file in files], negative=prompt(name, 2), cfg=4.0)
    rescaling = model.clone()
    rescaling.set_model_sampler_cfg_function(norm_rescaled)
    rescaled, plain = (in_comfyui(name, each, files, cfg=4.0) for each in (rescaling, model))
    assert difference("qwen-image, cfg 4 with rescaling", rescaled, theirs) < peer.TOLERANCE
    assert difference("qwen-image, cfg 4 without", plain, theirs) > 100 * peer.TOLERANCE
