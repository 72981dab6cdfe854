"""Training on every flow architecture of ComfyUI: gradients are right, or training is refused before the first run."""

import os
import re
from unittest import mock

import comfyui
import pytest
import tiny_models
import train_node
from architectures import ARCHITECTURES
from test_gradients import gradient_errors
from test_module_names import lost

NEXT_SIGMA = ["hunyuan-image21-distilled", "hunyuan-video15-meanflow"]
NOT_DIFFERENTIABLE = ["hidream-o1"]  # it writes with `out=`
TRAINED = [name for name in ARCHITECTURES if name not in (*NEXT_SIGMA, *NOT_DIFFERENTIABLE)]

EVERY = [*tiny_models.MODELS, *TRAINED]
FEW = ["flux", "sd1", "wan", "z-image", "krea2", "ltxav", "minimax-h3", "ace-step15"]


# Those with something of their own: kernels without a backward, experts, tensors that are attributes, sound.
SOME = [
    "cosmos-predict2", "anima", "joyimage", "ernie-image", "ace-step", "hunyuan3d21", "omnigen2", "minimax-h3",
    "ltxav", "z-image", "krea2", "flux2-klein",
]  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TRAINED if os.environ.get("GLANCE_SWEEP") else SOME)
def test_gradients_are_those_of_central_differences(name, checkpointing):
    errors = gradient_errors(name, checkpointing)
    assert len(errors) >= 2
    assert max(errors) < 1e-3


def test_a_model_that_cannot_be_differentiated_is_refused_before_the_teacher_runs(loras, output):
    """HiDream-O1 writes with `out=`, which has no backward."""
    rollout = comfyui.pack_module("glance_core.training.distill")
    with (
        mock.patch.object(rollout, "rollout", side_effect=AssertionError("the teacher ran")),
        pytest.raises(ValueError, match=r"^HiDreamO1 \(.*\) cannot be trained, because PyTorch"),
    ):
        train_node.train(tiny_models.build("hidream-o1"), "hidream-o1", gradient_checkpointing=False)


def test_layers_without_an_effect_are_named(loras, output, caplog):
    """OmniGen 2 never calls some of its attention layers."""
    with caplog.at_level("WARNING"):
        *_, report = train_node.train(tiny_models.build("omnigen2"), "omnigen2")
    found = re.search(r"(\d+) of these layers have no effect in this model; the first is (\S+)", report)
    assert found is not None
    assert f"Glance: {found[1]} of the " in caplog.text and found[2] in caplog.text


def test_layers_of_which_none_has_an_effect_are_refused(loras, output):
    model = tiny_models.build("omnigen2")
    *_, report = train_node.train(model, "omnigen2")
    unreached = re.search(r"the first is (\S+)", report)[1]
    with pytest.raises(ValueError, match=r"none of the 1 chosen layers has an effect on Omnigen2"):
        train_node.train(model, "omnigen2", targets=f"^{re.escape(unreached)}$", name="other")


@pytest.mark.parametrize("name", EVERY if os.environ.get("GLANCE_SWEEP") else FEW)
def test_a_trained_pair_loads_whole_in_comfyuis_own_loader(name, loras, output):
    """`make sweep` trains on every architecture; `make test` on a few."""
    model = tiny_models.build(name)
    sizes = {"slow_steps": 1, "fast_steps": 1, "steps": 1, "save_every": 1, "checks": 0}
    train_node.train(model, name, schedule="model", keep="everything", **sizes)
    for file in ("tiny_slow.safetensors", "tiny_fast.safetensors"):
        left, layers = lost(model, loras / file)
        assert left == [] and layers > 0
