"""Kill a training run at any moment and start it again. It ends with the files of a run that was never killed.

GLANCE_KILLS=200 asks for more kills than usual.
"""

import json
import math
import multiprocessing
import os
import random
import signal
import time

import pytest
from safetensors import safe_open

from glance_core.__main__ import main
from glance_core.schedule.split import SLOW
from glance_core.training.run.run_dir import LOCK_END, RUN_ENDS

KILLS = int(os.environ.get("GLANCE_KILLS", "4"))
PAIR = ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")
STEPS = 12


@pytest.fixture(scope="module")
def forked():
    """Return a context whose processes are past the imports, so that kills hit the run itself."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glance_core.tiny.distillation", "glance_core.__main__", "peft"])
    yield context
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(
        "a small red star left and a large blue ring on striped black\na large green heart\n", encoding="utf-8"
    )
    return path


def begin(forked, prompts, folder):
    arguments = [
        "train", "--prompts", prompts, "--objective", "teacher_forced", "--noises", 1, "--steps", STEPS, "--batch", 2,
        "--save-every", 1, "--judged", 2, "--held-out", 0, "--out", folder,
    ]  # fmt: skip
    process = forked.Process(target=main, args=([str(word) for word in arguments],))
    process.start()
    return process


def steps_done(folder):
    """Return the checkpoint's steps. Every file must be readable."""
    done = 0.0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                file.get_tensor(key)
            if path.name.endswith(".run.safetensors"):
                facts = json.loads(file.metadata()["glance_run"])
                done = facts["step"] + (0 if facts["part"] == SLOW else STEPS)
    return math.inf if all((folder / name).exists() for name in PAIR) else done


def content(path):
    """Return metadata without the date, and tensors. safetensors does not order metadata, so bytes can differ."""
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "modelspec.date"}
        return metadata, {key: (file.get_tensor(key).dtype, file.get_tensor(key).tolist()) for key in file.keys()}  # noqa: SIM118


def check_finished(folder, unbroken):
    assert sorted(path.name for path in folder.iterdir() if not path.name.endswith((".part", LOCK_END))) == sorted(PAIR)
    for name in PAIR:
        assert content(folder / name) == content(unbroken / name)


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_run_killed_at_random_moments_ends_like_an_unbroken_one(forked, prompts, tmp_path):
    begin(forked, prompts, tmp_path / "first").join()  # includes the start of the fork server
    began = time.monotonic()
    process = begin(forked, prompts, tmp_path / "unbroken")
    process.join()
    seconds = time.monotonic() - began
    assert process.exitcode == 0
    check_finished(tmp_path / "unbroken", tmp_path / "first")

    moments, kills, runs, before, at = random.Random(0), 0, 0, 0.0, []
    folder = tmp_path / "run0"
    while kills < KILLS:
        process = begin(forked, prompts, folder)
        process.join(moments.uniform(0.05, 1) * seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            now = steps_done(folder)
            assert now >= before
            before = now
            at.append(now)
            if now < math.inf or any((folder / f"glance_tiny{end}").exists() for end in RUN_ENDS):
                continue  # otherwise the kill came after its last write, and the same command would start a new pair
        else:
            assert process.exitcode == 0
        check_finished(folder, tmp_path / "unbroken")
        runs, before = runs + 1, 0.0
        folder = tmp_path / f"run{runs}"
    process = begin(forked, prompts, folder)
    process.join()
    assert process.exitcode == 0
    check_finished(folder, tmp_path / "unbroken")
    print(f"{kills} kills in {runs + 1} runs; steps saved at each kill: {at}")


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_half_written_files_of_killed_runs_are_removed(forked, prompts, tmp_path):
    old = [
        tmp_path / f".glance_tiny{end}.x{i}.part"
        for i in range(3)
        for end in (".run.safetensors", ".teacher.safetensors")
    ]
    for path in old:
        path.mkdir()
        (path / ".tmpHalf").write_bytes(b"half")
        os.utime(path, (time.time() - 3600,) * 2)
    process = begin(forked, prompts, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PAIR)
