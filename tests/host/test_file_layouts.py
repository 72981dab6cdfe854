"""Layouts of published files beside plain low-rank ones act as ComfyUI's own merge does, or are refused."""

from unittest import mock

import adapters
import comfy.lora_convert
import pack
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

UNUSUAL = 1e-3  # what every one of these tensors changes in the picture, at least


def random(shape, seed, scale=0.3):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair_of(tensors, folder):
    """Write two files: the tensors, and the tensors with other up factors."""
    others = {
        key: (-value.float()).to(value.dtype) if "up" in key or "lora_B" in key else value
        for key, value in tensors.items()
    }
    for name, content in (("slow", tensors), ("fast", others)):
        save_file({key: value.contiguous() for key, value in content.items()}, folder / f"{name}.safetensors")
    return (tensors, others), ("slow.safetensors", "fast.safetensors")


def difference_to_merged(name, tensors, folder):
    """Return how far the pair is from ComfyUI's merged models in a row, and from the bare model."""
    model = tiny_models.build(name)
    contents, files = pair_of(tensors, folder)
    ours = pack.phase_split(pack.load_pair(model, *files)[0], name)
    merged = [pack.merged(model, dict(content)) for content in contents]
    theirs = pack.chained(*merged, name, pack.scheduler(model, name), 5)
    return pack.relative(ours, theirs), pack.relative(ours, pack.phase_split(model, name))


def plain(layer, outside, inside, down="lora_down.weight", up="lora_up.weight"):
    return {f"{layer}.{down}": random((4, inside), 1), f"{layer}.{up}": random((outside, 4), 2)}


def test_biases_of_linears_act_as_merged(loras):
    layer, other = "diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.double_blocks.1.img_mlp.0"
    tensors = plain(layer, 384, 128) | {f"{layer}.diff_b": random((384,), 3), f"{other}.diff_b": random((512,), 4)}
    error, effect = difference_to_merged("flux", tensors, loras)
    assert error < 1e-5 and effect > UNUSUAL


def test_a_bias_of_a_layer_whose_halves_diffusers_swaps_acts_as_the_native_one(loras):
    """ComfyUI's own loader drops this bias, so the truth is its merge under the model's own name, halves swapped."""
    model, theirs, native = tiny_models.build("flux"), "norm_out.linear", "final_layer.adaLN_modulation.1"
    tensors = plain(f"transformer.{theirs}", 256, 128) | {f"transformer.{theirs}.diff_b": random((256,), 3, 1.0)}
    contents, files = pair_of(tensors, loras)
    ours = pack.phase_split(pack.load_pair(model, *files)[0], "flux")
    merged = []
    for content in contents:
        renamed = {key.replace(f"transformer.{theirs}", f"diffusion_model.{native}"): v for key, v in content.items()}
        swapped = {key: v if "down" in key else torch.cat(v.chunk(2)[::-1]) for key, v in renamed.items()}
        merged.append(pack.merged(model, swapped))
    assert pack.relative(ours, pack.chained(*merged, "flux", pack.scheduler(model, "flux"), 5)) < 1e-5
    assert pack.relative(ours, pack.phase_split(model, "flux")) > UNUSUAL


def test_the_bias_of_a_convolution_acts_as_merged(loras):
    layer = "diffusion_model.input_blocks.0.0"
    tensors = {
        f"{layer}.lora_down.weight": random((4, 4, 3, 3), 1),
        f"{layer}.lora_up.weight": random((32, 4, 1, 1), 2),
    }
    error, effect = difference_to_merged("sd1", tensors | {f"{layer}.diff_b": random((32,), 3)}, loras)
    assert error < 1e-5 and effect > UNUSUAL


def test_the_bias_of_a_normalisation_layer_acts_as_merged(loras):
    """Wan's norm3 has one. A norm without one cannot get it."""
    layer = "diffusion_model.blocks.0"
    tensors = plain(f"{layer}.ffn.0", 256, 128)
    error, effect = difference_to_merged("wan", tensors | {f"{layer}.norm3.diff_b": random((128,), 3)}, loras)
    assert error < 1e-5 and effect > UNUSUAL
    _, files = pair_of(tensors | {f"{layer}.self_attn.norm_q.diff_b": random((128,), 3)}, loras)
    with pytest.raises(ValueError, match=r"norm_q is a RMSNorm, whose bias cannot switch phases"):
        pack.load_pair(tiny_models.build("wan"), *files)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_file_stored_in_eight_bits_acts_as_merged(dtype, loras):
    stored = plain("diffusion_model.double_blocks.0.img_attn.qkv", 384, 128)
    error, effect = difference_to_merged("flux", {key: value.to(dtype) for key, value in stored.items()}, loras)
    assert error < 1e-5 and effect > UNUSUAL


def test_names_that_comfyuis_loader_converts_act_as_there(loras):
    """USO's names for FLUX; ComfyUI recognises them by the last blocks of the full model."""
    names = ("double_blocks.18.processor.qkv_lora2", "single_blocks.37.processor.qkv_lora")
    tensors = {}
    for name in (*names, "double_blocks.0.processor.qkv_lora1", "single_blocks.1.processor.proj_lora"):
        outside, inside = (128, 640) if "proj_lora" in name else (384, 128)
        tensors |= plain(name, outside, inside, "down.weight", "up.weight")
    error, effect = difference_to_merged("flux", tensors, loras)
    assert error < 1e-5 and effect > UNUSUAL


