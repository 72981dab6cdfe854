"""What is rejected before any work begins, with the value and what to choose instead."""

import importlib.util

import pytest
import torch

from glance_core.errors import TrainingError
from glance_core.training.objectives import check_objective
from glance_core.training.optimizers import has_bitsandbytes, make_optimizer
from glance_core.training.targets import finds_any


@pytest.mark.parametrize("objective, learn, message", [
    ("best", "both", "objective is 'best'; choose one of"),
    ("end_to_end", "nothing", "learn is 'nothing'; choose one of both, adapters, solver"),
    ("teacher_forced", "solver",
     "learn is solver, but teacher_forced trains no solver; choose on_policy or end_to_end"),
])  # fmt: skip
def test_an_unknown_objective_or_one_that_cannot_learn_this_is_rejected(objective, learn, message):
    with pytest.raises(TrainingError) as caught:
        check_objective(objective, learn)
    assert str(caught.value).startswith(message)


def test_fold_guidance_is_rejected_without_a_teacher():
    with pytest.raises(TrainingError, match=r"^fold_guidance needs a teacher, and flow_matching has none; switch it"):
        check_objective("flow_matching", fold_guidance=True)
    assert check_objective("teacher_forced", fold_guidance=True) == "teacher_forced"


def test_targets_that_cannot_be_used_find_nothing():
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.2"]
    assert finds_any(names, "paper", "qwen-image") and finds_any(names, r"to_q$", "sdxl")
    assert not finds_any(names, "paper", "sdxl")
    assert not finds_any(names, "(", "flux") and not finds_any(names, "nowhere", "flux")


def groups():
    return [{"params": [torch.nn.Parameter(torch.ones(1))]}]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_an_optimizer_whose_package_is_missing_says_how_to_install_it():
    assert not has_bitsandbytes()
    with pytest.raises(
        TrainingError, match="adamw8bit needs bitsandbytes; install it with pip install bitsandbytes, or choose adamw"
    ):
        make_optimizer("adamw8bit", groups(), 1e-3, (0.9, 0.999), 0.0)


def test_an_unknown_optimizer_is_rejected():
    with pytest.raises(TrainingError, match="optimizer is 'lion'; choose one of"):
        make_optimizer("lion", groups(), 1e-3, (0.9, 0.999), 0.0)
