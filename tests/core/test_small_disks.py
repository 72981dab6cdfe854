"""Train onto a real disk that is too small or read-only. It says one sentence, keeps its files whole, and resumes."""

import json
import multiprocessing
import sys

import disks
import pytest

from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter
from glance_core.lora.safetensors_io import read_tensors
from glance_core.training.run.checkpoint import load_run

PAIR = ["glance_tiny_fast.safetensors", "glance_tiny_slow.safetensors"]
TRAIN = [
    "train", "--caption", "a small red star left", "--objective", "teacher_forced", "--noises", "1", "--steps", "3",
    "--batch", "2", "--judged", "2", "--held-out", "0", "--save-every", "1", "--rank", "4",
]  # fmt: skip

linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return trained(size, read_only), which trains onto such a disk and again onto a large one.

    It returns the report of both runs, and the folder with their files.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glance_core.tiny.distillation", "glance_core.__main__", "peft", "disks"])

    def train(size, read_only=False):
        place = tmp_path_factory.mktemp("small")
        found, disk = place / "found", place / "disk"
        found.mkdir()
        arguments = [*TRAIN, "--out", str(disk)]
        process = context.Process(target=disks.train_twice, args=(arguments, disk, size, read_only, found))
        process.start()
        process.join()
        if process.exitcode == disks.NOT_ALLOWED:
            pytest.skip("NOT TESTED: this system does not let us mount a disk; run as root, or allow user namespaces")
        assert process.exitcode == 0
        return json.loads((found / "report.json").read_text()), found

    return train


@pytest.fixture(scope="module")
def read_only(trained):
    return trained("64m", read_only=True)


def error_of(report):
    """Return the one sentence that the first run printed after its progress."""
    status, printed = report["first"]
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert status == 2 and printed.endswith(f"{error}\n")
    return error


def written(report, found):
    """Return the pair's tensors by file, from the run that had room."""
    assert report["second"][0] == 0, report["second"][1]
    assert report["written"] == PAIR
    assert check_pair(*(read_adapter(found / name) for name in PAIR[::-1])) == ()
    return {name: read_tensors(found / name)[0] for name in PAIR}


@linux
def test_read_only_disk_is_rejected_before_anything_runs(read_only):
    report, found = read_only
    assert error_of(report).endswith("cannot be written into (Read-only file system); choose another folder")
    assert report["kept"] == []
    written(report, found)


@linux
@pytest.mark.parametrize("size, kept", [("600k", False), ("2100k", True)])
def test_full_disk_loses_nothing_that_was_saved(trained, read_only, size, kept):
    """600k is full at the first checkpoint, 2100k at one of the second phase. With room both runs end as usual."""
    report, found = trained(size)
    error = error_of(report)
    assert "cannot be written (" in error and error.endswith("); free some space or choose another folder or name")
    assert [name for name in report["kept"] if name.startswith(".")] == []  # half-written files do not stay
    assert (found / "kept.safetensors").exists() == kept
    if kept:
        load_run(found / "kept.safetensors")
    unbroken, resumed = written(*read_only), written(report, found)
    for name in PAIR:
        assert resumed[name].keys() == unbroken[name].keys()
        assert all(resumed[name][key].equal(unbroken[name][key]) for key in unbroken[name])
