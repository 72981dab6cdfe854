"""Files made to harm: whatever they claim, the reader answers with an adapter or one sentence, soon and in little memory."""

import itertools
import json
import math
import os
import pickle
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glance_core.__main__ import main
from glance_core.adapter_metadata import Trained
from glance_core.errors import AdapterError, GlanceError, ScheduleError
from glance_core.lora_file import Factor, read_adapter
from glance_core.lora_write import convert, free_name, write_adapter, write_pair
from glance_core.run_files import run_files
from glance_core.schedule import FAST, SLOW, split_steps, teacher_ladder
from glance_core.tensor_file import read_tensors, write_new, write_over

ROOT = Path(__file__).resolve().parents[2]
MODULE = "transformer_blocks.0.attn.to_q"
DOWN, UP, ALPHA = (f"{MODULE}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha"))
ONE = struct.pack("<f", 1)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def pair_of(**changes):
    """The header of a good file of rank 1, with changes."""
    return {DOWN: entry(0, 4, [1, 1]), UP: entry(4, 8, [1, 1]), **changes}


def refused(path):
    """The sentence, which must be one, and safe to print."""
    with pytest.raises(AdapterError) as found:
        read_adapter(path)
    said = str(found.value)
    assert said.isprintable() and len(said) <= 1010, said
    return said


def written(folder, content):
    path = folder / "a.safetensors"
    path.write_bytes(content)
    return path


