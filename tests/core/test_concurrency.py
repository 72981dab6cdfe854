"""Processes that train, write and read under the same names in one folder: nothing is lost, and nobody sees half a file."""

import itertools
import multiprocessing
import os
import signal
import time

import pytest
import rivals
import torch

from glance_core import tensor_file
from glance_core.errors import TrainingError
from glance_core.lora_file import check_pair, read_adapter
from glance_core.run_files import LOCK_END, RunFiles
from glance_core.schedule import FAST, SLOW
from glance_core.tensor_file import read_tensors, write_over

PAIR = ["glance_tiny_fast.safetensors", "glance_tiny_slow.safetensors"]


@pytest.fixture(scope="module")
def forked():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glance_core.tiny.pair", "glance_core.__main__", "peft", "rivals"])
    return context


def together(forked, target, count, *arguments):
    """Run `count` processes that begin at one moment."""
    begin = forked.Barrier(count)
    processes = [
        forked.Process(target=target, args=(*(part(i) if callable(part) else part for part in arguments), begin)) for i in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def test_one_process_at_a_time_has_a_lock(forked, tmp_path):
    (tmp_path / "number").write_text("0")
    together(forked, rivals.count_up, 3, tmp_path, 200)
    assert (tmp_path / "number").read_text() == "600"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_pairs_that_several_processes_write_under_one_name_are_all_kept_and_do_not_mix(forked, tmp_path):
    together(forked, rivals.write_pairs, 3, tmp_path, lambda i: i, 8)
    slows = sorted(tmp_path.glob("*_slow.safetensors"))
    assert len(slows) == 24 and len(list(tmp_path.iterdir())) == 48
    numbers = set()
    for slow in slows:
        pair = [read_adapter(slow), read_adapter(slow.with_name(slow.name.replace("_slow", "_fast")))]
        assert check_pair(*pair) == ()
        assert [each.trained.phase for each in pair] == [SLOW, FAST]
        slow_number, fast_number = (float(next(iter(each.factors.values())).down[0, 0]) for each in pair)
        assert fast_number == slow_number + 0.5
        numbers.add(slow_number)
    assert numbers == {100.0 * who + count for who in range(3) for count in range(8)}


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    """safetensors opens it once for the header and once more for the numbers."""
    path, opened = tmp_path / "run.safetensors", tensor_file.safe_open
    contents = iter(range(1, 3))

    def replaced_meanwhile(*given, **more):
        file = opened(*given, **more)
        for count in itertools.islice(contents, 1):
            write_over(path, {"a": torch.full((4,), float(count))}, {"count": str(count)})
        return file

    write_over(path, {"a": torch.zeros(4)}, {"count": "0"})
    monkeypatch.setattr(tensor_file, "safe_open", replaced_meanwhile)
    tensors, told = read_tensors(path)
    assert told["count"] == "2" and tensors["a"].tolist() == [2.0] * 4


def test_a_reader_beside_a_writer_never_sees_half_a_file(forked, tmp_path):
    writer = forked.Process(target=rivals.write_and_write, args=(tmp_path, 150))
    writer.start()
    seen, last = 0, 0
    while writer.is_alive():
        for path in tmp_path.glob("*.safetensors"):
            tensors, told = read_tensors(path)
            assert len(tensors) == 8
            assert all((tensor == float(told["count"])).all() for tensor in tensors.values())
            seen += 1
            if path.name == "run.safetensors":
                assert int(told["count"]) >= last
                last = int(told["count"])
    assert writer.exitcode == 0
    print(f"{seen} files read whole beside 300 written ones")
    assert seen > 20


TRAIN = ["train", "--caption", "a small red star left", "--objective", "trajectory", "--noises", "1", "--steps", "3", "--batch", "2", "--judged", "2",
         "--held-out", "0", "--save-every", "1"]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="halts a process with SIGSTOP")
def test_two_trainings_of_one_name_in_one_folder_do_not_touch_each_others_run(forked, tmp_path):
    """While the first is halted in its midst, the second is refused, or goes beside it where asked to; the first ends as if it were alone."""

    def begin(folder, said, *more):
        process = forked.Process(target=rivals.train, args=([*TRAIN, "--out", str(folder), *more], tmp_path / said))
        process.start()
        return process

    alone, folder = tmp_path / "alone", tmp_path / "together"
    begin(alone, "alone.txt").join()
    first = begin(folder, "first.txt")
    while not (folder / "glance_tiny.run.safetensors").exists():
        assert first.is_alive()
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGSTOP)
    kept = (folder / "glance_tiny.run.safetensors").read_bytes()
    second = begin(folder, "second.txt")
    second.join()
    assert second.exitcode not in (0, None)
    (said,) = (tmp_path / "second.txt").read_text().splitlines()
    assert "a training under the name glance_tiny is under way already, and keeps its run in" in said
    assert said.endswith("wait for its end, or choose another name")
    beside = begin(folder, "beside.txt", "--no-resume", "--seed", "1")
    beside.join()
    assert beside.exitcode == 0, (tmp_path / "beside.txt").read_text()
    assert (folder / "glance_tiny.run.safetensors").read_bytes() == kept
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0, (tmp_path / "first.txt").read_text()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PAIR, *(name.replace("tiny_", "tiny-2_") for name in PAIR)])
    for name in PAIR:
        one, other = (read_tensors(where / name)[0] for where in (alone, folder))
        assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def test_a_killed_runs_lock_holds_nobody_up(forked, tmp_path):
    holder = forked.Process(target=rivals.hold, args=(tmp_path, "mine"))
    holder.start()
    files = RunFiles(tmp_path, "mine")
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(TrainingError, match="a training under the name mine is under way already"), files.alone():
        pass
    with RunFiles(tmp_path, "other").alone():
        pass
    holder.kill()
    holder.join()
    assert files.folder.joinpath(f"mine{LOCK_END}").exists()
    with files.alone():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["held"]
