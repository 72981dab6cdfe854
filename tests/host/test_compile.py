"""torch.compile, by the host's own TorchCompileModel."""

import adapters
import pack
import pytest
import tiny
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch._dynamo.utils import counters


def graphs_of(model):
    """Samples it and returns (samples, how many graphs were compiled for it)."""
    before = counters["stats"]["unique_graphs"]
    samples = pack.phase_split(model, "flux")
    return samples, counters["stats"]["unique_graphs"] - before


def compiled(model, backend):
    torch._dynamo.reset()
    return TorchCompileModel.execute(model, backend).args[0]


@pytest.fixture
def model():
    return tiny.build("flux")


def test_a_compiled_model_gives_the_same_latents(model, loras):
    with_pair, _ = pack.load_pair(model, *adapters.save_pair(model, loras))
    expected = pack.phase_split(with_pair, "flux")
    compiled_pair = compiled(with_pair, "inductor")
    samples, _ = graphs_of(compiled_pair)
    assert pack.relative(samples, expected) < 1e-4
    again, more = graphs_of(compiled_pair)
    assert torch.equal(again, samples)
    assert more == 0


def test_switching_compiles_nothing_again_and_a_phase_without_branches_once(model, loras):
    """The host's own graph breaks make some twenty graphs of one compilation, give or take one: the bare model's count is the measure."""
    slow, fast = adapters.save_pair(model, loras)
    _, bare = graphs_of(compiled(model, "eager"))
    _, pair = graphs_of(compiled(pack.load_pair(model, slow, fast)[0], "eager"))
    _, slow_only = graphs_of(compiled(pack.load_pair(model, slow, fast, 1.0, 0.0)[0], "eager"))
    assert bare > 0
    assert pair - bare <= 2
    assert slow_only <= 2 * bare
