"""A pair in ComfyUI with this pack and in diffusers, on the same weights, noise and prompts: the same latents, whoever wrote the files."""

import adapters
import comfy.sample
import comfy.utils
import diffusers_tiny as peer
import pack
import pytest
import tiny
import torch
from diffusers import FluxPipeline, QwenImagePipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, safe_open, save_file

from glance_core import targets
from glance_core.adapter_metadata import Trained
from glance_core.lora_file import Factor, read_adapter
from glance_core.lora_write import convert, write_adapter

TARGETS = {"flux": list(targets.FLUX), "qwen-image": list(targets.QWEN_IMAGE)}
PIPELINES = {"flux": FluxPipeline, "qwen-image": QwenImagePipeline}


def same_weights(name, model):
    """diffusers' transformer with the weights of ComfyUI's model."""
    ours = model.model.diffusion_model.state_dict()
    if name == "flux":  # by ComfyUI's own map: a name, or with the rows of a fused layer, or with a function that moves them
        known = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config)
        ours = {theirs: rows_of(ours, source) for theirs in peer.transformer(name).state_dict() for source in [known[theirs]]}
    with torch.inference_mode(False):
        return peer.transformer(name, {key: value.clone() for key, value in ours.items()})


def rows_of(weights, source):
    if isinstance(source, str):
        return weights[source]
    name, rows, *moved = source
    weight = weights[name] if rows is None else weights[name].narrow(*rows)
    return moved[0](weight) if moved else weight


def prompt(name, seed):
    """The conditioning of tiny.conditioning, as diffusers takes it."""
    ((embeds, extra),) = tiny.conditioning(name, seed)
    if name == "flux":
        return {"prompt_embeds": embeds.clone(), "pooled_prompt_embeds": extra["pooled_output"].clone()}
    return {"prompt_embeds": embeds.clone(), "prompt_embeds_mask": torch.ones(embeds.shape[:2], dtype=torch.long)}


LATENT = {name: {"samples": torch.zeros(shape)} for name, shape in peer.LATENTS.items()}
SEED = 3


def noise(name):
    return comfy.sample.prepare_noise(LATENT[name]["samples"], SEED)


def ladder(name, model):
    sigmas = pack.scheduler(model, name, latent=LATENT[name])
    return {"sigmas": sigmas.tolist(), "slow_steps": 5, "width": peer.WIDTH, "height": peer.HEIGHT}


def in_comfyui(name, model, slow=None, fast=None, **kwargs):
    """The latents of PhaseSplitSampler, in the model's own scale; without files those of the bare base."""
    if slow is not None:
        model, _ = pack.load_pair(model, str(slow), str(fast))
    samples = pack.phase_split(model, name, latent=LATENT[name], seed=SEED, **kwargs)
    return model.model.process_latent_in(samples)


def in_diffusers(name, model, transformer, slow, fast, negative=None, cfg=1.0):
    inputs = prompt(name, 1) | peer.other_inputs(name, noise(name), negative, cfg)
    return peer.painted(name, transformer, slow, fast, ladder(name, model), **inputs)


def compared(what, ours, theirs):
    difference = peer.greatest(ours, theirs)
    print(f"{what}: the latents of ComfyUI and diffusers differ by {difference:.2e} at most")
    return difference


def own_layout(name, model, folder):
    """A pair on every Linear of the blocks under ComfyUI's names, as this pack writes it."""
    for file in adapters.save_pair(model, folder):
        phase = file.removesuffix(".safetensors")
        write_adapter(folder / f"my_{file}", read_adapter(folder / file).factors, Trained(phase=phase, base=name))
    return "my_slow.safetensors", "my_fast.safetensors"


@pytest.mark.parametrize("name", peer.NAMES)
def test_diffusers_paints_the_same_latents_with_a_pair_of_this_pack(name, loras, tmp_path):
    model = tiny.build(name)
    slow, fast = own_layout(name, model, loras)
    converted = [convert(read_adapter(loras / file), tmp_path / file, layout="diffusers") for file in (slow, fast)]
    ours = in_comfyui(name, model, slow, fast)
    theirs = in_diffusers(name, model, same_weights(name, model), *converted)
    assert compared(f"{name}, a pair of this pack", ours, theirs) < peer.TOLERANCE
    without, swapped = in_comfyui(name, model), in_comfyui(name, model, "fast.safetensors", "slow.safetensors")  # those state no phase
    print(f"{name}: without the pair they differ by {peer.greatest(ours, without):.2e}, swapped by {peer.greatest(ours, swapped):.2e}")
    assert peer.greatest(ours, without) > 100 * peer.TOLERANCE
    assert peer.greatest(ours, swapped) > 100 * peer.TOLERANCE


