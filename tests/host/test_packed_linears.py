"""A pair on Linears whose weight is packed into another shape: it acts, or is refused in one sentence."""

import importlib.util
import re
from unittest import mock

import adapters
import pack
import pytest
import tiny_models
import torch
import train_node
from packed_linears import NF4, Packed, PackedSilently, Scaled, build
from safetensors.torch import load_file, save_file
from test_gradients import gradient_errors

WITHOUT = importlib.util.find_spec("bitsandbytes") is None
REAL = pytest.param(NF4, marks=pytest.mark.skipif(WITHOUT, reason="bitsandbytes is not installed"))
STEPS = 2
ROUNDING = 1e-5  # of sums in float32 in another order; the weights are equal


@pytest.mark.parametrize("kind", [Packed, PackedSilently, Scaled, REAL])
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_pair_acts_as_a_merge_into_the_numbers_that_are_packed(name, kind, loras, caplog):
    model, plain = build(name, kind)
    files = adapters.save_pair(plain, loras)
    before, sigmas = tiny_models.state(model), pack.scheduler(model, name, STEPS, STEPS)
    bare = pack.host_sample(model, name, sigmas)
    assert pack.relative(bare, pack.host_sample(plain, name, sigmas)) < ROUNDING
    merged = [pack.merged(plain, load_file(loras / file)) for file in files]
    truth = pack.chained(*merged, name, sigmas, STEPS)
    with caplog.at_level("WARNING"):
        ours = pack.phase_split(pack.load_pair(model, *files)[0], name, STEPS, STEPS)
    assert "never called" not in caplog.text
    assert pack.relative(ours, truth) < ROUNDING
    assert pack.relative(ours, bare) > 1e-2
    assert torch.equal(pack.host_sample(model, name, sigmas), bare)
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("kind", [Packed, REAL])
def test_a_lora_of_another_size_is_refused_before_the_first_step(kind, loras):
    model, _ = build("flux", kind)
    other = tiny_models.build("flux", hidden_size=256, num_heads=2)
    with pytest.raises(ValueError, match=r"takes 128 and gives 128 features, .* for another model size$"):
        pack.load_pair(model, *adapters.save_pair(other, loras))


@pytest.mark.parametrize("hidden", [256, 64])
def test_a_lora_of_another_size_on_a_layer_that_does_not_say_its_own_is_refused_in_one_sentence(hidden, loras):
    """Its first call tells, so no step is done yet."""
    model, _ = build("flux", PackedSilently)
    before = tiny_models.state(model)
    heads = {"num_heads": 2} if hidden == 256 else {"axes_dim": [8, 28, 28]}
    other = tiny_models.build("flux", hidden_size=hidden, **heads)
    carrying = pack.load_pair(model, *adapters.save_pair(other, loras))[0]
    sigmas = pack.scheduler(model, "flux", STEPS, STEPS)
    done = mock.Mock()
    with pytest.raises(ValueError, match=rf"lin takes 128 .* factors take {hidden} .* another model size$") as error:
        pack.host_sample(carrying, "flux", sigmas, callback=done)
    assert "\n" not in str(error.value)
    assert not done.called
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", [Packed, Scaled, REAL])
def test_gradients_are_those_of_central_differences(kind, checkpointing):
    model, _ = build("flux", kind)
    before = tiny_models.state(model)
    errors = gradient_errors("flux", checkpointing, model=model)
    assert len(errors) >= 4
    assert max(errors) < 1e-3
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("kind", [Packed, Scaled, REAL])
def test_training_gets_the_layers_of_the_plain_model(kind, loras, output):
    model, plain = build("flux", kind)
    before = tiny_models.state(model)
    reports = [train_node.train(each, "flux", steps=1, name=f"on_{i}")[-1] for i, each in enumerate((model, plain))]
    counts = [re.search(r"(\d+) layers, seed", report)[1] for report in reports]
    assert counts[0] == counts[1] and int(counts[0]) > 10
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("layer", [torch.nn.Embedding(7, 16), torch.nn.LayerNorm(16)], ids=["embedding", "norm"])
def test_a_lora_on_a_layer_that_multiplies_by_no_matrix_is_refused(layer, loras):
    model = tiny_models.build("flux")
    model.model.diffusion_model.double_blocks[0].register_module("other", layer.requires_grad_(False))
    files = adapters.save_pair(model, loras)
    for file in files:
        key = "diffusion_model.double_blocks.0.other"
        more = {f"{key}.lora_A.weight": torch.ones(2, 16), f"{key}.lora_B.weight": torch.ones(7, 2)}
        save_file(load_file(loras / file) | more, loras / file)
    expected = f"other is a {type(layer).__name__}, whose weight cannot switch phases"
    with pytest.raises(ValueError, match=expected):
        pack.load_pair(model, *files)
