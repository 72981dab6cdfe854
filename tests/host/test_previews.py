"""The picture that training leaves beside a pair, where ComfyUI's model library and LoRA managers look for it; and what they read of the files."""

import comfyui
import folder_paths
import numpy as np
import pytest
import tiny
import training
from PIL import Image

from glance_core.lora_file import check_pair, read_adapter

PICTURES = ["tiny_fast.preview.png", "tiny_slow.preview.png"]
PAIR = ["tiny_fast.safetensors", "tiny_slow.safetensors"]


@pytest.fixture
def output(tmp_path, monkeypatch, loras):
    """ComfyUI's output folder for this test."""
    folder = tmp_path / "output"
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


@pytest.fixture
def shown(monkeypatch):
    """The pictures that reach the node."""
    bar = comfyui.pack_module("nodes.live").comfy.utils.ProgressBar
    update, seen = bar.update_absolute, []

    def watched(self, value, total=None, preview=None):
        if preview is not None:
            seen.append(np.asarray(preview[1].convert("RGB")))
        return update(self, value, total, None)

    monkeypatch.setattr(bar, "update_absolute", watched)
    return seen


def test_the_last_picture_on_the_node_lies_beside_both_files_and_in_the_report(loras, output, shown):
    *_, report = training.train(tiny.build("flux"), "flux", preview_every=3, steps=3, learning_rate=0.02)
    assert training.files(loras) == sorted(PAIR + PICTURES)
    for name in PICTURES:
        assert np.array_equal(np.asarray(Image.open(loras / name)), shown[-1])
        assert f"\n{loras / name}\n" in report
    assert len(shown) == 3 and not np.array_equal(shown[0], shown[-1])


def test_without_previews_no_picture_is_written(loras, output, shown):
    *_, report = training.train(tiny.build("flux"), "flux", preview_every=0)
    assert training.files(loras) == PAIR and shown == [] and ".preview.png" not in report


def test_a_picture_of_the_users_stays_and_the_pair_is_written_all_the_same(loras, output):
    (loras / PICTURES[0]).write_bytes(b"mine")
    *_, report = training.train(tiny.build("flux"), "flux", preview_every=3)
    assert training.files(loras) == sorted(PAIR + PICTURES)
    assert (loras / PICTURES[0]).read_bytes() == b"mine"
    assert f"no preview picture beside {PAIR[0]}" in report and "exists already and is not overwritten" in report
    assert str(loras / PICTURES[1]) in report


def test_a_disk_too_full_for_the_picture_does_not_cost_the_pair(loras, output, monkeypatch):
    writing = comfyui.pack_module("glance_core.lora_write")

    def full(path, content):
        raise writing.AdapterError(f"{path}: cannot be written (No space left on device); free some space or choose another folder or name")

    monkeypatch.setattr(writing, "write_new_bytes", full)
    *_, report = training.train(tiny.build("flux"), "flux", preview_every=3)
    assert training.files(loras) == PAIR and training.files(output) == []
    assert report.count("no preview picture beside") == 2 and "No space left" in report


def test_a_stop_before_the_picture_leaves_a_whole_pair_and_nothing_to_go_on_with(loras, output, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comfyui.pack_module("nodes.training_run"), "_write_previews", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(tiny.build("flux"), "flux", preview_every=3)
    assert training.files(loras) == PAIR and training.files(output) == []


def test_a_stop_between_the_two_files_is_finished_under_their_name(loras, output, monkeypatch):
    writing = comfyui.pack_module("glance_core.lora_write")
    write = writing.write_adapter

    def killed(path, *more):
        if path.name.endswith("_fast.safetensors"):
            raise KeyboardInterrupt
        return write(path, *more)

    monkeypatch.setattr(writing, "write_adapter", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(tiny.build("flux"), "flux", preview_every=3)
    assert training.files(loras) == PAIR[1:] and training.files(output)
    slow = (loras / PAIR[1]).read_bytes()
    monkeypatch.setattr(writing, "write_adapter", write)
    training.train(tiny.build("flux"), "flux", preview_every=3)
    assert training.files(loras) == sorted(PAIR + PICTURES) and training.files(output) == []
    assert (loras / PAIR[1]).read_bytes() == slow
    assert check_pair(*(read_adapter(loras / name) for name in PAIR[::-1])) == ()


def test_the_picture_is_of_the_pair_as_it_is_written(loras, output, shown):
    """Where nothing helped, it is the bare base's, whatever was trained."""
    wrong = {"objective": "flow_matching", "latent": training.picture("flux"), "steps": 20, "preview_every": 20, "keep": "what helps"}
    last = []
    for rate in (0.1, 0.2):
        *_, report = training.train(tiny.build("flux"), "flux", learning_rate=rate, **wrong)
        assert report.startswith("NOTHING OF IT HELPED")
        last.append(shown[-2:])
        shown.clear()
    (trained, written), (other, same) = last
    assert np.array_equal(written, same) and not np.array_equal(trained, other) and not np.array_equal(trained, written)


def test_the_pictures_change_nothing_in_the_files(loras, output):
    for name, every in (("with", 2), ("without", 0)):
        training.train(tiny.build("flux"), "flux", name=name, preview_every=every)
    for phase in ("slow", "fast"):
        one, other = (read_adapter(loras / f"{name}_{phase}.safetensors") for name in ("with", "without"))
        assert one.metadata["sshs_model_hash"] == other.metadata["sshs_model_hash"]


def test_comfyui_reads_the_files_as_it_reads_others(loras, output):
    """Its asset scanner and its model library, called as the server calls them."""
    from app.assets.services.metadata_extract import extract_file_metadata
    from app.model_manager import ModelFileManager

    training.train(tiny.build("flux"), "flux", preview_every=3)
    for phase in ("slow", "fast"):
        file = loras / f"tiny_{phase}.safetensors"
        found = extract_file_metadata(str(file))
        assert found.base_model == "flux1"
        assert found.source_hash == read_adapter(file).metadata["sshs_model_hash"]
        assert ModelFileManager().get_model_previews(str(file)) == [str(loras / f"tiny_{phase}.preview.png")]
        assert read_adapter(file).metadata["modelspec.resolution"] == "64x64"  # latents of 8 x 8
