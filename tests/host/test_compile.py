"""torch.compile, by the host's own TorchCompileModel."""

import adapters
import pack
import tiny
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch._dynamo.utils import counters


def graphs_of(model):
    """Samples it and returns (samples, how many graphs were compiled for it)."""
    before = counters["stats"]["unique_graphs"]
    samples = pack.phase_split(model, "flux")
    return samples, counters["stats"]["unique_graphs"] - before


def test_a_compiled_model_gives_the_same_latents_with_at_most_one_more_graph_per_phase(loras):
    torch._dynamo.reset()
    counters.clear()
    model = tiny.build("flux")
    with_pair, _ = pack.load_pair(model, *adapters.save_pair(model, loras))
    compiled = TorchCompileModel.execute(with_pair, "inductor").args[0]
    expected = pack.phase_split(with_pair, "flux")
    _, bare_graphs = graphs_of(TorchCompileModel.execute(model, "inductor").args[0])
    samples, graphs = graphs_of(compiled)
    assert pack.relative(samples, expected) < 1e-4
    assert bare_graphs > 0
    assert graphs <= 2 * bare_graphs
    again, more = graphs_of(compiled)
    assert more == 0
    assert torch.equal(again, samples)