HEADERS = {
    "a header that claims 10 GB": (struct.pack("<Q", 10 * 2**30) + b"{" + b" " * 100, "the header claims 10737418240 bytes but the file has 109"),
    "a tensor of 10 GB": (safetensors(pair_of(big=entry(8, 8 + 10 * 2**30, [10 * 2**28])), ONE * 2), "cut off: its header tells of 107374"),
    "rows 2^64": (safetensors(pair_of(**{DOWN: entry(0, 4, [2**64, 1])}), ONE * 2), "not a valid safetensors"),
    "rows 2^63 times 2": (safetensors(pair_of(**{DOWN: entry(0, 4, [2**63, 2])}), ONE * 2), "not a valid safetensors"),
    "negative rows": (safetensors(pair_of(**{DOWN: entry(0, 4, [-1, -1])}), ONE * 2), "not a valid safetensors"),
    "no rows": (safetensors({DOWN: entry(0, 0, [0, 1]), UP: entry(0, 0, [1, 0])}), "do not fit"),
    "no rows of 2^62": (safetensors({DOWN: entry(0, 0, [0, 2**62]), UP: entry(0, 0, [2**62, 0])}), "do not fit|not a valid safetensors"),
    "no dimensions": (safetensors({DOWN: entry(0, 4, []), UP: entry(4, 8, [])}, ONE * 2), "do not fit"),
    "a thousand dimensions": (safetensors({DOWN: entry(0, 4, [1] * 1000), UP: entry(4, 8, [1] * 1000)}, ONE * 2), ""),
    "overlapping offsets": (safetensors(pair_of(**{UP: entry(2, 6, [1, 1])}), ONE + ONE[:2]), "not a valid safetensors"),
    "one place twice": (safetensors(pair_of(**{UP: entry(0, 4, [1, 1])}), ONE), "not a valid safetensors"),
    "offsets backwards": (safetensors(pair_of(**{UP: entry(8, 4, [1, 1])}), ONE), "not a valid safetensors"),
    "a hole": (safetensors(pair_of(**{UP: entry(8, 12, [1, 1])}), ONE * 3), "not a valid safetensors"),
    "fewer bytes than its shape": (safetensors(pair_of(**{UP: entry(4, 8, [2, 1])}), ONE * 2), "not a valid safetensors"),
    "deep JSON": (safetensors(b'{"a":' * 100_000), "not a valid safetensors"),
    "a pickle behind a length": (safetensors(pickle.dumps({"a": 1})), "not a valid safetensors|header claims"),
    "no text": (safetensors(b"\xff" * 64), "not a valid safetensors"),
    "metadata that is no text": (safetensors({"__metadata__": {"a": 1}, **pair_of()}, ONE * 2), "not a valid safetensors"),
    "metadata that is a list": (safetensors({"__metadata__": [], **pair_of()}, ONE * 2), "not a valid safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_lie_are_refused(what, tmp_path):
    content, said = HEADERS[what]
    path = written(tmp_path, content)
    if said:
        with pytest.raises(AdapterError, match=said):
            read_adapter(path)
        refused(path)
    else:  # odd, but nothing that could not be a factor
        assert read_adapter(path).factors[MODULE].rank == 1


DTYPES = {
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F4": 1,
    "F6_E2M3": 3,
    "C64": 8,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "I8": 1,
    "I64": 8,
    "XX": 4,
}


@pytest.mark.parametrize("key", [DOWN, UP, ALPHA])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_other_kinds_are_refused_where_they_could_mean_nothing(dtype, key, tmp_path):
    """Whole numbers may be an alpha; half a byte, complex numbers and those without a NaN may be nothing at all."""
    count = {"F4": 2, "F6_E2M3": 4}.get(dtype, 1)
    header = pair_of(**{ALPHA: entry(8, 12, [])})
    shapes = {DOWN: [1, 1], UP: [1, 1], ALPHA: []}
    position, data = 0, b""
    for name in (DOWN, UP, ALPHA):
        size = DTYPES[dtype] if name == key else 4
        shape = [*shapes[name][:-1], count] if name == key and count > 1 else shapes[name]
        header[name] = entry(position, position + size, shape, dtype if name == key else "F32")
        data += b"\x38" + b"\0" * (size - 1) if name == key else ONE
        position += size
    path = written(tmp_path, safetensors(header, data))
    if key == ALPHA and dtype in ("I8", "I64"):
        assert read_adapter(path).factors[MODULE].scale == 0x38
    else:
        refused(path)


BAD_ALPHAS = {
    "400 digits": 10**400, "NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf, "a text": "8 or so", "a list": [8], "deep": [[[]]],
    "nothing": None, "1e300": 1e300, "5e-324": 5e-324, "400 digits as text": "9" * 400,
}  # fmt: skip


@pytest.mark.parametrize("alpha", BAD_ALPHAS)
@pytest.mark.parametrize("where", ["lora_alpha", "alpha_pattern", "ss_network_alpha"])
def test_an_alpha_that_cannot_be_meant_never_becomes_a_scale(where, alpha, tmp_path):
    value = BAD_ALPHAS[alpha]
    said = {"lora_adapter_metadata": json.dumps({where: {"to_q": value} if where == "alpha_pattern" else value})}
    if where == "ss_network_alpha":
        said = {where: str(value)[:1000]}
    save_file({DOWN: torch.ones(4, 6), UP: torch.ones(5, 4)}, tmp_path / "a.safetensors", metadata=said)
    try:
        factor = read_adapter(tmp_path / "a.safetensors").factors[MODULE]
    except AdapterError as error:
        assert "alpha of transformer_blocks.0.attn.to_q" in str(error)  # noqa: PT017
    else:
        assert (factor.alpha, factor.scale) == (None, 1.0)  # as of a file that says nothing, which the user is told


@pytest.mark.parametrize("alpha", [1e300, 5e-324, 1e-40, -1e35])
def test_an_alpha_that_float32_cannot_hold_is_refused_as_it_could_not_be_written_again(alpha, tmp_path):
    save_file({DOWN: torch.ones(4, 6), UP: torch.ones(5, 4), ALPHA: torch.tensor(alpha, dtype=torch.float64)}, tmp_path / "a.safetensors")
    assert "which no training gives" in refused(tmp_path / "a.safetensors")


PATTERNS = {
    "alternatives that are the same": "(a|a)" * 39 + "b", "options": "a?" * 60 + "a" * 60, "repeats": ".*a" * 10 + "z", "a group repeated": "(a*)*b",
    "a group counted": "(a|aa){50}b", "a hidden group": "(?:a|a)" * 25 + "b", "classes that look like alternatives": "a?" * 20 + "[|]" + "a?" * 30 + "b",
    "a class that begins with its end": "[]a*]" + "(a|a)" * 35, "parentheses that close the package's own": "a)(b|" * 30 + "(c", "a look-ahead by itself": "?=.*x",
    "a count beyond all": "a{99999999999}", "deep": "(" * 100 + ")" * 100, "a reference": r"(a*)\1\1\1\1\1*b", "lazy": ".*?a" * 10 + "z", "verbose": "?x:(a|a)" * 9,
}  # fmt: skip


@pytest.mark.parametrize("what", PATTERNS)
def test_a_pattern_for_alphas_takes_no_longer_than_an_honest_one(what, tmp_path):
    """Matched against names that such patterns hate most, on many modules."""
    names = [".".join(["a" * 9] * 20) + f"{i}" for i in range(100)] + ["a" * 60, "a" * 400]
    tensors = {f"{name}.lora_{x}.weight": torch.ones(1, 1) for name in names for x in "AB"}
    said = {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "alpha_pattern": {PATTERNS[what]: 2}})}
    save_file(tensors, tmp_path / "a.safetensors", metadata=said)
    began = time.process_time()
    try:
        read_adapter(tmp_path / "a.safetensors")
    except AdapterError as error:
        assert "alpha_pattern cannot be read" in str(error)  # noqa: PT017
    assert time.process_time() - began < 6


