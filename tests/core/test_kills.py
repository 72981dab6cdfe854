"""A training run killed at any moment and started again ends with the files of a run that never was.

GLANCE_KILLS=200 asks for more kills than the suite's usual few.
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
from glance_core.run_files import LOCK_END, RUN_ENDS
from glance_core.schedule import SLOW

KILLS = int(os.environ.get("GLANCE_KILLS", "4"))
PAIR = ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")
STEPS = 12


@pytest.fixture(scope="module")
def forked():
    """Processes that have the imports behind them, so that the kills fall on the run itself."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glance_core.tiny.pair", "glance_core.__main__", "peft"])
    yield context
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a small red star left and a large blue ring on striped black\na large green heart\n", encoding="utf-8")
    return path


def begin(forked, prompts, folder):
    arguments = [
        "train",
        "--prompts",
        prompts,
        "--objective",
        "trajectory",
        "--noises",
        1,
        "--steps",
        STEPS,
        "--batch",
        2,
        "--save-every",
        1,
        "--judged",
        2,
        "--held-out",
        0,
        "--out",
        folder,
    ]
    process = forked.Process(target=main, args=([str(word) for word in arguments],))
    process.start()
    return process


def how_far(folder):
    """Steps done, as the checkpoint has it; every file is read whole on the way."""
    done = 0.0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                file.get_tensor(key)
            if path.name.endswith(".run.safetensors"):
                told = json.loads(file.metadata()["glance_run"])
                done = told["step"] + (0 if told["phase"] == SLOW else STEPS)
    return math.inf if all((folder / name).exists() for name in PAIR) else done


def content(path):
    """All that a file says but when it was written; safetensors writes its metadata in any order, so bytes would not do."""
    with safe_open(path, "pt") as file:
        told = {key: value for key, value in file.metadata().items() if key != "modelspec.date"}
        return told, {key: (file.get_tensor(key).dtype, file.get_tensor(key).tolist()) for key in file.keys()}  # noqa: SIM118


def finished(folder, whole):
    assert sorted(path.name for path in folder.iterdir() if not path.name.endswith((".part", LOCK_END))) == sorted(PAIR)
    for name in PAIR:
        assert content(folder / name) == content(whole / name)


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_an_unbroken_one(forked, prompts, tmp_path):
    begin(forked, prompts, tmp_path / "first").join()  # the fork server's own start is behind us
    began = time.monotonic()
    process = begin(forked, prompts, tmp_path / "whole")
    process.join()
    seconds = time.monotonic() - began
    assert process.exitcode == 0
    finished(tmp_path / "whole", tmp_path / "first")

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
            now = how_far(folder)
            assert now >= before
            before = now
            at.append(now)
            if now < math.inf or any((folder / f"glance_tiny{end}").exists() for end in RUN_ENDS):
                continue  # else it was killed between its last deed and its end: the same command would begin another pair
        else:
            assert process.exitcode == 0
        finished(folder, tmp_path / "whole")
        runs, before = runs + 1, 0.0
        folder = tmp_path / f"run{runs}"
    process = begin(forked, prompts, folder)
    process.join()
    assert process.exitcode == 0
    finished(folder, tmp_path / "whole")
    print(f"{kills} kills in {runs + 1} runs, with so many steps kept: {at}")


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_what_kills_leave_half_written_does_not_pile_up(forked, prompts, tmp_path):
    old = [tmp_path / f".glance_tiny{end}.x{i}.part" for i in range(3) for end in (".run.safetensors", ".teacher.safetensors")]
    for path in old:
        path.mkdir()
        (path / ".tmpHalf").write_bytes(b"half")
        os.utime(path, (time.time() - 3600,) * 2)
    process = begin(forked, prompts, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PAIR)
