"""Files and numbers made to exhaust time, memory or file handles, and files that change while they are read."""

import itertools
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from crafted_files import DOWN, ONE, UP, entry, header_of_pair, rejection, with_metadata, write
from safetensors.torch import save_file
from untrusted_files import safetensors

from glance_core.errors import ScheduleError
from glance_core.lora import safetensors_io
from glance_core.lora.safetensors_io import read_tensors, write_new
from glance_core.schedule.sigmas import teacher_sigmas
from glance_core.schedule.split import split_steps

ROOT = Path(__file__).resolve().parents[2]
SMALL = {DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}


def many(count, pattern):
    return safetensors(b"{" + b",".join(pattern % i for i in range(count)) + b"}")


def with_config(text):
    return with_metadata(lora_adapter_metadata=text)


def with_patterns(count):
    return with_config(json.dumps({"alpha_pattern": {str(i): 1 for i in range(count)}}))


def with_dots(count):
    """Return a file whose modules have names of 240 dots, each of which may begin a name of alpha_pattern."""
    config = json.dumps({"lora_alpha": 8, "alpha_pattern": {"to_q": 2}})
    header = {"__metadata__": {"lora_adapter_metadata": config}}
    for i, x in itertools.product(range(count), "AB"):
        start = 4 * (len(header) - 1)
        header[f"{'a.' * 236}{i:07d}.lora_{x}.weight"] = entry(start, start + 4, [1, 1])
    return safetensors(header, ONE * (2 * count))


EMPTY = b'"%%d.%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
ENDLESS_SIGMAS = {"glance.format": "2", "glance.sigmas": "[" + "1," * 9_000_000 + "1]"}
ENDLESS_STEPS = {"glance.format": "2", "glance.teacher_steps": "50", "glance.steps": "1," * 10_000_000 + "|2"}
BOMBS = {
    "10^6 keys": lambda: many(1_000_000, EMPTY % b"lora_A.weight"),
    "10^5 keys and more": lambda: many(300_000, EMPTY % b"alpha"),
    "one name of 20 MB": lambda: safetensors({"a_" * 10_000_000 + ".lora_A.weight": entry(0, 0, [0])}),
    "metadata of lists": lambda: with_config("[" + "[]," * 7_000_000 + "[]]"),
    "endless sigmas": lambda: with_metadata(**ENDLESS_SIGMAS),
    "deep metadata": lambda: with_config('{"a":' * 500_000),
    "endless patterns": lambda: with_patterns(400_000),
    "endless steps": lambda: with_metadata(**ENDLESS_STEPS),
    "a damaged header of lists": lambda: safetensors(b'{"a":[' + b"[]," * 7_000_000 + b"[]]}"),
    "a damaged header that is parsed again": lambda: safetensors(b'{"a":[' + b"[]," * 600_000 + b"[]]}"),
}  # fmt: skip
ODD = {"many patterns": lambda: with_patterns(200_000), "many dots": lambda: with_dots(10_000)}
READ = {"many patterns": "read 1", "many dots": "read 10000"}
SECONDS, MEGABYTES = 15, 400  # for a file whose header may have 25 MB

_READ_EACH = """
import sys, threading, time
from glance_core.errors import GlanceError
from glance_core.lora.reader import read_adapter
def anonymous():  # megabytes that do not belong to a mapped file
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) // 1024
def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)
peak = [0]
threading.Thread(target=watch, daemon=True).start()
for path in sys.argv[1:]:
    peak[0] = before = anonymous()
    began = time.process_time()
    try:
        outcome = f"read {len(read_adapter(path).factors)}"
    except GlanceError as error:
        outcome = f"rejected: {error}"
    print(peak[0] - before, time.process_time() - began, outcome, flush=True)
"""