def test_as_many_patterns_as_layers_are_matched_in_a_moment(tmp_path):
    """As `convert --layout diffusers` writes them for layers of many ranks; a cache of compiled patterns would not hold them."""
    modules = [f"transformer_blocks.{i}.attn.to_q" for i in range(840)]
    patterns = {f"^{module}": i + 1 for i, module in enumerate(modules)}
    tensors = {f"{module}.lora_{x}.weight": torch.ones(1, 1) for module in modules for x in "AB"}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps({"alpha_pattern": patterns})})
    began = time.process_time()
    read = read_adapter(tmp_path / "a.safetensors")
    assert time.process_time() - began < 5
    # PEFT's rule, too: `transformer_blocks.1.attn.to_q` is found by none of the others, their dots standing for any character
    assert [read.factors[module].alpha for module in modules] == list(range(1, 841))


NAMES = ["x\x1b[2Jy", "a\nb", "\u202egpj.exe", "zero\u200bwidth", "a\0b", "tab\t", "a" * 501, "\u2028", "\ufeffa", "\U000e0041"]


@pytest.mark.parametrize("name", NAMES)
def test_tensors_with_names_that_deceive_the_eye_are_refused(name, tmp_path):
    header = {f"{name}.lora_A.weight": entry(0, 4, [1, 1]), f"{name}.lora_B.weight": entry(4, 8, [1, 1])}
    assert "names have at most 500" in refused(written(tmp_path, safetensors(header, ONE * 2)))


def test_names_that_lead_out_of_a_folder_are_names_of_modules_and_no_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [
        "../../../etc/passwd",
        "/etc/passwd",
        "C:\\Windows",
        "\\\\server\\share",
        "~root",
        "$HOME",
        "%TEMP%",
        "\ufb01le",
        "é",
        "e\u0301",
        "..",
        ".",
    ]
    tensors = {f"{name}.lora_{x}.weight": torch.ones(1, 1) for name in names for x in "AB"}
    save_file(tensors, "a.safetensors", metadata={"glance.format": "1", "glance.partner": "../../../etc/passwd", "glance.base": "../x"})
    read = read_adapter("a.safetensors")
    assert read.factors.keys() == set(names)
    convert(read, "b.safetensors")
    assert read_adapter("b.safetensors").factors.keys() == set(names)
    assert main(["inspect", "a.safetensors", "b.safetensors"]) == 0
    assert sorted(os.listdir()) == ["a.safetensors", "b.safetensors"] and len(capsys.readouterr().out) < 5000


