"""The trial step before training: right gradients pass in every precision, wrong ones are refused at once."""

import os
from contextlib import nullcontext
from unittest import mock

import comfyui
import pytest
import quantised
import tiny_models
import torch
import train_node
from test_training_architectures import TRAINED

EVERY = [*tiny_models.MODELS, *TRAINED]
SOME = ["flux", "qwen-image", "wan", "z-image", "krea2", "hunyuan3d21"]
NAMES = EVERY if os.environ.get("GLANCE_SWEEP") else SOME
OF_QUANTISED = ["flux", "wan", "ltxv", "minimax-h3"] if os.environ.get("GLANCE_SWEEP") else ["flux", "minimax-h3"]
BLOCKS = r".*(?<!token_refiner\.)blocks\.\d+\..*(attn|qkv|linear).*"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def tried(model, name, targets="attention", checkpointing=True):
    """Run the trial step at two noise levels."""
    glue = comfyui.pack_module("nodes.host.training_model")
    preflight = comfyui.pack_module("glance_core.training.preflight").preflight

    def work(conditioned, latents):
        slots = glue.trained_slots(model, targets)
        student = glue.student_of(model, conditioned.velocity(1.0), slots, checkpointing)
        for sigma in (0.95, 0.4):
            x = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
            preflight(student, x, sigma, torch.tensor([0]))

    prompts = tiny_models.conditioning(name, 1), tiny_models.conditioning(name, 2)
    latents = tiny_models.empty_latent(name)["samples"]
    glue.with_loaded_model(glue.TrainingInputs(model, *prompts, latents, seed=0, offload="none"), work)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_right_gradients_pass(name, precision, node_classes):
    model = tiny_models.build(name, PRECISIONS[precision])
    before = tiny_models.state(model)
    tried(model, name)
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", quantised.FORMATS)
@pytest.mark.parametrize("name", OF_QUANTISED)
def test_right_gradients_of_quantised_bases_pass(name, kind, precision, node_classes):
    tried(quantised.load(name, kind, PRECISIONS[precision])[0], name, BLOCKS)


def test_gradients_that_a_mixture_of_experts_stops_are_refused_before_the_teacher_runs(loras, output):
    """ComfyUI's Hunyuan3D 2.1 computes its experts without gradients, which training lifts; here it does not."""
    fit = comfyui.pack_module("nodes.host.autograd_fit")
    distill = comfyui.pack_module("glance_core.training.distill")
    with (
        mock.patch.object(fit, "_gradients_allowed", return_value=nullcontext()),
        mock.patch.object(distill, "rollout", side_effect=AssertionError("the teacher ran")),
        pytest.raises(ValueError, match=r"^Hunyuan3Dv2_1 .* its gradient is 2 % wrong: something in the model stops"),
    ):
        train_node.train(tiny_models.build("hunyuan3d21"), "hunyuan3d21")


def test_a_layer_whose_gradient_is_stopped_is_not_taken_for_one_without_effect(loras, output):
    model = tiny_models.build("flux")
    attention = model.model.diffusion_model.double_blocks[0].img_attn.norm
    norm = attention.forward
    attention.forward = lambda q, k, v: norm(q.detach(), k.detach(), v)
    with pytest.raises(ValueError, match="no gradient reaches some of the chosen layers though they change its answer"):
        train_node.train(model, "flux", targets=r"^double_blocks\.0\.img_attn\.qkv$|transformer_blocks\.0\.attn\.to_q$")
