"""Property-based fuzzing of everything that reads what strangers wrote (`tests/shared/strangers.py` says what is asked of it).

GLANCE_CASES=100000 asks for more cases than the suite's usual 2,000; `make fuzz` does, and lets a coverage-guided fuzzer try as many.
"""

import functools
import json
import os
import resource
import struct
import time
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from strangers import (
    check_checkpoint,
    check_file,
    check_kind,
    check_ladder,
    check_metadata,
    check_name,
    check_resume,
    check_scale,
    check_solver,
    check_split,
    check_steps,
    kept_runs,
    safetensors,
)

CASES = int(os.environ.get("GLANCE_CASES", "2000"))
# At most for a case, and beyond what the process had for all. Hypothesis remembers its cases: 25,000 of one test take 257 MB where the check
# does nothing, and 269 MB where it reads the files.
SECONDS, MEGABYTES = 5, 250 + 3 * CASES // 1000
tally: Counter[str] = Counter()
came_through: Counter[str] = Counter()


def peak():
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.fixture(scope="module", autouse=True)
def summary():
    began, before = time.monotonic(), peak()
    yield
    for name, cases in tally.items():
        print(f"{name:38s} {cases:7d} cases, {came_through[name] / cases:4.0%} of them accepted")
    print(
        f"{sum(tally.values())} cases in {time.monotonic() - began:.0f} s, {peak()} MB at the most, {peak() - before} of them for the cases"
    )
    assert peak() - before < MEGABYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strangers")


@pytest.fixture(scope="module")
def runs(folder):
    return kept_runs(folder)


def fuzzed(share, **drawn):
    """A test of so large a share of all cases, each within the time; it tells whether the case was accepted."""

    def decorate(check):
        @settings(max_examples=max(20, round(CASES * share)), deadline=None, database=None, derandomize=CASES <= 2000, suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(**drawn)
        @functools.wraps(check)
        def test(*fixtures, **values):
            began = time.process_time()
            came = check(*fixtures, **values)
            assert time.process_time() - began < SECONDS
            tally[check.__name__] += 1
            came_through[check.__name__] += bool(came)

        return test

    return decorate


# What files are made of: mostly what such a file has, sometimes anything.

NASTY = st.sampled_from(["", "NaN", "-Infinity", "1e999", "9" * 400, "0x10", "\u0663", "1_0", "\x1b[2J", "\u202e", "\0", "../../x", "C:\\x", "None", "[" * 2000, "null", "[]", "{}"])  # fmt: skip
TEXT = st.one_of(st.text(max_size=40), NASTY)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
MODULES = st.one_of(
    st.sampled_from(["transformer_blocks.0.attn.to_q", "double_blocks.1.img_attn.qkv", "single_blocks.0.linear1", "a", "..", "x" * 501]),
    st.text(min_size=1, max_size=12),
)
PREFIXES = st.sampled_from(
    ["", "transformer.", "diffusion_model.", "lora_unet_", "lora_te_", "base_model.model.", "model.diffusion_model."]
)
ENDS = st.sampled_from([
    ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha", ".lora.down.weight", ".lora_A.default.weight", ".dora_scale",
    ".lokr_w1", ".weight", ".diff", "",
])  # fmt: skip
SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I8": 1,
    "I64": 8,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "C64": 8,
    "U64": 8,
    "F4": 1,
}
DTYPES = st.one_of(st.sampled_from(["F32", "F16", "BF16"]), st.sampled_from(sorted(SIZES)), st.just("F6_E2M3"))
DIMENSIONS = st.one_of(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 2**31, 2**62, 2**64, -1]))
SHAPES = st.lists(DIMENSIONS, max_size=4)
OFFSETS = st.one_of(st.integers(-1, 300), st.sampled_from([2**63, 2**64, 10**10]))


def texts_of(values):
    """JSON of such values, sometimes damaged."""
    return st.one_of(
        values.map(json.dumps), values.map(json.dumps), st.tuples(values.map(json.dumps), st.integers(0, 60)).map(lambda x: x[0][: x[1]])
    )


