"""Run after run in one process, with the pair loaded anew now and then: memory, open files and what hangs on the model do not grow.

GLANCE_RUNS=500 asks for more than the suite's few, as `make soak` does.
"""

import gc
import os
import time

import pack
import psutil
import tiny
import torch

from glance_core import tiny as embedded
from glance_core.tiny import words

RUNS = int(os.environ.get("GLANCE_RUNS", "60"))
WARM = 20
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def counted(model):
    """(tensors, things on the model's modules, open files, MB)"""
    gc.collect()
    tensors = sum(type(each) in (torch.Tensor, torch.nn.Parameter) for each in gc.get_objects())
    modules = list(model.model.modules())
    hooks = sum(len(getattr(module, name)) for module in modules for name in HOOKS) + sum("forward" in vars(module) for module in modules)
    process = psutil.Process()
    return tensors, hooks, len(os.listdir("/proc/self/fd")), process.memory_info().rss / 1e6


def test_runs_in_one_process_leave_nothing_behind(node_classes, caplog):
    import nodes

    caplog.set_level("ERROR", "glance")  # each run warns of so small a latent
    model = nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0]
    before = tiny.state(model)
    tokens, pooled = embedded.load_words()(torch.tensor([words.parse("a small red star left")]))
    conditioning, latent = [[tokens, {"pooled_output": pooled}]], {"samples": torch.zeros(1, 16, 4, 4)}
    names = [f"glance_tiny_{phase}.safetensors" for phase in ("slow", "fast")]
    sample = pack.node("PhaseSplitSampler").execute
    began, found, first = time.monotonic(), [], None
    for run in range(RUNS):
        if run % 20 == 0:
            carrying, _ = pack.load_pair(model, *names)
        result = sample(carrying, conditioning, conditioning, latent, 3, 1.0, "euler", "auto", 1, 1, 1.0).args[0]["samples"]
        first = result if first is None else first
        assert torch.equal(result, first)
        if run in (WARM, RUNS - 1):
            found.append(counted(model))
    seconds = time.monotonic() - began
    print(f"{RUNS} runs in {seconds:.1f} s; after {WARM} and at the end: tensors, hooks, files, MB {found}")
    (tensors, hooks, files, memory), last = found
    assert last[0] <= tensors + 5 and last[1] == hooks == 0 and last[2] <= files
    assert last[3] < memory + 30
    tiny.assert_bit_exact(model, before)
