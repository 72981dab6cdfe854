"""Training onto a real disk that is too small or read-only: one sentence, what was kept stays whole, and with room the run goes on."""

import json
import multiprocessing
import sys

import disks
import pytest

from glance_core.checkpoint import load_run
from glance_core.lora_file import check_pair, read_adapter
from glance_core.tensor_file import read_tensors

PAIR = ["glance_tiny_fast.safetensors", "glance_tiny_slow.safetensors"]
TRAIN = ["train", "--caption", "a small red star left", "--objective", "trajectory", "--noises", "1", "--steps", "3", "--batch", "2", "--judged", "2",
         "--held-out", "0", "--save-every", "1", "--rank", "4"]  # fmt: skip

linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(size of the disk, read_only): what came of a training onto it, and of another when it was large; where the files are."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glance_core.tiny.pair", "glance_core.__main__", "peft", "disks"])

    def train(size, read_only=False):
        place = tmp_path_factory.mktemp("small")
        found, disk = place / "found", place / "disk"
        found.mkdir()
        process = context.Process(target=disks.train_twice, args=([*TRAIN, "--out", str(disk)], disk, size, read_only, found))
        process.start()
        process.join()
        if process.exitcode == disks.NOT_ALLOWED:
            pytest.skip("NOT TESTED: this system lets no process mount a disk of its own; run as root, or allow user namespaces")
        assert process.exitcode == 0
        return json.loads((found / "told.json").read_text()), found

    return train


@pytest.fixture(scope="module")
def read_only(trained):
    return trained("64m", read_only=True)


def error_of(told):
    """The one sentence, after what was said of the progress."""
    status, said = told["first"]
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and said.endswith(f"{error}\n")
    return error


def written(told, found):
    """The pair's tensors by file, from the run that had room."""
    assert told["second"][0] == 0, told["second"][1]
    assert told["written"] == PAIR
    assert check_pair(*(read_adapter(found / name) for name in PAIR[::-1])) == ()
    return {name: read_tensors(found / name)[0] for name in PAIR}


@linux
def test_a_read_only_disk_is_refused_before_anything_runs(read_only):
    told, found = read_only
    assert error_of(told).endswith("cannot be written into (Read-only file system); choose another folder")
    assert told["kept"] == []
    written(told, found)


@linux
@pytest.mark.parametrize("size, kept", [("600k", False), ("2100k", True)])
def test_a_disk_that_fills_up_loses_nothing_that_was_kept(trained, read_only, size, kept):
    """At the first checkpoint, at one of the second phase beside it; afterwards, with room, the bits of a run that always had it."""
    told, found = trained(size)
    assert "cannot be written (" in error_of(told) and error_of(told).endswith("); free some space or choose another folder or name")
    assert [name for name in told["kept"] if name.startswith(".")] == []  # nothing half-written takes room
    assert (found / "kept.safetensors").exists() == kept
    if kept:
        load_run(found / "kept.safetensors")
    whole, resumed = written(*read_only), written(told, found)
    for name in PAIR:
        assert resumed[name].keys() == whole[name].keys() and all(resumed[name][key].equal(whole[name][key]) for key in whole[name])
