"""Models and latents that no table knows: they sample and train with ComfyUI's own sigmas, and the log says so."""

import adapters
import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.supported_models_base
import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node
from comfy_extras.nodes_custom_sampler import BasicScheduler
from safetensors.torch import load_file
from test_calibrate_node import calibrated
from test_training_inputs import teacher_of
from tiny_models import Tiny

from glance_core.lora.reader import read_adapter

STEPS = 2


class QwenImageNext(comfy.model_base.QwenImage):
    """A newer model that a newer ComfyUI derives from a known one; its tokens are a fourth as large."""


class FinerLatents(comfy.latent_formats.Wan21):
    spacial_downscale_ratio = 4


class Mixer(torch.nn.Module):
    """An attention that is not called one."""

    def __init__(self, width, linear):
        super().__init__()
        self.q, self.k, self.v, self.o = (linear(width, width) for _ in "qkvo")

    def forward(self, x):
        y = torch.nn.functional.layer_norm(x, x.shape[-1:])
        return x + self.o(torch.nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))


class InventedNet(torch.nn.Module):
    """A transformer of two blocks, for latents of any number of dimensions."""

    def __init__(self, width=32, dtype=None, device=None, operations=None, **_):
        super().__init__()
        self.dtype = dtype

        def linear(inside, outside):
            return operations.Linear(inside, outside, dtype=dtype, device=device)

        self.inlet, self.text, self.outlet = linear(6, width), linear(48, width), linear(width, 6)
        self.blocks = torch.nn.ModuleList([Mixer(width, linear) for _ in range(2)])

    def forward(self, x, timesteps, context=None, transformer_options=None, **_):
        latents = self.inlet(x.flatten(2).movedim(1, 2)) + timesteps.reshape(-1, 1, 1) / 1000  # (B, N, D)
        tokens = torch.cat([self.text(context), latents], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.outlet(tokens[:, -latents.shape[1] :]).movedim(1, 2).reshape(x.shape)


class InventedModel(comfy.model_base.BaseModel):
    def __init__(self, config):
        super().__init__(config, comfy.model_base.ModelType.FLOW, unet_model=InventedNet)

    def extra_conds(self, **given):
        return super().extra_conds(**given) | {"c_crossattn": comfy.conds.CONDRegular(given["cross_attn"])}


LATENTS = {"picture": (6, 8, 8), "sound": (6, 24), "video": (6, 2, 4, 4)}


def invented_format(kind):
    """A latent format with a scale and sizes that no model of ComfyUI has."""

    class InventedLatents(comfy.latent_formats.LatentFormat):
        latent_channels, latent_dimensions = 6, len(LATENTS[kind]) - 1
        scale_factor, spacial_downscale_ratio = 0.37, 12

    return InventedLatents


def invented(kind, monkeypatch):
    """A MODEL of the invented architecture; its prompts and latents are "invented" for the other helpers."""
    monkeypatch.setitem(tiny_models.MODELS, "invented", Tiny("", {}, LATENTS[kind]))

    class InventedConfig(comfy.supported_models_base.BASE):
        latent_format, sampling_settings = invented_format(kind), {"shift": 2.2}

    config = InventedConfig({"image_model": "invented"})
    config.set_inference_dtype(torch.float32, None)
    model = InventedModel(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())


def derived():
    model = tiny_models.build("qwen-image")
    model.model.__class__, model.model.latent_format = QwenImageNext, FinerLatents()
    return model


@pytest.fixture
def not_named_yet(monkeypatch):
    monkeypatch.setattr(comfyui.pack_module("nodes.host.model_sigmas"), "_unknown_models", set())


def hosts_own(model, name):
    """ComfyUI's own sigmas at the steps 2 + 2 of 50."""
    split = comfyui.pack_module("glance_core.schedule.split").split_steps(STEPS, STEPS, 50)
    return BasicScheduler.execute(model, "simple", 50, 1.0).args[0][[*split.steps, 50]]


def assert_samples_as_merged(model, name, loras):
    """A pair on it acts as ComfyUI's merged models on the host's own sigmas, and leaves nothing behind."""
    slow, fast = adapters.save_pair(model, loras)
    before, sigmas = tiny_models.state(model), hosts_own(model, name)
    merged = [pack.merged(model, load_file(loras / file)) for file in (slow, fast)]
    expected = pack.chained(*merged, name, sigmas, STEPS)
    ours = pack.phase_split(pack.load_pair(model, slow, fast)[0], name, STEPS, STEPS)
    assert pack.relative(ours, expected) < 1e-5
    assert pack.relative(ours, pack.host_sample(model, name, sigmas)) > 1e-3
    tiny_models.assert_bit_exact(model, before)


def test_a_class_derived_from_a_known_one_takes_the_hosts_sigmas_and_says_so_once(loras, caplog, not_named_yet):
    model, parent = derived(), tiny_models.build("qwen-image")
    with caplog.at_level("WARNING"):
        found = pack.scheduler(model, "qwen-image", STEPS, STEPS)
        assert torch.equal(found, hosts_own(model, "qwen-image"))
        assert_samples_as_merged(model, "qwen-image", loras)
    assert not torch.allclose(found, pack.scheduler(parent, "qwen-image", STEPS, STEPS), atol=1e-3)
    sentence = (
        "Glance: no rule is known for the noise levels of QwenImageNext, so auto takes the model's own (QwenImage, "
        "from which it derives, may have others); if its workflow has a scheduler node, wire that node's sigmas"
    )
    assert caplog.messages.count(sentence) == 1 and caplog.text.count("no rule is known") == 1


def test_a_known_class_with_a_newer_configuration_takes_the_hosts_sigmas_and_says_so(loras, caplog, not_named_yet):
    model = tiny_models.build("qwen-image")
    model.model.model_config.__class__ = type("QwenImage21", (comfy.supported_models.QwenImage,), {})
    with caplog.at_level("WARNING", logger="glance"):
        found = pack.scheduler(model, "qwen-image", STEPS, STEPS)
    assert (
        torch.allclose(found[:1], torch.ones(1))
        and comfyui.pack_module("nodes.host.base_model").base_of(model).name == "qwenimage21"
    )
    assert not torch.allclose(found, pack.scheduler(tiny_models.build("qwen-image"), "qwen-image", STEPS, STEPS))
    sentence = "the noise levels of QwenImage21, so auto takes the model's own (QwenImage, from which it derives, may"
    assert caplog.text.count(sentence) == 1


def test_a_pair_of_a_derived_class_states_it_and_is_not_taken_for_one_of_the_parent(loras, output):
    model = derived()
    _, slow, fast, *_ = train_node.train(model, "qwen-image", steps=2)
    pair = read_adapter(loras / slow).pair
    assert (pair.base, pair.sigma_rule) == ("qwenimagenext", "model")
    assert "0 unmatched" in pack.load_pair(model, slow, fast)[1]
    with pytest.raises(ValueError, match=r"is a qwenimagenext adapter but the model is a QwenImage \(qwen-image\)"):
        pack.load_pair(tiny_models.build("qwen-image"), slow, fast)
    with pytest.raises(ValueError, match=r"the paper did not train qwenimagenext"):
        train_node.train(model, "qwen-image", targets="paper")


@pytest.mark.parametrize("kind", LATENTS)
def test_an_invented_model_with_invented_latents_samples_as_merged_models(
    kind, loras, caplog, monkeypatch, not_named_yet
):
    model = invented(kind, monkeypatch)
    with caplog.at_level("INFO", logger="glance"):
        assert_samples_as_merged(model, "invented", loras)
    sentence = "Glance: no rule is known for the noise levels of InventedModel, so auto takes the model's own; if its"
    assert caplog.text.count(sentence) == 1


@pytest.mark.parametrize("kind", LATENTS)
def test_an_invented_model_has_the_hosts_own_teacher(kind, monkeypatch):
    model = invented(kind, monkeypatch)
    ours, theirs = teacher_of(model, "invented", tiny_models.empty_latent("invented"), 5)
    assert pack.relative(ours, theirs) < 1e-5


def test_an_invented_model_is_calibrated(monkeypatch):
    model = invented("sound", monkeypatch)
    settings, _, report = calibrated(model, "invented", 2.0, 6)
    assert settings.solver.nfe == 6 and settings.rule == "model" and "6 model calls" in report
    assert torch.isfinite(pack.phase_split(model, "invented", STEPS, STEPS, 2.0, "auto", settings=settings)).all()


@pytest.mark.parametrize("kind, resolution", [("picture", "96x96"), ("sound", None), ("video", "48x48")])
def test_an_invented_model_is_trained_and_its_pair_says_what_is_known(kind, resolution, loras, output, monkeypatch):
    model = invented(kind, monkeypatch)
    before = tiny_models.state(model)
    carrying, slow, *_, report = train_node.train(model, "invented", objective="on_policy", preview_every=2, cfg=2.0)
    pair, names = read_adapter(loras / slow).pair, load_file(loras / slow)
    assert (pair.base, pair.sigma_rule, pair.resolution) == ("inventedmodel", "model", resolution)
    assert {key.split(".lora_")[0] for key in names if ".lora_" in key} == {
        f"diffusion_model.blocks.{block}.{layer}" for block in (0, 1) for layer in "qkvo"
    }
    assert " 0 unmatched" in report
    ours, base = (pack.phase_split(each, "invented", STEPS, STEPS) for each in (carrying, model))
    assert pack.relative(ours, base) > 0
    tiny_models.assert_bit_exact(model, before)