def read_each(paths):
    """Read the files in a process of its own. Yield (name, megabytes at most, seconds, outcome) of each."""
    command = [sys.executable, "-c", _READ_EACH, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        megabytes, seconds, outcome = line.split(" ", 2)
        yield path.name, int(megabytes), float(seconds), outcome


@pytest.mark.skipif(sys.platform != "linux", reason="measures a process with Linux's /proc")
def test_small_files_take_little_memory_and_time(tmp_path):
    files = BOMBS | ODD
    for what, make in files.items():
        (tmp_path / what).write_bytes(make())
    for what, megabytes, seconds, outcome in read_each([tmp_path / what for what in files]):
        print(f"{what}: {megabytes} MB, {seconds:.1f} s, {outcome[:100]}")
        expected = outcome == READ[what] if what in READ else outcome.startswith("rejected: ")
        assert expected and megabytes < MEGABYTES and seconds < SECONDS, what


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files and Linux's /proc")
def test_large_tensor_is_checked_in_pieces(tmp_path):
    """512 MB that use no disk. A check of all of it at once would copy it."""
    rows = 1 << 27
    header = {DOWN: entry(0, 4 * rows, [1, rows]), UP: entry(4 * rows, 4 * rows + 4, [1, 1])}
    path = write(tmp_path, safetensors(header))
    os.truncate(path, path.stat().st_size + 4 * rows + 4)
    ((_, megabytes, _, outcome),) = read_each([path])
    print(f"{megabytes} MB, {outcome}")
    assert outcome == "read 1" and megabytes < 300


def test_writing_leaves_the_umask_of_other_threads_alone(tmp_path, monkeypatch):
    """Only setting the umask reads it, so two threads that do so at once may leave the wrong one behind."""
    set_to = []
    umask = os.umask
    before = umask(0o027)
    monkeypatch.setattr(os, "umask", lambda mask: set_to.append(mask) or umask(mask))
    try:
        threads = [
            threading.Thread(target=write_new, args=(tmp_path / f"{i}", {"a": torch.zeros(1)}, {})) for i in range(8)
        ]
        for step in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                step(thread)
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640} or os.name == "nt"
        assert len(list(tmp_path.iterdir())) == 8
    finally:
        after = umask(before)
    assert (after, set_to) == (0o027, [])


@pytest.mark.parametrize(
    "change",
    [Path.unlink, lambda path: os.truncate(path, 20), lambda path: path.write_bytes(b"")],
    ids=["vanishes", "shrinks", "is emptied"],
)
def test_file_that_changes_between_two_looks_gives_one_sentence(change, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(SMALL, path)
    safe_open = safetensors_io.safe_open

    def change_and_open(*args, **more):
        change(path)
        return safe_open(*args, **more)

    monkeypatch.setattr(safetensors_io, "safe_open", change_and_open)
    rejection(path)


def test_endless_numbers_in_schedules_are_rejected_at_once():
    began = time.process_time()
    for make in (
        lambda: teacher_sigmas("flux", 50, tokens=10**400),
        lambda: teacher_sigmas("qwen-image", 10**9, tokens=4096),
        lambda: teacher_sigmas("shift", 10**30, shift=3.0),
        lambda: split_steps(5, 999_999, 10_000),
        lambda: split_steps(5, 9_000, 10_000),
    ):
        with pytest.raises(ScheduleError) as rejected:
            make()
        assert str(rejected.value).isprintable()
    assert time.process_time() - began < 3


def test_error_names_the_most_fast_steps_that_fit():
    """Found by trying every number."""
    for teacher, boundary in itertools.product(range(2, 40), range(1, 39)):
        if boundary < teacher:
            fit = []
            for count in range(1, teacher + 1):
                try:
                    split_steps(1, count, teacher, boundary)
                    fit.append(count)
                except ScheduleError as error:
                    message = str(error)
            assert f"use at most {max(fit)}" in message


def test_reader_leaves_no_file_open(tmp_path):
    """Five hundred reads of good and bad files, with a limit of 200 open files."""
    save_file(SMALL, tmp_path / "good.safetensors")
    write(tmp_path, safetensors(header_of_pair(), ONE))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limit[1]))
    try:
        for _ in range(250):
            read_tensors(tmp_path / "good.safetensors")
            rejection(tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