PATTERNS = st.one_of(
    st.sampled_from(
        ["to_q", "^transformer_blocks.0", r".*attn\.to_(q|k)", "(a|a)" * 30, "(a*)*b", "a?" * 60 + "a" * 60, "[|]", "a)(b", ".*" * 20]
    ),
    st.text(alphabet="ab.()|*+?{}[]^$\\1,:=", max_size=60),
)
NUMBERS = st.one_of(st.integers(-2, 64), st.floats(), st.just(10**400), TEXT, st.none())
SETTINGS_OF_PEFT = st.fixed_dictionaries({}, optional={
    "lora_alpha": NUMBERS, "alpha_pattern": st.one_of(st.dictionaries(PATTERNS, NUMBERS, max_size=5), JSON),
    "rank_pattern": st.dictionaries(PATTERNS, NUMBERS, max_size=2), "use_rslora": JSON, "r": NUMBERS,
})  # fmt: skip
PEFT = st.one_of(SETTINGS_OF_PEFT, SETTINGS_OF_PEFT.map(lambda told: {f"transformer.{key}": value for key, value in told.items()}), JSON)

STEPS = st.one_of(
    st.sampled_from(["1,3,5,7,9|11,21,31,41,50", "1|2", "1 2|3 4", "|", "1|2|3", "3,2|1", "0|1", "1|51", "\u0663|4", "1e1|20"]),
    st.text(alphabet="0123456789,| -", max_size=30),
    st.tuples(st.sets(st.integers(1, 60), min_size=2, max_size=8), st.integers(1, 7)).map(
        lambda x: "|".join(",".join(map(str, part)) for part in (sorted(x[0])[: x[1]], sorted(x[0])[x[1] :]))
    ),
    TEXT,
)


def rows(n):
    return st.tuples(*(st.lists(st.floats(-3, 3), min_size=i + 1, max_size=i + 1) for i in range(n)))


SOUND = st.integers(1, 3).flatmap(lambda n: st.fixed_dictionaries({
    "told": st.lists(st.floats(0.5, 2), min_size=n, max_size=n), "keep": st.lists(st.floats(-2, 2), min_size=n, max_size=n),
    "cond": rows(n), "free": st.just([]) | rows(n),
}))  # fmt: skip
MANY = st.tuples(
    SOUND, st.fixed_dictionaries({}, optional={"told": st.lists(NUMBERS), "keep": st.lists(NUMBERS), "cond": JSON, "free": JSON})
).map(lambda two: two[0] | two[1])
SOLVERS = st.one_of(texts_of(SOUND), texts_of(MANY), texts_of(JSON), TEXT)
GLANCE = st.fixed_dictionaries({"glance.format": st.sampled_from(["1", "1", "1", "1", "2", "x"])}, optional={
    "glance.phase": st.sampled_from(["slow", "fast"]) | TEXT, "glance.base": st.sampled_from(["flux", "qwen-image"]) | TEXT,
    "glance.ladder": st.sampled_from(["flux", "shift", "model"]) | TEXT, "glance.teacher_steps": st.sampled_from(["50", "20", "2"]) | TEXT,
    "glance.shift": st.sampled_from(["3.0", "1e-300"]) | TEXT, "glance.steps": STEPS, "glance.sigmas": texts_of(st.lists(st.floats())) | TEXT,
    "glance.solver": SOLVERS, "glance.rank": TEXT, "glance.alpha": TEXT, "glance.seed": TEXT, "glance.psnr_pair": TEXT, "glance.partner": TEXT,
    "glance.verdict": TEXT, "glance.pair": TEXT, "glance.resolution": TEXT,
})  # fmt: skip
FOREIGN = st.fixed_dictionaries({}, optional={
    "ss_network_alpha": TEXT, "lora_adapter_metadata": texts_of(PEFT) | TEXT, "ss_output_name": TEXT, "modelspec.title": TEXT, "ss_tag_frequency": TEXT,
})  # fmt: skip
METADATA = st.one_of(
    st.just({}), GLANCE, FOREIGN, st.tuples(GLANCE, FOREIGN).map(lambda two: two[0] | two[1]), st.dictionaries(TEXT, TEXT, max_size=3)
)