def test_a_pair_of_this_pack_for_qwen_image_needs_no_conversion(loras):
    model = tiny.build("qwen-image")
    slow, fast = own_layout("qwen-image", model, loras)
    theirs = in_diffusers("qwen-image", model, same_weights("qwen-image", model), loras / slow, loras / fast)
    assert compared("qwen-image, not converted", in_comfyui("qwen-image", model, slow, fast), theirs) < peer.TOLERANCE


@pytest.mark.parametrize("name", peer.NAMES)
def test_a_converted_pair_is_the_same_pair_in_comfyui(name, loras):
    model = tiny.build(name)
    files = own_layout(name, model, loras)
    for file in files:
        convert(read_adapter(loras / file), loras / f"converted_{file}", layout="diffusers")
    expected = in_comfyui(name, model, *files)
    assert peer.greatest(in_comfyui(name, model, *(f"converted_{file}" for file in files)), expected) < peer.TOLERANCE
    merged = [pack.merged(model, load_file(loras / f"converted_{file}")) for file in files]  # ComfyUI's own loader finds no alpha
    chained = pack.chained(*merged, name, pack.scheduler(model, name, latent=LATENT[name]), 5, latent=LATENT[name], seed=SEED)
    assert peer.greatest(model.model.process_latent_in(chained), expected) < peer.TOLERANCE


def test_layers_of_flux_outside_of_its_blocks_have_the_names_of_comfyuis_map(tmp_path):
    model = tiny.build("flux")
    layers = {
        n: m for n, m in adapters.targets(model, blocks_only=False).items() if "block" not in n or n == "double_blocks.0.img_attn.proj"
    }
    assert len(layers) == 11
    generator = torch.Generator().manual_seed(0)
    for module, layer in list(layers.items()):
        down, up = torch.randn((2, layer.in_features), generator=generator), torch.randn((layer.out_features, 2), generator=generator)
        layers[module] = Factor(down, up, 2.0, 1.0, module)
    source = read_adapter(write_adapter(tmp_path / "in.safetensors", layers, Trained(base="flux")))
    written = read_adapter(convert(source, tmp_path / "out.safetensors", layout="diffusers"))
    assert len(written.factors) == 11
    merged = {f"{module}.weight": factor.up @ factor.down for module, factor in layers.items()}
    known = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config)
    for module, factor in written.factors.items():
        assert torch.allclose(factor.up @ factor.down, rows_of(merged, known[f"{module}.weight"]), atol=1e-5), module


def norm_rescaled(args):
    """QwenImagePipeline's guidance as a function of ComfyUI's: each token's guided velocity as long as the one without guidance."""
    cond, uncond = (args[key] for key in ("cond", "uncond"))  # (B, 16, 1, H, W), sigma times the velocity
    cond, uncond = (peer.packed("qwen-image", value) for value in (cond, uncond))
    mixed = uncond + args["cond_scale"] * (cond - uncond)
    return peer.unpacked("qwen-image", mixed * cond.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))


def test_under_true_cfg_the_rescaling_of_diffusers_pipeline_is_the_only_difference(loras):
    name = "qwen-image"
    model = tiny.build(name)
    slow, fast = own_layout(name, model, loras)
    theirs = in_diffusers(name, model, same_weights(name, model), loras / slow, loras / fast, negative=prompt(name, 2), cfg=4.0)
    rescaling = model.clone()
    rescaling.set_model_sampler_cfg_function(norm_rescaled)
    assert compared("qwen-image, cfg 4 with rescaling", in_comfyui(name, rescaling, slow, fast, cfg=4.0), theirs) < peer.TOLERANCE
    assert compared("qwen-image, cfg 4 without", in_comfyui(name, model, slow, fast, cfg=4.0), theirs) > 100 * peer.TOLERANCE


def peft_adapters(name, model, **config):
    """diffusers' transformer with two adapters of PEFT's on it, slow and fast, as they are at the end of a training."""
    transformer = same_weights(name, model)
    for seed, phase in ((1, "slow"), (2, "fast")):
        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 16, "target_modules": TARGETS[name], **config}
        transformer.add_adapter(LoraConfig(**settings), adapter_name=phase)
        for parameter_name, parameter in transformer.named_parameters():
            if f"lora_B.{phase}" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.05)
    return transformer


def saved_by_peft(name, transformer, folder):
    """PeftModel.save_pretrained: adapter_model.safetensors with its configuration beside it."""
    for phase in ("slow", "fast"):
        wrapped = get_peft_model(peer.transformer(name), transformer.peft_config[phase])
        layers = {f"base_model.model.{key}": value for key, value in get_peft_model_state_dict(transformer, adapter_name=phase).items()}
        assert not set_peft_model_state_dict(wrapped, layers).unexpected_keys
        wrapped.save_pretrained(folder / phase)
    return "slow/adapter_model.safetensors", "fast/adapter_model.safetensors"


