"""A pair on a base in GGUF, through the real ComfyUI-GGUF: every branch acts, training is right, the file stays as is.

The truth is the same weights as plain numbers, which the `gguf` package reads back from the file's own blocks.
"""

import os

import adapters
import comfy.model_management
import folder_paths
import gguf_models
import pack
import pytest
import tiny_models
import torch
import train_node
from safetensors.torch import load_file
from test_gradients import gradient_errors

pytestmark = pytest.mark.skipif(gguf_models.PACK is None, reason=gguf_models.MISSING)
SWEEP = bool(os.environ.get("GLANCE_SWEEP"))
MODELS = list(gguf_models.ARCHITECTURES) if SWEEP else ["flux", "wan", "ltxv"]
KINDS = ["Q8_0", "Q4_0", "Q5_0", "BF16"] if SWEEP else ["Q8_0", "Q4_0"]
TRAINED = [(kind, each) for kind in KINDS for each in (False, True)] if SWEEP else [("Q8_0", True), ("Q4_0", False)]
STEPS = 2
ROUNDING = 1e-5  # of sums in float32 in another order; the weights are equal


@pytest.fixture
def folder(tmp_path, monkeypatch, loras):
    """ComfyUI's folder of diffusion models in this test."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".gguf"}))
    return tmp_path


def assert_untouched(model, before):
    """The base has the same bytes, and nothing is left on it, nor on ComfyUI-GGUF's own tensors."""
    tiny_models.assert_bit_exact(model, before)
    assert not any(getattr(parameter, "patches", None) for parameter in model.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_branch_acts_as_a_merge_into_the_weights_that_the_file_means(name, kind, folder, loras, caplog):
    model, plain = gguf_models.load(name, kind, folder)
    packed = [p for p in model.model.parameters() if p.dtype == torch.uint8]
    assert len(packed) >= 10  # else the base would not be quantised
    files = adapters.save_pair(plain, loras)
    before, sigmas = tiny_models.state(model), pack.scheduler(model, name, STEPS, STEPS)
    bare = pack.host_sample(model, name, sigmas)
    truth, merged = (
        pack.chained(*(pack.merged(each, load_file(loras / file)) for file in files), name, sigmas, STEPS)
        for each in (plain, model)
    )
    carrying, report = pack.load_pair(model, *files)
    assert report.count(" 0 unmatched") == 2
    with caplog.at_level("WARNING"):
        ours = pack.phase_split(carrying, name, STEPS, STEPS)
    assert "never called" not in caplog.text
    assert pack.relative(ours, truth) < ROUNDING
    assert pack.relative(ours, merged) < ROUNDING  # as ComfyUI-GGUF itself merges
    for phase in ((1, 0), (0, 1)):  # each of the two changes the picture by itself
        alone = pack.phase_split(pack.load_pair(model, *files, *phase)[0], name, STEPS, STEPS)
        assert min(pack.relative(alone, other) for other in (bare, ours)) > 1e-3
    assert torch.equal(pack.flat(pack.host_sample(model, name, sigmas)), pack.flat(bare))
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1"])
def test_weights_that_the_advanced_loader_reads_in_full_precision_are_used_so(kind, folder, loras):
    model, plain = gguf_models.load("flux", kind, folder, "float32")
    files = adapters.save_pair(plain, loras)
    truth = pack.phase_split(pack.load_pair(plain, *files)[0], "flux", STEPS, STEPS)
    assert pack.relative(pack.phase_split(pack.load_pair(model, *files)[0], "flux", STEPS, STEPS), truth) < ROUNDING


@pytest.mark.parametrize("kind, checkpointing", TRAINED)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_central_differences(name, kind, checkpointing, folder):
    model, _ = gguf_models.load(name, kind, folder)
    before = tiny_models.state(model)
    errors = gradient_errors(name, checkpointing, model=model)
    assert len(errors) >= 4
    assert max(errors) < 1e-3
    assert_untouched(model, before)


def test_gradients_hold_on_a_base_with_a_lora_of_comfyui_gguf(folder, loras):
    """ComfyUI-GGUF merges it whenever it unpacks a weight."""
    model, plain = gguf_models.load("flux", "Q8_0", folder)
    before = tiny_models.state(model)
    merged = pack.merged(model, adapters.state_dict(plain, 5))
    errors = gradient_errors("flux", True, model=merged)
    assert len(errors) >= 4
    assert max(errors) < 1e-3
    comfy.model_management.unload_all_models()
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_training_reaches_every_layer_and_what_is_trained_is_what_loads(name, kind, folder, loras, output):
    model, plain = gguf_models.load(name, kind, folder)
    before, sigmas = tiny_models.state(model), pack.scheduler(model, name, STEPS, STEPS)
    bare = pack.host_sample(model, name, sigmas)
    carrying, slow, fast, _, report = train_node.train(model, name, steps=2)
    assert "no effect in this model" not in report
    ours = pack.host_sample(carrying, name, sigmas)
    assert pack.relative(ours, bare) > 1e-3
    loaded = pack.load_pair(plain, *(os.path.basename(file) for file in (slow, fast)))[0]
    assert pack.relative(ours, pack.host_sample(loaded, name, sigmas)) < ROUNDING
    assert torch.equal(pack.flat(pack.host_sample(model, name, sigmas)), pack.flat(bare))
    assert_untouched(model, before)


def test_an_interrupt_in_sampling_or_training_leaves_the_base_alone(folder, loras, output):
    model, plain = gguf_models.load("flux", "Q8_0", folder)
    before, sigmas = tiny_models.state(model), pack.scheduler(model, "flux", STEPS, STEPS)
    bare = pack.host_sample(model, "flux", sigmas)
    carrying = pack.load_pair(model, *adapters.save_pair(plain, loras))[0]
    interrupt = comfy.model_management.InterruptProcessingException

    def interrupted(step, *_):
        if step == 1:
            raise interrupt

    with pytest.raises(interrupt):
        pack.host_sample(carrying, "flux", sigmas, callback=interrupted)
    assert_untouched(model, before)
    with pytest.raises(interrupt), train_node.stopped_at(3, interrupt()):
        train_node.train(model, "flux")
    assert_untouched(model, before)
    assert torch.equal(pack.host_sample(model, "flux", sigmas), bare)


def test_a_lora_of_another_size_is_refused_before_the_first_step(folder, loras):
    model, _ = gguf_models.load("flux", "Q4_0", folder)
    other = tiny_models.build("flux", hidden_size=256, num_heads=2)
    with pytest.raises(ValueError, match=r"takes 128 and gives 128 features, .* for another model size$"):
        pack.load_pair(model, *adapters.save_pair(other, loras))
