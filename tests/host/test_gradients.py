"""LoRA gradients on the host's own models, loaded under inference mode, against central differences."""

import comfyui
import pytest
import tiny
import torch

STORED = {"fp32": {}, "bf16-stored": {"dtype": torch.bfloat16, "manual_cast": torch.float32},
          "fp8-stored": {"dtype": torch.float8_e4m3fn, "manual_cast": torch.float32}}  # fmt: skip


class core:
    """The core's modules as the pack in the host imports them."""

    frozen, lora_layers, objectives, saved, student = (
        comfyui.pack_module(f"glance_core.{name}") for name in ("frozen", "lora_layers", "objectives", "saved", "student")
    )


def gradients(name, checkpointing, targets="attention", cfg=1.0, sigma=0.6, **built):
    """(relative distance of the gradient of backward to central differences, tensors compared)"""
    torch.manual_seed(0)
    model = tiny.build(name, **built)
    glue = comfyui.pack_module("nodes.student")
    result = []

    def work(conditioned, latents):
        student = glue.student(model, conditioned, cfg, glue.slots(model, targets), checkpointing)
        layers = core.lora_layers.LoraLayers(student.slots, core.lora_layers.Lora(2, 4.0, "gaussian"), "slow", 0)
        generator = torch.Generator().manual_seed(5)
        for name_, tensor in layers.tensors().items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 / tensor.shape[1] ** 0.5 if name_.endswith("A") else 0.1))
        shape = (1, *tiny.MODELS[name].latent)
        drawn = tuple(torch.randn(shape, generator=generator) for _ in range(2))
        drawn = drawn[0], torch.tensor([sigma]), drawn[1]
        rows = torch.tensor([0])
        changed = core.student.changed_forwards(student, layers)
        with core.lora_layers.frozen(student.model):
            saves = core.saved.Saves()
            for _ in range(2):  # the first step learns what the blocks write into, the second knows it
                for parameter in layers.parameters():
                    parameter.grad = None
                core.student.backward(student, changed, drawn, rows, saves)
            given = {
                key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in zip(layers.tensors(), layers.parameters(), strict=True)
            }
            whole = torch.stack([g.double().square().sum() for g in given.values()]).sum().sqrt().item()
            far = []
            for key, tensor in layers.tensors().items():
                gradient = given[key]
                size = gradient.norm().item()
                if size < 0.06 * whole:  # too small beside the rest for a difference of fp32 losses
                    continue
                with core.frozen.forwards(changed), torch.no_grad():
                    slopes = list(
                        central_differences(
                            lambda: core.objectives.losses(student.velocity, drawn, rows).double().mean().item(), tensor, gradient / size
                        )
                    )
                far.append(min(abs(slope - size) / size for slope in slopes))
            result.append((max(far), len(far)))

    latents = tiny.empty_latent(name)["samples"]
    glue.run(model, tiny.conditioning(name, 1), tiny.conditioning(name, 2), latents, 0, "none", 0, work)
    return result[0]


def central_differences(loss, tensor, way):
    """The slope of the loss along `way` (a unit vector), of fourth order, at several step widths: too wide bends, too narrow rounds."""
    before = tensor.clone()
    for width in (0.5, 0.25, 0.1, 0.04):
        step, values = width * tensor.norm().item() / len(tensor) ** 0.5, {}
        for times in (-2, -1, 1, 2):
            tensor.copy_(before + times * step * way)
            values[times] = loss()
        tensor.copy_(before)
        yield (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_gradients_are_those_of_central_differences(name, checkpointing):
    far, compared = gradients(name, checkpointing)
    assert compared >= 4
    assert far < 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name, targets, stored, cfg", [
    ("flux", "all linear", "fp32", 1.0), ("flux", r"^img_in$|^txt_in$|qkv", "bf16-stored", 1.0), ("qwen-image", "paper", "fp8-stored", 4.5),
    ("hunyuan-video", "all linear", "fp8-stored", 1.0), ("wan", "attention", "bf16-stored", 3.0),
])  # fmt: skip
def test_gradients_hold_for_other_targets_stored_precisions_and_under_guidance(name, targets, stored, cfg, checkpointing):
    far, compared = gradients(name, checkpointing, targets, cfg, **STORED[stored])
    assert compared >= 2
    assert far < 1e-3
