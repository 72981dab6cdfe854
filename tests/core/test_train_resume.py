"""python -m glance_core train continues after a stop, and touches no file that is not its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from train_command import CAPTION, ONE_PROMPT, PAIR, SECOND_PAIR, content, metadata, names, train

from glance_core.tiny.model import Flux
from glance_core.training.run.run_dir import RunDir, find_run_dir

ROOT = Path(__file__).parents[2]
RUN, TEACHER = "glance_tiny.run.safetensors", "glance_tiny.teacher.safetensors"


class Stop(BaseException):
    pass


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return the folder of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert train(folder, *ONE_PROMPT) == 0
    return folder


def stopped_run(out, monkeypatch, at, *more):
    """Leave a run as a stop at its `at`-th model call with gradients leaves it."""
    real, count = Flux.forward, [0]

    def forward(self, *args):
        count[0] += torch.is_grad_enabled()
        if count[0] == at:
            raise Stop
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Flux, "forward", forward)
        with pytest.raises(Stop):
            train(out, *more)


@pytest.mark.parametrize("at", [1, 2, 4, 6])
def test_same_command_continues_after_a_stop_and_ends_with_the_same_files(unbroken, tmp_path, monkeypatch, at):
    stopped_run(tmp_path, monkeypatch, at, *ONE_PROMPT)
    assert names(tmp_path) == ([TEACHER] if at == 1 else [RUN, TEACHER])
    assert train(tmp_path, *ONE_PROMPT) == 0
    assert names(tmp_path) == PAIR
    for name in PAIR:
        assert content(tmp_path / name) == content(unbroken / name)


def test_no_resume_starts_again_under_a_free_name(unbroken, tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, 3, *ONE_PROMPT)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert train(tmp_path, *ONE_PROMPT, "--no-resume") == 0
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert names(tmp_path) == sorted([*kept, *SECOND_PAIR])
    assert train(tmp_path, *ONE_PROMPT) == 0  # the first run can still continue
    assert content(tmp_path / PAIR[0]) == content(unbroken / PAIR[0])


@pytest.mark.parametrize("changes, message", [
    (["--steps", "4"], "steps 3, but this run has 4"),
    (["--rank", "8", "--alpha", "16"], "rank 16, but this run has 8"),
    (["--seed", "1"], "data "),
    (["--learning-rate", "0.01"], "learning_rate 0.002, but this run has 0.01"),
    (["--fold-guidance"], "fold_guidance False, but this run has True"),
    (["--caption", "a red star"], "data "),
])  # fmt: skip
def test_resuming_with_other_settings_is_rejected_and_changes_no_file(tmp_path, monkeypatch, capsys, changes, message):
    stopped_run(tmp_path, monkeypatch, 3, *ONE_PROMPT)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert train(tmp_path, *ONE_PROMPT, *changes) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: glance_tiny.") and message in error
    assert "set it back to resume, or choose another" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_teacher_file_that_no_run_needs_is_replaced(unbroken, tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, 1, "--caption", "a red star", "--noises", "2")
    assert names(tmp_path) == [TEACHER]
    assert train(tmp_path, *ONE_PROMPT) == 0
    assert content(tmp_path / PAIR[0]) == content(unbroken / PAIR[0])


@pytest.mark.parametrize("end", ["teacher", "run"])
@pytest.mark.parametrize("data", [b"", b"somebody's notes", None], ids=["empty", "text", "a LoRA"])
def test_file_of_another_program_is_rejected_and_not_changed(tmp_path, capsys, end, data):
    path = tmp_path / f"glance_tiny.{end}.safetensors"
    path.write_bytes(data) if data is not None else save_file({"a.lora_A.weight": torch.zeros(1, 1)}, path)
    before = path.read_bytes()
    assert train(tmp_path, *ONE_PROMPT) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path.name} is not a checkpoint of this version")
    assert "delete it, or train under another name" in error
    assert path.read_bytes() == before


def test_run_killed_between_its_two_files_is_finished_without_a_second_slow_file(unbroken, tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, 6, *ONE_PROMPT)
    slow = tmp_path / PAIR[1]
    slow.write_bytes((unbroken / PAIR[1]).read_bytes())
    assert train(tmp_path, *ONE_PROMPT) == 0
    assert names(tmp_path) == PAIR
    assert content(tmp_path / PAIR[0]) == content(unbroken / PAIR[0])


def test_pair_of_another_run_with_this_name_stays(unbroken, tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, 6, *ONE_PROMPT)
    (tmp_path / PAIR[1]).write_bytes(b"somebody's own")
    assert train(tmp_path, *ONE_PROMPT) == 0
    assert (tmp_path / PAIR[1]).read_bytes() == b"somebody's own"
    assert sorted(names(tmp_path)) == sorted([PAIR[1], *SECOND_PAIR])


def test_old_half_written_files_of_killed_runs_are_removed(tmp_path):
    ends = (".run.safetensors", ".teacher.safetensors", "_slow.safetensors", "_fast.safetensors")
    ours = [f".mine{end}.abc123.part" for end in ends]
    others = [".mine-2.run.safetensors.abc.part", ".yours.run.safetensors.abc.part", "mine.run.safetensors.part"]
    fresh = ".mine.run.safetensors.new.part"
    for name in (*ours, *others, fresh):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whole").touch()
        if name != fresh:
            os.utime(tmp_path / name, (time.time() - 601,) * 2)
    RunDir(tmp_path, "mine").sweep()
    assert names(tmp_path) == sorted([*others, fresh])
    assert RunDir(tmp_path, "[x]*").sweep() is None


def test_run_takes_the_name_of_its_unfinished_files_or_a_free_one(tmp_path):
    def name(resume):
        return find_run_dir(tmp_path, "a", resume).name

    assert name(True) == name(False) == "a"
    (tmp_path / "a.run.safetensors").touch()
    assert (name(True), name(False)) == ("a", "a-2")
    (tmp_path / "a_slow.safetensors").touch()
    assert (name(True), name(False)) == ("a", "a-2")
    (tmp_path / "a.run.safetensors").unlink()
    assert name(True) == name(False) == "a-2"
    (tmp_path / "a-2.teacher.safetensors").touch()
    assert (name(True), name(False)) == ("a-2", "a-3")


@pytest.fixture
def interruptible():
    """Let child processes receive SIGINT, as in a terminal. A shell that runs tests in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("moment", ["training", "teacher"])
def test_control_c_ends_with_130_one_sentence_and_a_run_to_resume(tmp_path, moment, interruptible):
    out = tmp_path / "out"
    noises, sign = {"training": ("2", out / RUN), "teacher": ("500", out)}[moment]
    command = [sys.executable, "-m", "glance_core", "train", "--caption", CAPTION, "--noises", noises]
    command += ["--steps", "5000", "--batch", "1", "--save-every", "3", "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)
    try:
        while not sign.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in error
    if moment == "training":
        assert error.splitlines()[-1] == f"stopped; the run is kept in {sign}, and the same command continues it"
        assert json.loads(metadata(sign)["glance_run"])["step"] > 3
    else:
        assert error.splitlines()[-1].startswith("stopped")
