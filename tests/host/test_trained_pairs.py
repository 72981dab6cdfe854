"""What training returns is what its files give in a sampler; previews, comparison and calibration run on every model.

`make sweep` tries every architecture, `make test` a few.
"""

import os

import comfy.samplers
import comfy.sd
import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node
from safetensors.torch import load_file
from test_training_architectures import EVERY

from glance_core.lora.reader import read_adapter

SWEEP = os.environ.get("GLANCE_SWEEP")


@pytest.mark.parametrize("name", EVERY if SWEEP else ["flux", "qwen-image", "sd1", "z-image", "minimax-h3"])
def test_the_trained_function_is_the_loaded_function(name, loras, output):
    """The differentiable model of the last loss, the saved pair in a sampler, and ComfyUI's own merge agree."""
    model = tiny_models.build(name)
    trained, loaded, merged, base = velocities(model, name, loras)
    assert relative(trained, loaded) < 1e-5 and relative(trained, merged) < 1e-5 and relative(base, loaded) > 1e-3


@pytest.mark.parametrize("name", ["flux", "qwen-image", "sd1"])
def test_the_trained_function_is_the_loaded_function_on_fp8_weights(name, loras, output):
    model = tiny_models.build(name, dtype=torch.float8_e4m3fn, manual_cast=torch.float32)
    trained, loaded, _, base = velocities(model, name, loras)
    assert relative(trained, loaded) < 1e-5 and relative(base, loaded) > 1e-3


@pytest.mark.parametrize("name", EVERY if SWEEP else ["z-image", "hunyuan3d2", "ltxav"])
def test_previews_comparison_and_calibration_run(name, loras, output, node_classes):
    model = tiny_models.build(name)
    before = tiny_models.state(model)
    inputs = {"steps": 2, "slow_steps": 1, "fast_steps": 1, "learning_rate": 0.02, "schedule": "model"}
    trained, *_, report = train_node.train(model, name, preview_every=1, **inputs)
    assert ("tiny_slow.preview.png" in report) == has_previews(model)
    prompts, latent = [tiny_models.conditioning(name, seed) for seed in (1, 2)], tiny_models.empty_latent(name)
    compared = pack.node("GlanceCompare").execute(model, trained, *prompts, latent, Pixels(), 7, 2.0, "dpmpp_2m")
    grid, table = compared.args
    for row in ("| teacher | 50 | 100 |", "| pair | 2 |", "| base, euler |", "| base, dpmpp_2m |"):
        assert row in table
    assert grid.isfinite().all() and "nan" not in table
    common = {"model": [model], "positive": [prompts[0]], "negative": [prompts[1]], "cfg": [2.0], "seed": [3]}
    common |= {"latent_image": [latent], "schedule": ["auto"], "model_calls": [4], "seconds": [1.0]}
    settings = pack.node("CalibrateGlance").execute(teacher_runs=[4], **common).args[0]
    assert pack.flat(pack.phase_split(model, name, sampler="auto", settings=settings)).isfinite().all()
    tiny_models.assert_bit_exact(model, before)


class Pixels:
    """Takes latents for pictures: the models are too small to have a VAE."""

    def decode(self, latent):
        return latent.movedim(1, -1)[..., :3].sigmoid() if latent.ndim > 3 else latent[..., None, :3].sigmoid()


def has_previews(model):
    """Whether ComfyUI knows colours for the model's latents."""
    return model.model.latent_format.latent_rgb_factors is not None


def relative(a, b):
    return float((a - b).norm() / b.norm())


def velocities(model, name, loras):
    """Train; return the velocities of the differentiable model, the loaded pair, ComfyUI's merge, and the base."""
    train_node.train(model, name, schedule="model", learning_rate=0.02, steps=6)
    adapter = read_adapter(loras / "tiny_slow.safetensors")
    latent = comfyui.pack_module("nodes.host.nested").packed(tiny_models.empty_latent(name)["samples"])
    x = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([adapter.pair.sigmas[0]])
    base, trained = training_velocities(model, name, adapter, x, sigma)
    loaded, _ = pack.load_pair(model, "tiny_slow.safetensors", "tiny_fast.safetensors")
    merged = comfy.sd.load_lora_for_models(model, None, load_file(loras / "tiny_slow.safetensors"), 1.0, 0)[0]
    return trained, *(sampling_velocity(each, name, x, sigma) for each in (loaded, merged)), base


def training_velocities(model, name, adapter, x, sigma):
    """The velocities of the base and of the differentiable model with this adapter."""
    glue = comfyui.pack_module("nodes.host.training_model")
    lora_layers, student, forward_patches = (
        comfyui.pack_module(f"glance_core.training.{module}")
        for module in ("lora_layers", "student", "autograd.forward_patches")
    )

    def work(conditioned, latents):
        chosen = glue.trained_slots(model, "attention")
        slots = {slot: chosen[slot] for slot in adapter.factors}
        learner = glue.student_of(model, conditioned.velocity(1.0), slots, False)
        layers = lora_layers.LoraLayers(learner.slots, lora_layers.LoraSettings(2, 4.0), "slow", 0)
        for slot in learner.slots:
            down, up = layers.pair(slot)
            down.detach().copy_(adapter.factors[slot].down)
            up.detach().copy_(adapter.factors[slot].up)
        base = learner.velocity(x, sigma, torch.tensor([0]))
        with forward_patches.patched_forwards(student.training_forwards(learner, layers)):
            return base, learner.velocity(x, sigma, torch.tensor([0])).detach()

    latents = tiny_models.empty_latent(name)["samples"]
    inputs = glue.TrainingInputs(model, tiny_models.conditioning(name, 1), [], latents, seed=0)
    return glue.with_loaded_model(inputs, work)


def sampling_velocity(model, name, x, sigma):
    """The velocity at x in a run of ComfyUI's sampler."""
    seen = []

    def one_step(inner, noise, sigmas, extra_args=None, **_):
        denoised = inner(x, sigma, **(extra_args or {}))
        seen.append((x - denoised) / sigma)
        return noise

    pack.host_sample(model, name, torch.tensor([1.0, 0.0]), sampler=comfy.samplers.KSAMPLER(one_step))
    return seen[0]
