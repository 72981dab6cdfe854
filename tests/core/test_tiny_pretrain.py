"""python -m glance_core.tiny.pretrain, as a developer calls it: it resumes after a kill, and rejects bad settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from glance_core import tiny


def _train(out, *more):
    command = f"{sys.executable} -m glance_core.tiny.pretrain --steps 8 --save-every 2 --no-compile --out".split()
    command += [str(out), *more]
    return subprocess.Popen(
        command, cwd=tiny.FOLDER.parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    run = _train(folder)
    assert run.wait(300) == 0, run.stderr.read()
    return folder


def test_killed_run_resumes_and_ends_with_the_same_bits(tmp_path, trained):
    killed = _train(tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoint.safetensors").exists():
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    resumed = _train(tmp_path / "killed")
    assert resumed.wait(300) == 0, resumed.stderr.read()
    for name in ("glance_tiny_flux.safetensors", "glance_tiny_words.safetensors"):
        one, two = load_file(trained / name), load_file(tmp_path / "killed" / name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 8 and steps == sorted(set(steps))  # nothing is trained twice
    assert len({2, 4, 6, 8} - set(steps)) <= 1  # the kill may come between a checkpoint and its line in the log


def test_next_run_finishes_one_that_was_killed_between_its_two_files(tmp_path, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "glance_tiny_flux.safetensors").unlink()
    assert _train(run).wait(300) == 0
    written, unbroken = (folder / "glance_tiny_flux.safetensors" for folder in (run, trained))
    assert written.read_bytes() == unbroken.read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "5"], b"cannot share 48 pictures"),
        (["--workers", "0"], b"--workers 0"),
        (["--save-every", "0"], b"at least 1"),
    ],
)
def test_bad_option_is_rejected_at_once(tmp_path, more, message):
    rejected = _train(tmp_path, *more)
    assert rejected.wait(60) == 2
    assert message in rejected.stderr.read()


def test_resuming_with_other_settings_is_rejected(tmp_path, trained):
    other = _train(shutil.copytree(trained, tmp_path / "run"), "--seed", "5")
    assert other.wait(300) != 0
    assert b"written with other settings" in other.stderr.read()