@pytest.mark.parametrize("prefix", ["transformer.base_model.model.", "pipe.dit.", "module.", "_orig_mod.", "model."])
def test_wrapped_names_reach_the_same_layers(prefix, loras):
    model = tiny_models.build("wan")
    slow, fast = adapters.save_pair(model, loras)
    expected = pack.phase_split(pack.load_pair(model, slow, fast)[0], "wan")
    for file in (slow, fast):
        renamed = {key.replace("diffusion_model.", prefix, 1): value for key, value in load_file(loras / file).items()}
        save_file(renamed, loras / f"wrapped_{file}")
    with_pair, report = pack.load_pair(model, f"wrapped_{slow}", f"wrapped_{fast}")
    assert report.count(" 0 unmatched") == 2
    assert torch.equal(pack.phase_split(with_pair, "wan"), expected)


@pytest.mark.parametrize("how", ["padding mode", "replaced _conv_forward"])
def test_a_convolution_with_circular_padding_acts_as_merged(how, loras):
    """Seamless tiling sets the mode, or puts a forward of its own on each convolution."""
    model = tiny_models.build("sd1")
    slow, fast = adapters.save_pair(model, loras)
    convolutions = [m for m in model.model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]

    def tiled(self, x, weight, bias):
        return torch.nn.functional.conv2d(
            torch.nn.functional.pad(x, (1, 1, 1, 1), "circular"), weight, bias, self.stride
        )

    for convolution in convolutions:
        if how == "padding mode":
            convolution.padding_mode = "circular"
        else:
            convolution._conv_forward = tiled.__get__(convolution)
    ours = pack.phase_split(pack.load_pair(model, slow, fast)[0], "sd1", schedule="model")
    merged = [pack.merged(model, load_file(loras / file)) for file in (slow, fast)]
    sigmas = pack.scheduler(model, "sd1", schedule="model")
    assert pack.relative(ours, pack.chained(*merged, "sd1", sigmas, 5)) < 1e-5


def control_lora(seed=1):
    """A control LoRA as Black Forest Labs publish them: wider img_in, biases, and norms of its own."""
    tensors = {}
    for layer, outside, inside in (("img_in", 128, 128), ("double_blocks.0.img_attn.qkv", 384, 128)):
        tensors |= plain(layer, outside, inside, "lora_A.weight", "lora_B.weight")
        tensors[f"{layer}.lora_B.bias"] = random((outside,), seed + 2)
    tensors["single_blocks.0.norm.key_norm.scale"] = 1 + random((128,), seed + 3)
    return tensors


def test_a_control_lora_is_refused_with_the_node_that_loads_it(loras):
    save_file(control_lora(), loras / "depth.safetensors")
    with pytest.raises(ValueError, match=r"^depth\.safetensors: ") as refused:
        pack.load_pair(tiny_models.build("flux"), "depth.safetensors", "depth.safetensors")
    assert str(refused.value) == (
        "depth.safetensors: this is a control LoRA (diffusion_model.single_blocks.0.norm.key_norm.set_weight), which "
        "replaces norms or widens a layer, so it cannot switch phases; load it with Load LoRA before Load Glance LoRA"
    )


def test_a_pair_acts_as_merged_on_a_model_with_a_control_lora(loras):
    """As the refusal advises; the picture that it looks at is wider than the model's own input."""
    model = tiny_models.build("flux")
    slow, fast = adapters.save_pair(model, loras)
    controlled = pack.merged(model, comfy.lora_convert.convert_lora(control_lora()))
    prompts = {"positive": tiny_models.conditioning("flux", 1), "negative": tiny_models.conditioning("flux", 2)}
    for prompt in prompts.values():
        prompt[0][1]["concat_latent_image"] = random((1, 16, 8, 8), 9)
    ours = pack.phase_split(pack.load_pair(controlled, slow, fast)[0], "flux", **prompts)
    merged = [pack.merged(controlled, load_file(loras / file)) for file in (slow, fast)]
    with mock.patch.object(tiny_models, "conditioning", lambda name, seed=1: list(prompts.values())[seed - 1]):
        theirs = pack.chained(*merged, "flux", pack.scheduler(model, "flux"), 5)
    assert pack.relative(ours, theirs) < 1e-5
    assert pack.relative(ours, pack.phase_split(controlled, "flux", **prompts)) > UNUSUAL


def test_a_pair_on_the_layer_that_a_control_lora_widens_is_refused(loras):
    model = tiny_models.build("flux")
    _, files = pair_of(plain("diffusion_model.img_in", 128, 64), loras)
    controlled = pack.merged(model, comfy.lora_convert.convert_lora(control_lora()))
    assert " 0 unmatched" in pack.load_pair(model, *files)[1]
    with pytest.raises(ValueError, match=r"img_in takes 64 features, but another LoRA .* widens this layer to 128"):
        pack.load_pair(controlled, *files)
