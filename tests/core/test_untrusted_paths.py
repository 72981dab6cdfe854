"""Names, links, pipes and disguised files: nothing leads out of a folder, waits, or is unpacked."""

import os
import pickle
import socket
import threading
import zipfile

import pytest
import torch
from crafted_files import DOWN, ONE, UP, header_of_pair, rejection
from lora_files import MODULE
from safetensors.torch import save_file
from untrusted_files import safetensors

from glance_core.__main__ import main
from glance_core.errors import AdapterError, GlanceError
from glance_core.lora.factors import Factor
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.pair_writer import TrainedPair, free_name, write_pair
from glance_core.lora.reader import read_adapter
from glance_core.lora.safetensors_io import write_over
from glance_core.lora.writer import convert
from glance_core.schedule.phase_schedule import PhaseSchedule
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.run.run_dir import find_run_dir

SMALL = {DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}
MODULES = [
    "../../../etc/passwd", "/etc/passwd", "C:\\Windows", "\\\\server\\share", "~root", "$HOME", "%TEMP%", "\ufb01le",
    "é", "e\u0301", "..", ".",
]  # fmt: skip


def test_module_names_that_look_like_paths_are_only_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tensors = {f"{name}.lora_{x}.weight": torch.ones(1, 1) for name in MODULES for x in "AB"}
    metadata = {"glance.format": "2", "glance.partner": "../../../etc/passwd", "glance.base": "../x"}
    save_file(tensors, "a.safetensors", metadata=metadata)
    read = read_adapter("a.safetensors")
    assert read.factors.keys() == set(MODULES)
    convert(read, "b.safetensors")
    assert read_adapter("b.safetensors").factors.keys() == set(MODULES)
    assert main(["inspect", "a.safetensors", "b.safetensors"]) == 0
    assert sorted(os.listdir()) == ["a.safetensors", "b.safetensors"] and len(capsys.readouterr().out) < 5000


NAMES = [
    "../up", "a/b", "/etc/x", "..", ".", ".hidden", "", "a\\b", "C:evil", "C:\\evil", "\\\\server\\x", "a\0b", "a\nb",
    " a", "a ", "\u202eb", "x" * 101,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_name_of_a_pair_cannot_lead_out_of_its_folder(name, tmp_path):
    factors = {phase: {MODULE: Factor(torch.ones(1, 1), torch.ones(1, 1), 1.0, 1.0, MODULE)} for phase in (SLOW, FAST)}
    pair = TrainedPair(factors, PairMetadata(), PhaseSchedule((1.0, 0.5, 0.0), 1))
    folder = tmp_path / "loras"
    folder.mkdir()
    for begin in (
        lambda: find_run_dir(folder, name, resume=True),
        lambda: find_run_dir(folder, name, resume=False),
        lambda: write_pair(folder, name, pair),
    ):
        with pytest.raises(AdapterError, match="is not a plain file name") as rejected:
            begin()
        assert str(rejected.value).isprintable()
    assert [item.name for item in tmp_path.rglob("*")] == ["loras"]


def test_impossible_name_for_a_converted_file_gives_one_sentence(tmp_path):
    save_file(SMALL, tmp_path / "a.safetensors")
    read = read_adapter(tmp_path / "a.safetensors")
    for name in ("a\0b.safetensors", "x" * 300 + ".safetensors", "none/b.safetensors", "\udcff.safetensors"):
        try:
            convert(read, tmp_path / name)
        except AdapterError as error:
            assert str(error).isprintable()  # noqa: PT017


def assert_rejected_in_time(path, message):
    """Read in a thread of its own, so that an endless wait fails this test and does not stop the suite."""
    found = []

    def attempt():
        try:
            read_adapter(path)
        except GlanceError as error:
            found.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(20)
    assert found and message in found[0], found or "still waiting"


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes and devices")
def test_pipes_devices_and_sockets_are_rejected_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.safetensors"))
        os.symlink("/dev/zero", tmp_path / "zero.safetensors")
        os.symlink(tmp_path / "pipe.safetensors", tmp_path / "link.safetensors")
        for name in ("pipe", "socket", "zero", "link"):
            message = f"{name}.safetensors: this is a pipe, a socket or a device, not a file; choose a .safetensors"
            assert_rejected_in_time(tmp_path / f"{name}.safetensors", message)
    save_file(SMALL, tmp_path / "adapter_model.safetensors")
    os.mkfifo(tmp_path / "adapter_config.json")
    assert read_adapter(tmp_path / "adapter_model.safetensors").factors[MODULE].scale == 1


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_are_followed_to_a_file_and_no_further(tmp_path):
    save_file(SMALL, tmp_path / "real.safetensors")
    links = {"good": "real.safetensors", "loop": "loop.safetensors", "nowhere": "none", "folder": "."}
    for name, target in links.items():
        os.symlink(target, tmp_path / f"{name}.safetensors")
    good = read_adapter(tmp_path / "good.safetensors")
    assert good.factors[MODULE].rank == 1
    for name in ("loop", "nowhere", "folder"):
        assert f"{name}.safetensors: cannot be opened" in rejection(tmp_path / f"{name}.safetensors")
    # A new file neither follows nor replaces a link of its name, and that name is not free.
    with pytest.raises(AdapterError, match="exists already"):
        convert(good, tmp_path / "nowhere.safetensors")
    assert not (tmp_path / "none").exists() and free_name(tmp_path, "nowhere", [".safetensors"]) == "nowhere-2"
    # A checkpoint replaces the link and leaves its target alone.
    before = (tmp_path / "real.safetensors").read_bytes()
    write_over(tmp_path / "good.safetensors", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "real.safetensors").read_bytes() == before and not (tmp_path / "good.safetensors").is_symlink()


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def write_disguises(folder):
    """Write other formats as .safetensors. Yield the name of each and words of its error."""
    torch.save({"a": torch.ones(3)}, folder / "torch.safetensors")
    yield "torch", "pickled checkpoint"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / f"pickle{protocol}.safetensors").write_bytes(pickle.dumps({"a": Trap()}, protocol))
        yield f"pickle{protocol}", "pickled checkpoint" if protocol > 1 else ""
    with zipfile.ZipFile(folder / "bomb.safetensors", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"{i}", bytes(50_000_000))
    yield "bomb", "zip archive"
    # A zip is read from its end, so this is a zip too.
    both = safetensors(header_of_pair(), ONE * 2) + (folder / "bomb.safetensors").read_bytes()
    (folder / "zipped.safetensors").write_bytes(both)
    yield "zipped", "longer than its header says"


def test_other_formats_are_neither_unpacked_nor_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    for name, words in write_disguises(tmp_path / "files"):
        assert words in rejection(tmp_path / "files" / f"{name}.safetensors")
    assert os.listdir(tmp_path) == ["files"]
