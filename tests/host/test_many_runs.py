"""Many runs in one process, with the pair loaded again now and then. Memory, open files and hooks do not grow.

GLANCE_RUNS=500 asks for more runs than the suite's few, as `make soak` does.
"""

import gc
import os
import time
from typing import NamedTuple

import pack
import psutil
import pytest
import tiny_flux
import tiny_models
import torch

RUNS = int(os.environ.get("GLANCE_RUNS", "60"))
WARM = 20  # runs after which a first count is taken, and between two loads of the pair
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


class Counts(NamedTuple):
    """hooks: what hangs on the model's modules, replaced forwards too."""

    tensors: int
    hooks: int
    files: int
    megabytes: float


def count(model):
    gc.collect()
    tensors = sum(type(each) in (torch.Tensor, torch.nn.Parameter) for each in gc.get_objects())
    modules = list(model.model.modules())
    hooks = sum(len(getattr(module, name)) for module in modules for name in HOOKS)
    hooks += sum("forward" in vars(module) for module in modules)
    return Counts(tensors, hooks, len(os.listdir("/proc/self/fd")), psutil.Process().memory_info().rss / 1e6)


def with_fading_lora(model):
    """The MODEL with a LoRA that another node loads, of other strengths by step."""
    inputs = ("glance_tiny_fast.safetensors", 0.7, "custom", 0.0, 2.0, "steps", "1, 0.5")
    return pack.node("LoadPhaseLoRA").execute(model, *inputs).args[0]


@pytest.mark.parametrize("late", [False, True])
def test_runs_in_one_process_leave_nothing_behind(late, node_classes, caplog):
    """late: whether a second model takes the later steps."""
    caplog.set_level("ERROR", "glance")  # each run warns about such a small latent
    model = tiny_flux.load()
    before, second = tiny_models.state(model), tiny_flux.load() if late else None
    prompt, latent = tiny_flux.text("a small red star left"), {"samples": torch.zeros(1, 16, 4, 4)}
    sample = pack.node("PhaseSplitSampler").execute
    began, found, first = time.monotonic(), [], None
    for run in range(RUNS):
        if run % WARM == 0:
            with_pair = with_fading_lora(tiny_flux.with_pair(model))
            late_model = with_fading_lora(second) if late else None
        inputs = (with_pair, prompt, prompt, latent, 3, 1.0, "euler", "auto", 1, 1, 1.0)
        result = sample(*inputs, late_model=late_model).args[0]["samples"]
        first = result if first is None else first
        assert torch.equal(result, first)
        if run in (WARM, RUNS - 1):
            found.append(count(model))
    seconds = time.monotonic() - began
    print(f"{RUNS} runs in {seconds:.1f} s; after {WARM} and at the end: {found}")
    warm, last = found
    assert last.tensors <= warm.tensors + 5 and last.hooks == warm.hooks == 0 and last.files <= warm.files
    assert last.megabytes < warm.megabytes + 30
    tiny_models.assert_bit_exact(model, before)
