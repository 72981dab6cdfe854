"""The picture that training writes beside a pair for ComfyUI's model library and LoRA managers, and what they read."""

import comfyui
import numpy as np
import pytest
import tiny_models
import train_node
from PIL import Image

from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter

PICTURES = ["tiny_fast.preview.png", "tiny_slow.preview.png"]
PAIR = ["tiny_fast.safetensors", "tiny_slow.safetensors"]


@pytest.fixture
def shown(monkeypatch):
    """The pictures that reach the node."""
    bar = comfyui.pack_module("nodes.host.node_progress").comfy.utils.ProgressBar
    update, seen = bar.update_absolute, []

    def watched(self, value, total=None, preview=None):
        if preview is not None:
            seen.append(np.asarray(preview[1].convert("RGB")))
        return update(self, value, total, None)

    monkeypatch.setattr(bar, "update_absolute", watched)
    return seen


def test_the_last_picture_on_the_node_is_written_beside_both_files_and_named_in_the_report(loras, output, shown):
    *_, report = train_node.train(tiny_models.build("flux"), "flux", preview_every=3, steps=3, learning_rate=0.02)
    assert train_node.files(loras) == sorted(PAIR + PICTURES)
    for name in PICTURES:
        assert np.array_equal(np.asarray(Image.open(loras / name)), shown[-1])
        assert f"\n{loras / name}\n" in report
    assert len(shown) == 3 and not np.array_equal(shown[0], shown[-1])


def test_without_previews_no_picture_is_written(loras, output, shown):
    *_, report = train_node.train(tiny_models.build("flux"), "flux", preview_every=0)
    assert train_node.files(loras) == PAIR and shown == [] and ".preview.png" not in report


def test_an_existing_picture_is_kept_and_the_pair_is_still_written(loras, output):
    (loras / PICTURES[0]).write_bytes(b"mine")
    *_, report = train_node.train(tiny_models.build("flux"), "flux", preview_every=3)
    assert train_node.files(loras) == sorted(PAIR + PICTURES)
    assert (loras / PICTURES[0]).read_bytes() == b"mine"
    assert f"no preview picture beside {PAIR[0]}" in report and "exists already and is not overwritten" in report
    assert str(loras / PICTURES[1]) in report


def test_the_pair_is_kept_if_the_disk_is_too_full_for_the_picture(loras, output, monkeypatch):
    writing = comfyui.pack_module("glance_core.lora.pair_writer")

    def full(path, content):
        raise writing.AdapterError(
            f"{path}: cannot be written (No space left on device); free some space or choose another folder or name"
        )

    monkeypatch.setattr(writing, "write_new_bytes", full)
    *_, report = train_node.train(tiny_models.build("flux"), "flux", preview_every=3)
    assert train_node.files(loras) == PAIR and train_node.files(output) == []
    assert report.count("no preview picture beside") == 2 and "No space left" in report


def test_a_stop_before_the_picture_leaves_a_complete_pair_and_nothing_to_resume(loras, output, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comfyui.pack_module("nodes.host.training_run"), "_write_previews", killed)
    with pytest.raises(KeyboardInterrupt):
        train_node.train(tiny_models.build("flux"), "flux", preview_every=3)
    assert train_node.files(loras) == PAIR and train_node.files(output) == []


def test_a_stop_between_the_two_files_is_resumed_under_the_same_name(loras, output, monkeypatch):
    writing = comfyui.pack_module("glance_core.lora.pair_writer")
    write = writing.write_adapter

    def killed(path, *more):
        if path.name.endswith("_fast.safetensors"):
            raise KeyboardInterrupt
        return write(path, *more)

    monkeypatch.setattr(writing, "write_adapter", killed)
    with pytest.raises(KeyboardInterrupt):
        train_node.train(tiny_models.build("flux"), "flux", preview_every=3)
    assert train_node.files(loras) == PAIR[1:] and train_node.files(output)
    slow = (loras / PAIR[1]).read_bytes()
    monkeypatch.setattr(writing, "write_adapter", write)
    train_node.train(tiny_models.build("flux"), "flux", preview_every=3)
    assert train_node.files(loras) == sorted(PAIR + PICTURES) and train_node.files(output) == []
    assert (loras / PAIR[1]).read_bytes() == slow
    assert check_pair(*(read_adapter(loras / name) for name in PAIR[::-1])) == ()


def test_the_picture_shows_the_pair_as_it_is_written(loras, output, shown):
    """If nothing helped, it shows the base, whatever was trained."""
    wrong = {
        "objective": "flow_matching",
        "latent": train_node.picture("flux"),
        "steps": 20,
        "preview_every": 20,
        "keep": "what helps",
    }
    last = []
    for rate in (0.1, 0.2):
        *_, report = train_node.train(tiny_models.build("flux"), "flux", learning_rate=rate, **wrong)
        assert report.startswith("Training did not improve on the base model")
        last.append(shown[-2:])
        shown.clear()
    (trained, written), (other, same) = last
    assert np.array_equal(written, same) and not np.array_equal(trained, other) and not np.array_equal(trained, written)


def test_previews_change_nothing_in_the_files(loras, output):
    for name, every in (("with", 2), ("without", 0)):
        train_node.train(tiny_models.build("flux"), "flux", name=name, preview_every=every)
    for phase in ("slow", "fast"):
        one, other = (read_adapter(loras / f"{name}_{phase}.safetensors") for name in ("with", "without"))
        assert one.metadata["sshs_model_hash"] == other.metadata["sshs_model_hash"]


def test_comfyui_reads_the_files_like_other_loras(loras, output):
    """Its asset scanner and its model library, called as the server calls them."""
    from app.assets.services.metadata_extract import extract_file_metadata
    from app.model_manager import ModelFileManager

    train_node.train(tiny_models.build("flux"), "flux", preview_every=3)
    for phase in ("slow", "fast"):
        file = loras / f"tiny_{phase}.safetensors"
        found = extract_file_metadata(str(file))
        assert found.base_model == "flux1"
        assert found.source_hash == read_adapter(file).metadata["sshs_model_hash"]
        assert ModelFileManager().get_model_previews(str(file)) == [str(loras / f"tiny_{phase}.preview.png")]
        assert read_adapter(file).metadata["modelspec.resolution"] == "64x64"  # latents of 8 x 8
