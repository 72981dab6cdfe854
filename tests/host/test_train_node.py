"""TrainGlanceAdapter inside ComfyUI: what it trains, writes and reports."""

from pathlib import Path

import comfy.model_management
import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node

from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter

WORSE = {"objective": "flow_matching", "learning_rate": 0.1, "steps": 20}  # with a picture of noise


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_a_pair_is_trained_saved_and_loaded_and_the_base_is_bit_exact(name, loras, output):
    model = tiny_models.build(name)
    before = tiny_models.state(model)
    carrying, slow, fast, losses, report = train_node.train(model, name, schedule="model")
    tiny_models.assert_bit_exact(model, before)
    assert sorted([slow, fast]) == train_node.files(loras) == ["tiny_fast.safetensors", "tiny_slow.safetensors"]
    assert train_node.files(output) == []  # the files of the unfinished run are gone
    adapters = [read_adapter(loras / file) for file in (slow, fast)]
    assert check_pair(*adapters) == ()
    assert {a.pair.base for a in adapters} == {comfyui.pack_module("nodes.host.base_model").base_of(model).name}
    assert losses.shape[0] == 1 and losses.shape[-1] == 3 and 0 <= float(losses.min()) < float(losses.max()) <= 1
    assert ", 0 unmatched" in report and "assumed" not in report and "base on the same sigmas" in report
    patcher = comfyui.pack_module("nodes.host.patcher")
    assert patcher.pair_of(carrying) is not None and patcher.pair_of(model) is None
    assert not comfy.model_management.in_training


@pytest.mark.parametrize("fold_guidance", [False, True])
def test_the_loss_falls_at_every_sigma(fold_guidance, loras, output, monkeypatch):
    seen = []
    module = comfyui.pack_module("nodes.train")
    plot_losses = module.plot_losses
    monkeypatch.setattr(module, "plot_losses", lambda plot: seen.append(plot.history) or plot_losses(plot))
    inputs = {"cfg": 2.0, "teacher_runs": 1, "steps": 40, "learning_rate": 0.02, "fold_guidance": fold_guidance}
    train_node.train(tiny_models.build("flux"), "flux", objective="teacher_forced", **inputs)
    for step in range(4):
        own = [loss for at, loss in zip(seen[0].steps, seen[0].losses, strict=True) if at == step]
        assert len(own) == 20
        assert sum(own[-5:]) < 0.9 * sum(own[:5])


def test_a_pair_that_is_worse_than_the_base_is_reported_as_worse(loras, output):
    model = tiny_models.build("flux")
    *_, report = train_node.train(model, "flux", latent=train_node.picture("flux"), **WORSE)
    assert report.startswith("WORSE THAN THE BASE")
    pair = read_adapter(loras / "tiny_slow.safetensors").pair
    assert pair.psnr_pair < pair.psnr_base
    assert pair.image_sha256 is not None
    assert "WORSE than the base" in pack.load_pair(model, "tiny_slow.safetensors", "tiny_fast.safetensors")[1]


def test_a_pair_that_does_not_help_is_saved_without_effect(loras, output):
    """The files load, and sample as the base does, bit for bit."""
    model = tiny_models.build("flux")
    picture = train_node.picture("flux")
    carrying, *_, report = train_node.train(model, "flux", latent=picture, **WORSE, keep="what helps")
    assert report.startswith(
        "Training did not improve on the base model, so the saved LoRAs are zero. Everything that was trained changes "
        "PSNR by -"
    )
    assert "kept when trained: nothing" in report
    pair = read_adapter(loras / "tiny_fast.safetensors").pair
    assert pair.kept == "nothing" and pair.comparison == report.splitlines()[0]
    assert pair.psnr_pair == pair.psnr_base
    with_pair, base = (pack.phase_split(each, "flux", 2, 2, seed=5) for each in (carrying, model))
    assert torch.equal(with_pair, base)


def test_everything_that_was_trained_is_kept_beside_a_pair_without_effect(loras, output):
    """Hours of training are not thrown away because a check of few pictures was not sure."""
    folder = output / "glance_training"
    picture = train_node.picture("flux")
    *_, report = train_node.train(tiny_models.build("flux"), "flux", latent=picture, **WORSE, keep="what helps")
    whole = [Path(line) for line in report.splitlines() if "_whole_" in line]
    assert [path.name for path in whole] == ["tiny_whole_slow.safetensors", "tiny_whole_fast.safetensors"]
    assert {path.parent for path in whole} == {folder} and sorted(folder.iterdir()) == sorted(whole)
    train_node.train(tiny_models.build("flux"), "flux", latent=picture, **WORSE, keep="everything", name="all")
    for path, phase in zip(whole, ("slow", "fast"), strict=True):
        kept, found = read_adapter(loras / f"all_{phase}.safetensors"), read_adapter(path)
        assert all(torch.equal(found.factors[name].up, kept.factors[name].up) for name in kept.factors)
        assert found.pair.comparison.startswith("WORSE THAN THE BASE")


def test_progress_and_pictures_reach_the_node(loras, output, monkeypatch):
    from server import PromptServer

    texts, shown = [], []

    class Listener:
        def send_progress_text(self, text, node_id):
            texts.append(text)

    monkeypatch.setattr(PromptServer, "instance", Listener(), raising=False)
    module = comfyui.pack_module("nodes.host.node_progress")
    bar, init = module.comfy.utils.ProgressBar, module.NodeProgress.__init__
    update = bar.update_absolute
    monkeypatch.setattr(
        bar, "update_absolute", lambda bar, v, t=None, p=None: (shown.append((v, t, p)), update(bar, v, t, None))[1]
    )
    monkeypatch.setattr(module.NodeProgress, "__init__", lambda self, node_id, total: init(self, "7", total))
    train_node.train(tiny_models.build("flux"), "flux", preview_every=3, steps=6)
    assert any("loss" in text and "/s" in text for text in texts)
    values = [value for value, _, _ in shown]
    assert values == sorted(values) and values[-1] == shown[-1][1]
    pictures = [preview for _, _, preview in shown if preview is not None]
    assert len(pictures) == 5 and all(kind == "JPEG" and image.width > 0 for kind, image, _ in pictures)
