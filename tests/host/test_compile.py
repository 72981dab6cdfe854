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