@st.composite
def files(draw):
    """A safetensors file: factors that fit, then changed in a few places, or tensors at random."""
    header, data = {}, b""
    sound = draw(st.integers(0, 9))
    for module in draw(st.lists(MODULES, min_size=1, max_size=3, unique=True)):
        prefix = draw(PREFIXES)
        rank, inside, outside = (draw(st.integers(1, 3)) for _ in range(3))
        kinds = (("lora_A.weight", [rank, inside]), ("lora_B.weight", [outside, rank]), ("alpha", []))
        for end, shape in kinds[: draw(st.integers(2, 3))]:
            dtype = draw(st.sampled_from(["F32", "BF16"])) if sound else draw(DTYPES)
            count = 1
            for size in shape:
                count *= size
            size = count * SIZES.get(dtype, 1)
            header[f"{prefix}{module}.{end}"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
            data += draw(st.binary(min_size=size, max_size=size)) if draw(st.booleans()) else (struct.pack("<e", 1.5) * size)[:size]
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(sorted(header)))
        change = draw(st.sampled_from(["shape", "dtype", "data_offsets", "key", "drop", "more"]))
        if change in ("shape", "dtype", "data_offsets"):
            header[key] = header[key] | {
                change: draw({"shape": SHAPES, "dtype": DTYPES, "data_offsets": st.lists(OFFSETS, min_size=2, max_size=2)}[change])
            }
        elif change == "key":
            header[f"{draw(PREFIXES)}{draw(MODULES)}{draw(ENDS)}"] = header.pop(key)
        elif change == "drop" and len(header) > 1:
            del header[key]
        else:
            header[draw(TEXT)] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    told = draw(METADATA)
    return safetensors({"__metadata__": told, **header} if told else header, data)


def good():
    tensors = {f"transformer.transformer_blocks.0.attn.to_q.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    return save(tensors, {"glance.format": "1", "glance.phase": "slow", "glance.teacher_steps": "50", "glance.steps": "1|11"})


@st.composite
def damaged(draw, whole):
    """A file with bytes changed, left out, put in, cut off."""
    content = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        piece = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"}", b"]", b'"', b"NaN", b"-1", b"1" * 30]))
        )
        content[at : at + draw(st.sampled_from([len(piece), len(piece), 0, 100]))] = piece
    return bytes(content)


@fuzzed(0.25, content=files())
def test_files_with_any_header(folder, content):
    (folder / "a.safetensors").write_bytes(content)
    return check_file(folder / "a.safetensors", folder / "b.safetensors")


@fuzzed(0.15, content=damaged(st.just(good()) | files()) | st.binary(max_size=200))
def test_files_that_are_damaged(folder, content):
    (folder / "a.safetensors").write_bytes(content)
    return check_file(folder / "a.safetensors")


@fuzzed(0.15, metadata=METADATA)
def test_metadata(metadata):
    return check_metadata(metadata)


@fuzzed(0.1, told=texts_of(PEFT) | TEXT, modules=st.lists(MODULES | st.just(".".join("a" * 60)), min_size=1, max_size=4))
def test_alphas_by_pattern(told, modules):
    return check_scale({"lora_adapter_metadata": told}, modules)


@fuzzed(0.08, text=STEPS, teacher_steps=st.just(60) | st.integers(1, 60), denoise=st.just(1.0) | st.floats(0.01, 1) | st.floats())
def test_teacher_steps_as_text(text, teacher_steps, denoise):
    return check_steps(text, teacher_steps, denoise)


@fuzzed(0.04, text=st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda two: f"{two[0]}+{two[1]}") | st.text("0123456789+ ", max_size=9) | TEXT,
        teacher_steps=st.integers(-1, 100) | st.just(10_000), boundary=st.none() | st.integers(-1, 60))  # fmt: skip
