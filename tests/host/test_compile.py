"""torch.compile, by ComfyUI's own TorchCompileModel."""

import adapters
import pack
import pytest
import tiny_models
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch._dynamo.utils import counters


def sample_and_count(model):
    """Sample; return (samples, how many graphs were compiled for it)."""
    before = counters["stats"]["unique_graphs"]
    samples = pack.phase_split(model, "flux")
    return samples, counters["stats"]["unique_graphs"] - before


def compiled(model, backend):
    torch._dynamo.reset()
    return TorchCompileModel.execute(model, backend).args[0]


@pytest.fixture
def model():
    return tiny_models.build("flux")


def test_compiled_model_gives_the_same_latents(model, loras):
    with_pair, _ = pack.load_pair(model, *adapters.save_pair(model, loras))
    expected = pack.phase_split(with_pair, "flux")
    compiled_pair = compiled(with_pair, "inductor")
    samples, _ = sample_and_count(compiled_pair)
    assert pack.relative(samples, expected) < 1e-4
    again, more = sample_and_count(compiled_pair)
    assert torch.equal(again, samples)
    assert more == 0


def test_switching_compiles_nothing_again_and_a_phase_without_branches_once(model, loras):
    """ComfyUI's own graph breaks make about twenty graphs of one compilation, so the base's count is the measure."""
    slow, fast = adapters.save_pair(model, loras)
    _, base = sample_and_count(compiled(model, "eager"))
    _, pair = sample_and_count(compiled(pack.load_pair(model, slow, fast)[0], "eager"))
    _, slow_only = sample_and_count(compiled(pack.load_pair(model, slow, fast, 1.0, 0.0)[0], "eager"))
    assert base > 0
    assert pair - base <= 2
    assert slow_only <= 2 * base


@pytest.fixture
def loaded_with_a_compiled_block():
    """A model whose first block some node compiled, loaded, so that its layers' names have `_orig_mod.` in them."""
    torch._dynamo.reset()
    model = tiny_models.build("wan")
    block = torch.compile(model.model.diffusion_model.blocks[0], backend="eager")
    model.add_object_patch("diffusion_model.blocks.0", block)
    model.patch_model()
    yield model
    model.unpatch_model()


def test_a_compiled_block_is_no_reason_to_reject_a_pair(loaded_with_a_compiled_block, loras):
    model = loaded_with_a_compiled_block
    assert any("_orig_mod" in name for name in model.model.state_dict())
    plain = tiny_models.build("wan")
    files = adapters.save_pair(plain, loras)
    expected = pack.phase_split(pack.load_pair(plain, *files)[0], "wan")
    with_pair, report = pack.load_pair(model, *files)
    assert report.count(" 0 unmatched") == 2
    assert pack.relative(pack.phase_split(with_pair, "wan"), expected) < 1e-6