def saved_by_diffusers(name, transformer, folder):
    """save_lora_weights with PEFT's settings in the metadata, as diffusers' training scripts do it."""
    for phase in ("slow", "fast"):
        layers = get_peft_model_state_dict(transformer, adapter_name=phase)
        settings = transformer.peft_config[phase].to_dict()
        PIPELINES[name].save_lora_weights(folder / phase, layers, transformer_lora_adapter_metadata=settings)
    return "slow/pytorch_lora_weights.safetensors", "fast/pytorch_lora_weights.safetensors"


def saved_by_diffusers_from_the_model(name, transformer, folder):
    """The transformer's own save_lora_adapter: no prefix, neither before the names nor before the settings."""
    for phase in ("slow", "fast"):
        transformer.save_lora_adapter(folder / phase, adapter_name=phase)
    return "slow/pytorch_lora_weights.safetensors", "fast/pytorch_lora_weights.safetensors"


def saved_by_diffusers_without_alpha(name, transformer, folder):
    """save_lora_weights alone, as diffusers was used before it had metadata, and the reference code of Glance."""
    for phase in ("slow", "fast"):
        layers = get_peft_model_state_dict(transformer, adapter_name=phase)
        PIPELINES[name].save_lora_weights(folder, layers, weight_name=f"{phase}.safetensors")
    return "slow.safetensors", "fast.safetensors"


def saved_by_simpletuner(name, transformer, folder):
    """diffusers' writer, to whose file SimpleTuner adds metadata of its own (facts of its save_hooks.py)."""
    for phase in ("slow", "fast"):
        transformer.peft_config["default"] = transformer.peft_config[phase]
        layers, metadata = get_peft_model_state_dict(transformer, adapter_name=phase), _collate_lora_metadata({"transformer": transformer})
        del transformer.peft_config["default"]
        PIPELINES[name].save_lora_weights(folder / phase, layers, **metadata)
        path = folder / phase / "pytorch_lora_weights.safetensors"
        with safe_open(path, "pt") as file:
            header = file.metadata()
        extra = {"modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": f"{name}/lora", "modelspec.implementation": "diffusers"}
        save_file(load_file(path), path, metadata=header | extra)
    return "slow/pytorch_lora_weights.safetensors", "fast/pytorch_lora_weights.safetensors"


def saved_by_simpletuner_for_comfyui(name, transformer, folder):
    """SimpleTuner's other format: diffusers' names behind ComfyUI's prefix, with alpha (facts of its lora_format.py)."""
    for phase in ("slow", "fast"):
        tensors = {}
        for key, value in get_peft_model_state_dict(transformer, adapter_name=phase).items():
            tensors[f"diffusion_model.{key}"] = value.contiguous()
            tensors[f"diffusion_model.{key.split('.lora_')[0]}.alpha"] = torch.tensor(float(transformer.peft_config[phase].lora_alpha))
        save_file(tensors, folder / f"{phase}.safetensors")
    return "slow.safetensors", "fast.safetensors"


WRITERS = {
    "peft": (saved_by_peft, {}),
    "peft, rank-stabilised": (saved_by_peft, {"use_rslora": True}),
    "peft, other alphas by pattern": (saved_by_peft, {"alpha_pattern": {r"^transformer_blocks\.0\..*": 2, "1.attn.to_q": 8}, "rank_pattern": {"to_k": 2}}),
    "diffusers": (saved_by_diffusers, {}),
    "diffusers, other alphas by pattern": (saved_by_diffusers, {"alpha_pattern": {"to_v": 3}, "rank_pattern": {"to_out.0": 8}}),
    "diffusers, from the model": (saved_by_diffusers_from_the_model, {}),
    "diffusers, alpha dropped": (saved_by_diffusers_without_alpha, {"lora_alpha": 4}),
    "SimpleTuner": (saved_by_simpletuner, {}),
    "SimpleTuner, for ComfyUI": (saved_by_simpletuner_for_comfyui, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", peer.NAMES)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_pair_written_by_others_paints_what_it_painted_where_it_was_trained(writer, name, loras):
    save, config = WRITERS[writer]
    model = tiny.build(name)
    with torch.inference_mode(False):
        transformer = peft_adapters(name, model, **config)
        files = save(name, transformer, loras)
    inputs = prompt(name, 1) | peer.other_inputs(name, noise(name))
    theirs = peer.painted_with(name, peer.pipeline(name, transformer), ladder(name, model), **inputs)
    ours = in_comfyui(name, model, *files)
    assert compared(f"{name}, saved by {writer}", ours, theirs) < peer.TOLERANCE
    assert peer.greatest(ours, in_comfyui(name, model)) > 100 * peer.TOLERANCE
