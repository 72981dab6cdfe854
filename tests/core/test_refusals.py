"""What is refused before any work begins, with the value and what to choose instead."""

import importlib.util

import pytest
import torch

from glance_core.errors import TrainingError
from glance_core.objectives import refuse_learning
from glance_core.optimizers import has_bitsandbytes, make_optimizer
from glance_core.targets import any_chosen

STATED = {"glance.format": "1", "glance.base": "flux", "glance.ladder": "flux", "glance.teacher_steps": "50", "glance.steps": "1,3|11,50"}


@pytest.mark.parametrize("objective, learn, said", [
    ("best", "both", "objective is 'best'; choose one of"),
    ("end to end", "nothing", "learn is 'nothing'; choose one of both, adapters, solver"),
    ("trajectory", "solver", "learn is solver, and trajectory has no solver to learn; choose"),
])  # fmt: skip
def test_an_objective_that_there_is_not_or_that_cannot_learn_this(objective, learn, said):
    with pytest.raises(TrainingError) as refused:
        refuse_learning(objective, learn)
    assert str(refused.value).startswith(said)


def test_targets_that_mean_nothing_here_choose_nothing():
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.2"]
    assert any_chosen(names, "paper", "qwen-image") and any_chosen(names, r"to_q$", "sdxl")
    assert not any_chosen(names, "paper", "sdxl") and not any_chosen(names, "(", "flux") and not any_chosen(names, "nowhere", "flux")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_an_optimizer_whose_package_is_not_there_says_how_to_get_it():
    assert not has_bitsandbytes()
    with pytest.raises(TrainingError, match="adamw8bit needs bitsandbytes; install it with pip install bitsandbytes, or choose adamw"):
        make_optimizer("adamw8bit", [torch.nn.Parameter(torch.ones(1))], 1e-3, (0.9, 0.999), 0.0)
    with pytest.raises(TrainingError, match="optimizer is 'lion'; choose one of"):
        make_optimizer("lion", [torch.nn.Parameter(torch.ones(1))], 1e-3, (0.9, 0.999), 0.0)
