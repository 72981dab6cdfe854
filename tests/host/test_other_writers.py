"""Pairs of PEFT, diffusers and SimpleTuner give the latents in ComfyUI that they gave where they were trained."""

import diffusers_tiny as peer
import pack
import pytest
import tiny_models
import torch
from diffusers import FluxPipeline, QwenImagePipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers_compare import difference, in_comfyui, noise, prompt, same_weights, schedule
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, safe_open, save_file

from glance_core.models import MODELS

PIPELINES = {"flux": FluxPipeline, "qwen-image": QwenImagePipeline}


def trained_transformer(name, model, **config):
    """diffusers' transformer with two adapters of PEFT on it, slow and fast, as they are at the end of training."""
    transformer = same_weights(name, model)
    for seed, phase in ((1, "slow"), (2, "fast")):
        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 16, "target_modules": list(MODELS[name].paper_targets), **config}
        transformer.add_adapter(LoraConfig(**settings), adapter_name=phase)
        for parameter_name, parameter in transformer.named_parameters():
            if f"lora_B.{phase}" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.05)
    return transformer


def saved_by_peft(name, transformer, folder):
    """PeftModel.save_pretrained: adapter_model.safetensors with its configuration beside it."""
    for phase in ("slow", "fast"):
        wrapped = get_peft_model(peer.transformer(name), transformer.peft_config[phase])
        state_dict = get_peft_model_state_dict(transformer, adapter_name=phase)
        layers = {f"base_model.model.{key}": value for key, value in state_dict.items()}
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
    """The transformer's own save_lora_adapter, which puts no prefix before names or settings."""
    for phase in ("slow", "fast"):
        transformer.save_lora_adapter(folder / phase, adapter_name=phase)
    return "slow/pytorch_lora_weights.safetensors", "fast/pytorch_lora_weights.safetensors"


def saved_by_diffusers_without_alpha(name, transformer, folder):
    """save_lora_weights without metadata, as in early diffusers and in the reference code of Glance."""
    for phase in ("slow", "fast"):
        layers = get_peft_model_state_dict(transformer, adapter_name=phase)
        PIPELINES[name].save_lora_weights(folder, layers, weight_name=f"{phase}.safetensors")
    return "slow.safetensors", "fast.safetensors"


def saved_by_simpletuner(name, transformer, folder):
    """diffusers' writer, to whose file SimpleTuner adds metadata of its own (facts from its save_hooks.py)."""
    for phase in ("slow", "fast"):
        transformer.peft_config["default"] = transformer.peft_config[phase]
        layers = get_peft_model_state_dict(transformer, adapter_name=phase)
        metadata = _collate_lora_metadata({"transformer": transformer})
        del transformer.peft_config["default"]
        PIPELINES[name].save_lora_weights(folder / phase, layers, **metadata)
        path = folder / phase / "pytorch_lora_weights.safetensors"
        with safe_open(path, "pt") as file:
            header = file.metadata()
        extra = {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"{name}/lora",
            "modelspec.implementation": "diffusers",
        }
        save_file(load_file(path), path, metadata=header | extra)
    return "slow/pytorch_lora_weights.safetensors", "fast/pytorch_lora_weights.safetensors"


def saved_by_simpletuner_for_comfyui(name, transformer, folder):
    """SimpleTuner's other format: diffusers' names behind ComfyUI's prefix, with alpha (facts from lora_format.py)."""
    for phase in ("slow", "fast"):
        tensors, alpha = {}, float(transformer.peft_config[phase].lora_alpha)
        for key, value in get_peft_model_state_dict(transformer, adapter_name=phase).items():
            tensors[f"diffusion_model.{key}"] = value.contiguous()
            tensors[f"diffusion_model.{key.split('.lora_')[0]}.alpha"] = torch.tensor(alpha)
        save_file(tensors, folder / f"{phase}.safetensors")
    return "slow.safetensors", "fast.safetensors"


ALPHAS_BY_NAME = {
    "alpha_pattern": {r"^transformer_blocks\.0\.attn\.to_q": 2, "transformer_blocks.0.attn.to_v": 2, "1.attn.to_q": 8},
    "rank_pattern": {"to_k": 2},
}
WRITERS = {
    "peft": (saved_by_peft, {}),
    "peft, rank-stabilised": (saved_by_peft, {"use_rslora": True}),
    "peft, other alphas by name": (saved_by_peft, ALPHAS_BY_NAME),
    "diffusers": (saved_by_diffusers, {}),
    "diffusers, other alphas by name": (
        saved_by_diffusers,
        {"alpha_pattern": {"to_v": 3}, "rank_pattern": {"to_out.0": 8}},
    ),
    "diffusers, from the model": (saved_by_diffusers_from_the_model, {}),
    "diffusers, without alpha": (saved_by_diffusers_without_alpha, {"lora_alpha": 4}),
    "SimpleTuner": (saved_by_simpletuner, {}),
    "SimpleTuner, for ComfyUI": (saved_by_simpletuner_for_comfyui, {}),
}


@pytest.mark.parametrize("name", peer.NAMES)
@pytest.mark.parametrize("writer", WRITERS)
def test_pair_of_another_writer_gives_the_latents_of_its_training(writer, name, loras):
    save, config = WRITERS[writer]
    model = tiny_models.build(name)
    with torch.inference_mode(False):
        transformer = trained_transformer(name, model, **config)
        files = save(name, transformer, loras)
    inputs = prompt(name, 1) | peer.other_inputs(name, noise(name))
    theirs = peer.painted_with(name, peer.pipeline(name, transformer), schedule(name, model), **inputs)
    ours = in_comfyui(name, model, files)
    assert difference(f"{name}, saved by {writer}", ours, theirs) < peer.TOLERANCE
    assert peer.greatest(ours, in_comfyui(name, model)) > 100 * peer.TOLERANCE


@pytest.mark.parametrize("name", peer.NAMES)
def test_alphas_by_a_regular_expression_are_rejected(name, loras):
    """PEFT reads keys of alpha_pattern as regular expressions; the reader accepts only module names."""
    model = tiny_models.build(name)
    with torch.inference_mode(False):
        transformer = trained_transformer(name, model, alpha_pattern={r"^transformer_blocks\.0\..*": 2})
        files = saved_by_peft(name, transformer, loras)
    message = "in PEFT's alpha_pattern cannot be read, as it is not a plain module name; write module names instead"
    with pytest.raises(ValueError, match=message):
        pack.load_pair(model, *files)
