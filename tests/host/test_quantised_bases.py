"""A pair on a base in ComfyUI's quantised formats: every branch acts, closer to the truth than ComfyUI's own merge.

The truth is the same weights as plain numbers, with the LoRAs merged.
"""

import os

import adapters
import pack
import pytest
import quantised
import test_other_methods
import tiny_models
import torch
import train_node
from safetensors.torch import load_file, save_file
from test_phase_lora import load, sigmas_of

MODELS = ["flux", "wan", "ltxv", "minimax-h3"]
METHODS = ["loha", "lokr", "oft", "boft", "glora", "difference"]
STEPS = 2
# Not the layers through which ComfyUI encodes prompts before it samples, which training sees encoded.
BLOCKS = r".*(?<!token_refiner\.)blocks\.\d+\..*(attn|qkv|linear).*"


@pytest.mark.parametrize("kind", quantised.FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_every_branch_acts_and_is_closer_to_the_truth_than_comfyuis_merge(name, kind, loras, caplog):
    model, plain = quantised.load(name, kind)
    files = adapters.save_pair(plain, loras)
    before, sigmas = tiny_models.state(model), pack.scheduler(model, name, STEPS, STEPS)
    bare = pack.host_sample(model, name, sigmas)
    rounding = pack.relative(bare, pack.host_sample(plain, name, sigmas))  # of activations, in INT8
    truth, merged = (
        pack.chained(*(pack.merged(each, load_file(loras / file)) for file in files), name, sigmas, STEPS)
        for each in (plain, model)
    )
    with caplog.at_level("WARNING"):
        ours = pack.phase_split(pack.load_pair(model, *files)[0], name, STEPS, STEPS)
    assert "never called" not in caplog.text
    error = pack.relative(ours, truth)
    assert error < 3 * rounding + 1e-5
    assert error <= pack.relative(merged, truth)
    assert torch.equal(pack.flat(pack.host_sample(model, name, sigmas)), pack.flat(bare))
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("method", METHODS if os.environ.get("GLANCE_SWEEP") else ["lokr", "oft"])
@pytest.mark.parametrize("kind", quantised.FORMATS)
def test_other_methods_than_lora_act_on_quantised_weights(kind, method, loras):
    """They never ask for the weight. Where activations are rounded too (INT8), a map of the output meets that."""
    model, plain = quantised.load("flux", kind)
    tensors = test_other_methods.of_layers(plain, getattr(test_other_methods, method))
    save_file(tensors, loras / "1.safetensors")
    before, sigmas = tiny_models.state(model), sigmas_of(plain)[-3:]
    bare, plain_bare = (pack.host_sample(each, "flux", sigmas) for each in (model, plain))
    truth = pack.host_sample(pack.merged(plain, tensors), "flux", sigmas)
    ours = pack.host_sample(load(model, "1.safetensors")[0], "flux", sigmas)
    assert pack.relative(ours, truth) < 3 * pack.relative(bare, plain_bare) + 1e-5
    assert pack.relative(truth, plain_bare) > 1e-2 and torch.equal(pack.host_sample(model, "flux", sigmas), bare)
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("kind", quantised.FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_training_reaches_every_layer_and_leaves_the_base_alone(name, kind, loras, node_classes):
    model, _ = quantised.load(name, kind)
    before, sigmas = tiny_models.state(model), pack.scheduler(model, name, STEPS, STEPS)
    bare = pack.host_sample(model, name, sigmas)
    carrying, *_, report = train_node.train(model, name, steps=2, targets=BLOCKS)
    assert "no gradient reaches" not in report
    assert pack.relative(pack.host_sample(carrying, name, sigmas), bare) > 0
    assert torch.equal(pack.flat(pack.host_sample(model, name, sigmas)), pack.flat(bare))
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("kind", quantised.FORMATS)
def test_another_model_that_is_loaded_can_be_used_again_after_training(kind, loras, node_classes):
    """Training frees it, in the inference mode in which ComfyUI's executor had loaded it."""
    other, _ = quantised.load("wan", kind)
    sigmas = pack.scheduler(other, "wan", STEPS, STEPS)
    bare = pack.host_sample(other, "wan", sigmas)
    train_node.train(tiny_models.build("flux"), "flux", steps=2)
    assert torch.equal(pack.host_sample(other, "wan", sigmas), bare)