def test_a_prefix_without_a_module_does_not_mean_the_whole_model(tmp_path):
    tensors = {
        "lora_unet_.lora_down.weight": torch.ones(1, 1),
        "lora_unet_.lora_up.weight": torch.ones(1, 1),
        DOWN: torch.ones(1, 1),
        UP: torch.ones(1, 1),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_adapter(tmp_path / "a.safetensors")
    assert list(read.factors) == [MODULE] and len(read.skipped) == 2


def test_what_metadata_says_is_shown_without_what_a_terminal_obeys(tmp_path, capsys):
    said = {
        "glance.format": "1",
        "glance.base": "x\x1b[2J\u202e",
        "glance.partner": "a\nb",
        "glance.verdict": "\x07",
        "ss_output_name": "\x1b]0;title\x07 lightning",
    }
    save_file({DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}, tmp_path / "a\x1b[2J.safetensors", metadata=said)
    assert main(["inspect", str(tmp_path / "a\x1b[2J.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "x\\x1b[2J\\u202e" in printed and all(line.isprintable() for line in printed.splitlines())
    assert refused(tmp_path / "none\x1b[2J\n.safetensors").startswith("none\\x1b[2J\\n.safetensors: cannot be opened")


PATHS = [
    "../up",
    "a/b",
    "/etc/x",
    "..",
    ".",
    ".hidden",
    "",
    "a\\b",
    "C:evil",
    "C:\\evil",
    "\\\\server\\x",
    "a\0b",
    "a\nb",
    " a",
    "a ",
    "\u202eb",
    "x" * 101,
]


@pytest.mark.parametrize("name", PATHS)
def test_no_name_of_a_pair_leads_out_of_its_folder(name, tmp_path):
    factors = {phase: {MODULE: Factor(torch.ones(1, 1), torch.ones(1, 1), 1.0, 1.0, MODULE)} for phase in (SLOW, FAST)}
    folder = tmp_path / "loras"
    folder.mkdir()
    for begin in (
        lambda: run_files(folder, name, resume=True),
        lambda: run_files(folder, name, resume=False),
        lambda: write_pair(folder, name, factors, Trained(), {SLOW: (1.0,), FAST: (0.5,)}),
    ):
        with pytest.raises(AdapterError, match="is no plain file name") as told:
            begin()
        assert str(told.value).isprintable()
    assert [item.name for item in tmp_path.rglob("*")] == ["loras"]


def test_a_converted_file_with_an_impossible_name_is_one_sentence(tmp_path):
    save_file({DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}, tmp_path / "a.safetensors")
    read = read_adapter(tmp_path / "a.safetensors")
    for name in ("a\0b.safetensors", "x" * 300 + ".safetensors", "none/b.safetensors", "\udcff.safetensors"):
        try:
            convert(read, tmp_path / name)
        except AdapterError as error:
            assert str(error).isprintable()  # noqa: PT017


def arrives(read, path, said):
    """Reading ends, in a thread of its own so that a wait for ever fails the test and not the suite."""
    found = []

    def attempt():
        try:
            read(path)
        except GlanceError as error:
            found.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(20)
    assert found and said in found[0], found or "still waiting"


@pytest.mark.skipif(os.name == "nt", reason="pipes with a name, and devices")
def test_pipes_devices_and_sockets_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.safetensors"))
        os.symlink("/dev/zero", tmp_path / "zero.safetensors")
        os.symlink(tmp_path / "pipe.safetensors", tmp_path / "link.safetensors")
        for name in ("pipe", "socket", "zero", "link"):
            arrives(read_adapter, tmp_path / f"{name}.safetensors", f"{name}.safetensors: this is no file but a pipe, a socket or a device")
    save_file({DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}, tmp_path / "adapter_model.safetensors")
    os.mkfifo(tmp_path / "adapter_config.json")
    assert read_adapter(tmp_path / "adapter_model.safetensors").factors[MODULE].scale == 1


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_are_followed_to_a_file_and_no_further(tmp_path):
    save_file({DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}, tmp_path / "real.safetensors")
    for name, target in (("good", "real.safetensors"), ("loop", "loop.safetensors"), ("nowhere", "none"), ("folder", ".")):
        os.symlink(target, tmp_path / f"{name}.safetensors")
    good = read_adapter(tmp_path / "good.safetensors")
    assert good.factors[MODULE].rank == 1
    for name in ("loop", "nowhere", "folder"):
        assert f"{name}.safetensors: cannot be opened" in refused(tmp_path / f"{name}.safetensors")
    # A link in the place of a new file is neither followed nor replaced, and its name is not free
    with pytest.raises(AdapterError, match="exists already"):
        convert(good, tmp_path / "nowhere.safetensors")
    assert not (tmp_path / "none").exists() and free_name(tmp_path, "nowhere", [".safetensors"]) == "nowhere-2"
    # A checkpoint takes the place of the link, and leaves what the link points to
    before = (tmp_path / "real.safetensors").read_bytes()
    write_over(tmp_path / "good.safetensors", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "real.safetensors").read_bytes() == before and not (tmp_path / "good.safetensors").is_symlink()


def disguises(folder):
    """(file, what is said of it) of other formats under the ending of safetensors."""
    torch.save({"a": torch.ones(3)}, folder / "torch.safetensors")
    yield "torch", "pickled checkpoint"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / f"pickle{protocol}.safetensors").write_bytes(pickle.dumps({"a": Trap()}, protocol))
        yield f"pickle{protocol}", "pickled checkpoint" if protocol > 1 else ""
    with zipfile.ZipFile(folder / "bomb.safetensors", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"{i}", bytes(50_000_000))
    yield "bomb", "zip archive"
    header = safetensors(pair_of(), ONE * 2)
    (folder / "zipped.safetensors").write_bytes(header + (folder / "bomb.safetensors").read_bytes())  # a zip is read from its end
    yield "zipped", "longer than its header tells"


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_what_other_formats_hold_is_neither_unpacked_nor_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    for name, said in disguises(tmp_path / "files"):
        assert said in refused(tmp_path / "files" / f"{name}.safetensors")
    assert os.listdir(tmp_path) == ["files"]


def many(count, pattern):
    return safetensors(b"{" + b",".join(pattern % i for i in range(count)) + b"}")


def saying(**metadata):
    return safetensors({"__metadata__": metadata, **pair_of()}, ONE * 2)


BOMBS = {
    "10^6 keys": lambda: many(1_000_000, b'"%d.lora_A.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'),
    "10^5 keys and more": lambda: many(300_000, b'"%d.alpha":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'),
    "one name of 20 MB": lambda: safetensors({"a_" * 10_000_000 + ".lora_A.weight": entry(0, 0, [0])}),
    "metadata of lists": lambda: saying(lora_adapter_metadata="[" + "[]," * 7_000_000 + "[]]"),
    "sigmas without end": lambda: saying(**{"glance.format": "1", "glance.sigmas": "[" + "1," * 9_000_000 + "1]"}),
    "deep metadata": lambda: saying(lora_adapter_metadata='{"a":' * 500_000),
    "patterns without end": lambda: saying(lora_adapter_metadata=json.dumps({"alpha_pattern": {str(i): 1 for i in range(200_000)}})),
    "steps without end": lambda: saying(**{"glance.format": "1", "glance.teacher_steps": "50", "glance.steps": "1," * 10_000_000 + "|2"}),
    "a damaged header of lists": lambda: safetensors(b'{"a":[' + b"[]," * 7_000_000 + b"[]]}"),
    "a damaged header that is read again": lambda: safetensors(b'{"a":[' + b"[]," * 600_000 + b"[]]}"),
}  # fmt: skip
SECONDS, MEGABYTES = 15, 400  # for a file whose header may have 25 MB

_READ_EACH = """
import sys, threading, time
from glance_core.errors import GlanceError
from glance_core.lora_file import read_adapter
def anonymous():  # megabytes that are no mapped file's
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
        told = f"read {len(read_adapter(path).factors)}"
    except GlanceError as error:
        told = f"refused {error}"
    print(peak[0] - before, time.process_time() - began, told, flush=True)
"""


def read_each(paths):
    """By file, read in a process of its own: megabytes at the most, seconds, and what came of it."""
    command = [sys.executable, "-c", _READ_EACH, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        megabytes, seconds, told = line.split(" ", 2)
        yield path.name, int(megabytes), float(seconds), told


@pytest.mark.skipif(sys.platform != "linux", reason="measured by what Linux tells of a process")
def test_small_files_take_neither_the_memory_nor_the_day(tmp_path):
    for what, made in BOMBS.items():
        (tmp_path / what).write_bytes(made())
    for what, megabytes, seconds, told in read_each([tmp_path / what for what in BOMBS]):
        print(f"{what}: {megabytes} MB, {seconds:.1f} s, {told[:100]}")
        assert told.startswith("refused") and megabytes < MEGABYTES and seconds < SECONDS, what


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files, and what Linux tells of a process")
def test_a_large_tensor_is_looked_at_piece_by_piece(tmp_path):
    """512 MB that take no room on the disk; a look at all of it at once would copy it."""
    rows = 1 << 27
    path = written(tmp_path, safetensors({DOWN: entry(0, 4 * rows, [1, rows]), UP: entry(4 * rows, 4 * rows + 4, [1, 1])}))
    os.truncate(path, path.stat().st_size + 4 * rows + 4)
    ((_, megabytes, _, told),) = read_each([path])
    print(f"{megabytes} MB, {told}")
    assert told == "read 1" and megabytes < 300


def test_writing_leaves_the_umask_of_other_threads_alone(tmp_path, monkeypatch):
    """To read it is to set it: two threads that do so at once may leave the process with the wrong one for good."""
    set_to = []
    umask = os.umask
    before = umask(0o027)
    monkeypatch.setattr(os, "umask", lambda mask: set_to.append(mask) or umask(mask))
    try:
        threads = [threading.Thread(target=write_new, args=(tmp_path / f"{i}", {"a": torch.zeros(1)}, {})) for i in range(8)]
        for step in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                step(thread)
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640} or os.name == "nt"
        assert len(list(tmp_path.iterdir())) == 8
    finally:
        after = umask(before)
    assert (after, set_to) == (0o027, [])


def test_a_file_that_vanishes_or_shrinks_between_two_looks_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    for change in (Path.unlink, lambda path: os.truncate(path, 20), lambda path: path.write_bytes(b"")):
        save_file({DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}, path)
        from glance_core import tensor_file

        opened = tensor_file.safe_open
        monkeypatch.setattr(
            tensor_file, "safe_open", lambda *args, change=change, opened=opened, **more: (change(path), opened(*args, **more))[1]
        )
        refused(path)
        monkeypatch.undo()


def test_numbers_without_end_in_schedules_are_refused_at_once():
    began = time.process_time()
    for make in (
        lambda: teacher_ladder("flux", 50, tokens=10**400),
        lambda: teacher_ladder("qwen-image", 10**9, tokens=4096),
        lambda: teacher_ladder("shift", 10**30, shift=3.0),
        lambda: split_steps(5, 999_999, 10_000),
        lambda: split_steps(5, 9_000, 10_000),
    ):
        with pytest.raises(ScheduleError) as told:
            make()
        assert str(told.value).isprintable()
    assert time.process_time() - began < 3


def test_the_most_fast_steps_that_fit_are_those_that_trying_all_finds():
    for teacher, boundary in itertools.product(range(2, 40), range(1, 39)):
        if boundary < teacher:
            fit = []
            for count in range(1, teacher + 1):
                try:
                    split_steps(1, count, teacher, boundary)
                    fit.append(count)
                except ScheduleError as error:
                    said = str(error)
            assert f"use at most {max(fit)}" in said


def test_what_was_read_can_be_written_and_read_again(tmp_path):
    """A scale at the edge of what is taken, in every kind of number."""
    for i, alpha in enumerate((1e29, 1e-28, -3.0, 2.0**-60)):
        save_file(
            {DOWN: torch.ones(4, 6), UP: torch.ones(5, 4), ALPHA: torch.tensor(alpha, dtype=torch.float64)}, tmp_path / f"{i}.safetensors"
        )
        read = read_adapter(tmp_path / f"{i}.safetensors")
        again = read_adapter(write_adapter(tmp_path / f"{i}-again.safetensors", read.factors, Trained()))
        assert again.factors[MODULE].scale == pytest.approx(read.factors[MODULE].scale, rel=1e-6)


def test_the_reader_opens_nothing_twice_over(tmp_path):
    """Five hundred reads, good and bad, leave no file open."""
    save_file({DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}, tmp_path / "good.safetensors")
    written(tmp_path, safetensors(pair_of(), ONE))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limit[1]))
    try:
        for _ in range(250):
            read_tensors(tmp_path / "good.safetensors")
            refused(tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
