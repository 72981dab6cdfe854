"""LoRA gradients on ComfyUI's own models, loaded under inference mode, against central differences."""

import adapters
import comfy.sd
import comfyui
import pytest
import tiny_models
import torch

STORED = {
    "fp32": {},
    "bf16-stored": {"dtype": torch.bfloat16, "manual_cast": torch.float32},
    "fp8-stored": {"dtype": torch.float8_e4m3fn, "manual_cast": torch.float32},
}
SIGMA = 0.6
SMALL = 0.06  # of the whole gradient's norm: too small beside the rest for a difference of float32 losses
CLOSE = 1e-4  # no other width is tried then


class core:
    """The core's modules as the pack in ComfyUI imports them."""

    forward_patches, inplace, lora_layers, objectives, student = (
        comfyui.pack_module(f"glance_core.training.{name}")
        for name in ("autograd.forward_patches", "autograd.inplace", "lora_layers", "objectives", "student")
    )


def gradient_errors(name, checkpointing, targets="attention", cfg=1.0, model=None, **built):
    """The relative distance of backward's gradient to central differences, for each tensor that is big enough."""
    torch.manual_seed(0)
    model = tiny_models.build(name, **built) if model is None else model
    glue = comfyui.pack_module("nodes.host.training_model")

    def work(conditioned, latents):
        slots = glue.trained_slots(model, targets)
        student = glue.student_of(model, conditioned.velocity(cfg), slots, checkpointing)
        return errors_of(student, tuple(latents.shape))  # several parts come packed into one row

    prompts = tiny_models.conditioning(name, 1), tiny_models.conditioning(name, 2)
    latents = tiny_models.empty_latent(name)["samples"]
    return glue.with_loaded_model(glue.TrainingInputs(model, *prompts, latents, seed=0, offload="none"), work)


def errors_of(student, shape):
    generator = torch.Generator().manual_seed(5)
    layers = random_layers(student, generator)
    x, target = (torch.randn(shape, generator=generator) for _ in range(2))
    drawn, rows = core.objectives.Drawn(x, torch.tensor([SIGMA]), target), torch.tensor([0])
    forwards = core.student.training_forwards(student, layers)

    def loss():
        return core.objectives.losses(student.velocity, drawn, rows).double().mean().item()

    differentiable = core.student.Differentiable(student, forwards, core.inplace.InplaceTracker())
    with core.lora_layers.frozen(student.model):
        gradients = backward_gradients(differentiable, layers, drawn, rows)
        norm = torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt().item()
        errors = []
        for key, tensor in layers.tensors().items():
            size = gradients[key].norm().item()
            if size < SMALL * norm:
                continue
            error = float("inf")
            with core.forward_patches.patched_forwards(forwards), torch.no_grad():
                for slope in central_differences(loss, tensor, gradients[key] / size):
                    error = min(error, abs(slope - size) / size)
                    if error < CLOSE:
                        break
            errors.append(error)
    return errors


def random_layers(student, generator):
    layers = core.lora_layers.LoraLayers(student.slots, core.lora_layers.LoraSettings(2, 4.0, "gaussian"), "slow", 0)
    for name, tensor in layers.tensors().items():
        size = 0.3 / tensor.shape[1] ** 0.5 if name.endswith("A") else 0.1
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * size)
    return layers


def backward_gradients(differentiable, layers, drawn, rows):
    """The gradients of a second step; the first step learns what the blocks write into."""
    for _ in range(2):
        for parameter in layers.parameters():
            parameter.grad = None
        differentiable.backward(drawn, rows)
    return {
        key: torch.zeros_like(p) if p.grad is None else p.grad
        for key, p in zip(layers.tensors(), layers.parameters(), strict=True)
    }


def central_differences(loss, tensor, direction):
    """The slope of the loss along `direction` (a unit vector), of fourth order, at several widths.

    At wide ones the curve bends, at narrow ones the losses are rounded, so the usual ones come first.
    """
    before = tensor.clone()
    for width in (0.1, 0.25, 0.04, 0.5, 0.02, 0.01, 0.003):
        step, values = width * tensor.norm().item() / len(tensor) ** 0.5, {}
        for times in (-2, -1, 1, 2):
            tensor.copy_(before + times * step * direction)
            values[times] = loss()
        tensor.copy_(before)
        yield (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_gradients_are_those_of_central_differences(name, checkpointing):
    errors = gradient_errors(name, checkpointing)
    assert len(errors) >= 4
    assert max(errors) < 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name, targets, stored, cfg", [
    ("flux", "all linear", "fp32", 1.0),
    ("flux", r"^img_in$|^txt_in$|qkv", "bf16-stored", 1.0),
    ("qwen-image", "paper", "fp8-stored", 4.5),
    ("hunyuan-video", "all linear", "fp8-stored", 1.0),
    ("wan", "attention", "bf16-stored", 3.0),
])  # fmt: skip
def test_gradients_hold_for_other_targets_and_stored_precisions_and_with_guidance(
    name, targets, stored, cfg, checkpointing
):
    errors = gradient_errors(name, checkpointing, targets, cfg, **STORED[stored])
    assert len(errors) >= 2
    assert max(errors) < 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layers", ["", "attn.qkv"], ids=["all layers", "trained ones"])
@pytest.mark.parametrize("how", ["load_lora_for_models", "load_bypass_lora_for_models"])
def test_gradients_go_through_another_lora(how, layers, checkpointing):
    model = tiny_models.build("flux")
    style = {key: value for key, value in adapters.state_dict(model, seed=3).items() if layers in key}
    errors = gradient_errors("flux", checkpointing, model=getattr(comfy.sd, how)(model, None, style, 1.0, 0)[0])
    assert len(errors) >= 4
    assert max(errors) < 1e-3
