"""Processes train, write and read under the same names in one folder. Nothing is lost, and nobody reads half a file."""

import itertools
import multiprocessing
import os
import signal
import time

import pytest
import rival_processes
import torch

from glance_core.errors import TrainingError
from glance_core.lora import safetensors_io
from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter
from glance_core.lora.safetensors_io import read_tensors, write_over
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.run.run_dir import LOCK_END, RunDir

PAIR = ["glance_tiny_fast.safetensors", "glance_tiny_slow.safetensors"]


@pytest.fixture(scope="module")
def forked():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glance_core.tiny.distillation", "glance_core.__main__", "peft", "rival_processes"])
    return context


def together(forked, target, count, *arguments):
    """Run `count` processes that start at the same moment. A callable argument gets the process's number."""
    begin = forked.Barrier(count)
    processes = [
        forked.Process(target=target, args=(*(each(i) if callable(each) else each for each in arguments), begin))
        for i in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def test_one_process_at_a_time_holds_the_lock(forked, tmp_path):
    (tmp_path / "number").write_text("0")
    together(forked, rival_processes.count_up, 3, tmp_path, 200)
    assert (tmp_path / "number").read_text() == "600"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_pairs_written_under_one_name_at_the_same_time_are_all_kept(forked, tmp_path):
    together(forked, rival_processes.write_pairs, 3, tmp_path, lambda i: i, 8)
    slows = sorted(tmp_path.glob("*_slow.safetensors"))
    assert len(slows) == 24 and len(list(tmp_path.iterdir())) == 48
    numbers = set()
    for slow in slows:
        pair = [read_adapter(slow), read_adapter(slow.with_name(slow.name.replace("_slow", "_fast")))]
        assert check_pair(*pair) == ()
        assert [each.pair.phase for each in pair] == [SLOW, FAST]
        slow_number, fast_number = (float(next(iter(each.factors.values())).down[0, 0]) for each in pair)
        assert fast_number == slow_number + 0.5
        numbers.add(slow_number)
    assert numbers == {100.0 * who + count for who in range(3) for count in range(8)}


def test_file_that_is_replaced_while_being_read_is_read_again(tmp_path, monkeypatch):
    """safetensors opens a file once for the header and once for the numbers."""
    path, real_open = tmp_path / "run.safetensors", safetensors_io.safe_open
    contents = iter(range(1, 3))

    def open_and_replace(*arguments, **more):
        file = real_open(*arguments, **more)
        for count in itertools.islice(contents, 1):
            write_over(path, {"a": torch.full((4,), float(count))}, {"count": str(count)})
        return file

    write_over(path, {"a": torch.zeros(4)}, {"count": "0"})
    monkeypatch.setattr(safetensors_io, "safe_open", open_and_replace)
    tensors, metadata = read_tensors(path)
    assert metadata["count"] == "2" and tensors["a"].tolist() == [2.0] * 4


def test_reader_never_sees_half_a_file(forked, tmp_path):
    writer = forked.Process(target=rival_processes.keep_writing, args=(tmp_path, 150))
    writer.start()
    seen, last = 0, 0
    while writer.is_alive():
        for path in tmp_path.glob("*.safetensors"):
            tensors, metadata = read_tensors(path)
            assert len(tensors) == 8
            assert all((tensor == float(metadata["count"])).all() for tensor in tensors.values())
            seen += 1
            if path.name == "run.safetensors":
                assert int(metadata["count"]) >= last
                last = int(metadata["count"])
    assert writer.exitcode == 0
    print(f"{seen} whole files read while 300 were written")
    assert seen > 20


TRAIN = [
    "train", "--caption", "a small red star left", "--objective", "teacher_forced", "--noises", "1", "--steps", "3",
    "--batch", "2", "--judged", "2", "--held-out", "0", "--save-every", "1",
]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="stops a process with SIGSTOP")
def test_second_training_of_a_name_is_rejected_and_does_not_touch_the_first(forked, tmp_path):
    """--no-resume lets the second run beside the first, under another name. The first ends as if it were alone."""

    def begin(folder, output, *more):
        arguments = [*TRAIN, "--out", str(folder), *more]
        process = forked.Process(target=rival_processes.train, args=(arguments, tmp_path / output))
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
    (error,) = (tmp_path / "second.txt").read_text().splitlines()
    assert "glance_tiny is being trained already, with its run in" in error
    assert error.endswith("wait until that ends, or choose another name")
    beside = begin(folder, "beside.txt", "--no-resume", "--seed", "1")
    beside.join()
    assert beside.exitcode == 0, (tmp_path / "beside.txt").read_text()
    assert (folder / "glance_tiny.run.safetensors").read_bytes() == kept
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0, (tmp_path / "first.txt").read_text()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*PAIR, *(name.replace("tiny_", "tiny-2_") for name in PAIR)]
    )
    for name in PAIR:
        one, other = (read_tensors(where / name)[0] for where in (alone, folder))
        assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def test_lock_of_a_killed_run_does_not_block_others(forked, tmp_path):
    holder = forked.Process(target=rival_processes.hold, args=(tmp_path, "mine"))
    holder.start()
    run_dir = RunDir(tmp_path, "mine")
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(TrainingError, match="mine is being trained already"), run_dir.alone():
        pass
    with RunDir(tmp_path, "other").alone():
        pass
    holder.kill()
    holder.join()
    assert run_dir.folder.joinpath(f"mine{LOCK_END}").exists()
    with run_dir.alone():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["held"]