def test_splits_as_text(text, teacher_steps, boundary):
    return check_split(text, teacher_steps, boundary)


@fuzzed(0.03, kind=st.sampled_from(["flux", "qwen-image", "shift", "model", "x"]), steps=st.integers(-1, 60) | st.sampled_from([10_000, 10**9, 10**400]),
        tokens=st.none() | st.integers(), shift=st.none() | st.floats())  # fmt: skip
def test_ladders(kind, steps, tokens, shift):
    return check_ladder(kind, steps, tokens, shift)


@fuzzed(0.07, text=SOLVERS)
def test_solvers_as_text(text):
    return check_solver(text)


@fuzzed(0.05, start=st.binary(max_size=4096) | TEXT.map(str.encode) | st.sampled_from([b"<html><title" * 300, b'{"error":"' * 400, b"\x80\x04", b"PK"]),
        keys=st.lists(st.tuples(PREFIXES, MODULES, ENDS).map("".join) | TEXT, max_size=5), name=TEXT)  # fmt: skip
def test_kinds_of_files(start, keys, name):
    return check_kind(start, keys, name)


@fuzzed(0.02, name=TEXT | st.text("ab./\\:~ \0", max_size=8))
def test_names_of_runs(folder, name):
    return check_name(folder, name)


FACTS = st.fixed_dictionaries({"format": st.just(1) | JSON}, optional={"step": JSON, "phase": JSON})


@fuzzed(0.03, facts=texts_of(FACTS) | TEXT, key=st.sampled_from(["glance_run"] * 4 + ["glance.format"]))
def test_checkpoints_with_any_facts(folder, facts, key):
    (folder / "c.safetensors").write_bytes(safetensors({"__metadata__": {key: facts}}))
    return check_checkpoint(folder / "c.safetensors")


VALUES = st.sampled_from(
    [b"\0\0\0\0", b"\xff\xff\xff\xff", struct.pack("<f", float("nan")), struct.pack("<f", -1), struct.pack("<q", -5), struct.pack("<q", 99)]
)


@st.composite
def changed_runs(draw):
    """(which checkpoint, what is done to it): facts replaced or left out, tensors of other shapes, dtypes and values."""
    return draw(st.integers(0, 2)), draw(st.lists(st.tuples(st.sampled_from(["fact", "no fact", "tensor", "no tensor", "value"]), st.integers(0, 99), JSON | st.integers(-3, 9), VALUES), max_size=3))  # fmt: skip


def apply(content, changes):
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    metadata = header.pop("__metadata__")
    facts = json.loads(metadata["glance_run"])
    for what, at, value, packed in changes:
        fact, tensor = sorted(facts)[at % len(facts)], sorted(header)[at % len(header)]
        if what == "fact":
            facts[fact] = value
        elif what == "no fact":
            del facts[fact]
        elif what == "tensor":
            shape = header[tensor]["shape"]
            other = {"shape": [*shape, 1]} if at % 2 else {"dtype": "I8" if header[tensor]["dtype"] in ("U8", "BOOL") else "C64"}
            header[tensor] = header[tensor] | other
        elif what == "no tensor" and len(header) > 1:
            start, end = header.pop(tensor)["data_offsets"]
            del data[start:end]
            for each in header.values():
                if each["data_offsets"][0] >= end:
                    each["data_offsets"] = [offset - (end - start) for offset in each["data_offsets"]]
        else:
            start, end = header[tensor]["data_offsets"]
            data[start:end] = (packed * (end - start))[: end - start]
        if not facts:
            break
    return safetensors({"__metadata__": {"glance_run": json.dumps(facts)}, **header}, bytes(data))


@fuzzed(0.03, change=changed_runs())
def test_runs_taken_up_from_changed_checkpoints(folder, runs, change):
    which, changes = change
    (folder / "d.safetensors").write_bytes(apply(runs[which], changes))
    return check_resume(folder / "d.safetensors")
