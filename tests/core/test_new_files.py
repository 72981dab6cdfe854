"""Files are written whole or not at all, and a new file never replaces another."""

import json
import os

import pytest
import torch
from safetensors import safe_open

from glance_core.errors import AdapterError
from glance_core.lora.factors import Factor
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.pair_writer import PAIR_ENDS, TrainedPair, free_name, make_folder, write_pair
from glance_core.lora.safetensors_io import read_tensors, write_new, write_over
from glance_core.schedule.phase_schedule import PhaseSchedule
from glance_core.schedule.split import FAST, SLOW


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_file_stays_whole_if_replacing_it_fails(tmp_path, monkeypatch, call):
    path = tmp_path / "run.safetensors"
    write_over(path, {"a": torch.ones(3)}, {"which": "first"})
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(AdapterError, match=r"cannot be written .No space left on device."):
        write_over(path, {"a": torch.zeros(3)}, {"which": "second"})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # nothing half-written is left
    write_over(path, {"a": torch.zeros(3)}, {"which": "second"})
    assert read_tensors(path)[1] == {"which": "second"}


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    write_over(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_over(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_new_file_never_replaces_another(tmp_path):
    path = tmp_path / "a.safetensors"
    write_new(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()
    with pytest.raises(AdapterError, match="exists already and is not overwritten; choose another name"):
        write_new(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def trained_pair():
    factors = {
        phase: {"double_blocks.0.img_attn.proj": Factor(torch.ones(2, 4), torch.ones(4, 2), 2.0, 1.0, "m")}
        for phase in (SLOW, FAST)
    }
    return TrainedPair(factors, PairMetadata(base="flux"), PhaseSchedule((1.0, 0.9, 0.5, 0.0), 2))


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("end", PAIR_ENDS)
def test_a_pair_never_overwrites_a_file_with_one_of_its_names(tmp_path, end):
    (tmp_path / f"mine{end}").write_bytes(b"another file")
    first, second = (write_pair(tmp_path, "mine", trained_pair()) for _ in range(2))
    assert [path.name for path in (*first, *second)] == [
        f"mine-{i}_{phase}.safetensors" for i in (2, 3) for phase in (SLOW, FAST)
    ]
    assert (tmp_path / f"mine{end}").read_bytes() == b"another file"
    for slow, fast in (first, second):
        stated = [metadata_of(path) for path in (slow, fast)]
        assert [each["glance.phase"] for each in stated] == [SLOW, FAST]
        assert [each["glance.partner"] for each in stated] == [fast.name, slow.name]
        assert [json.loads(each["glance.sigmas"]) for each in stated] == [[1.0, 0.9], [0.5]]


def test_a_free_name_has_none_of_the_ends(tmp_path):
    assert free_name(tmp_path, "a", [".x", ".y"]) == "a"
    (tmp_path / "a.y").touch()
    (tmp_path / "a-2.x").touch()
    assert free_name(tmp_path, "a", [".x", ".y"]) == "a-3"
    assert free_name(tmp_path, "a", [".x"]) == "a"


def test_a_folder_that_cannot_be_made_is_rejected(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match=r"cannot be written into .+; choose another folder"):
        make_folder(tmp_path / "file" / "folder")
    make_folder(tmp_path / "one" / "two")
    assert list((tmp_path / "one" / "two").iterdir()) == []
