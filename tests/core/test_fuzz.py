"""Property-based fuzzing of everything that reads other people's files.

`tests/shared/untrusted_files.py` says what is asked of an outcome, `tests/shared/fuzz_cases.py` draws the cases.
GLANCE_CASES=100000 asks for more cases than the suite's usual 2,000. `make fuzz` sets it, and then runs a
coverage-guided fuzzer for as many cases.
"""

import functools
import os
import resource
import time
from collections import Counter

import pytest
from fuzz_cases import (
    CHANGED_RUNS,
    ENDS,
    FACTS,
    METADATA,
    MODULES,
    PEFT,
    PREFIXES,
    SOLVERS,
    STEPS,
    TEXT,
    VALID_FILES,
    apply_changes,
    damaged,
    files,
    json_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from untrusted_files import (
    check_checkpoint,
    check_file,
    check_file_type,
    check_metadata,
    check_name,
    check_resume,
    check_scale,
    check_sigmas,
    check_solver,
    check_split,
    check_steps,
    safetensors,
    saved_runs,
)

CASES = int(os.environ.get("GLANCE_CASES", "2000"))
SECONDS = 5  # for one case
# For all cases, beyond what the process had. Hypothesis itself remembers its cases: 25,000 of one test take 257 MB if
# the check does nothing, and 269 MB if it reads the files.
MEGABYTES = 250 + 3 * CASES // 1000
counted: Counter[str] = Counter()
counted_accepted: Counter[str] = Counter()


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.fixture(scope="module", autouse=True)
def summary():
    began, before = time.monotonic(), peak_megabytes()
    yield
    for name, cases in counted.items():
        print(f"{name:38s} {cases:7d} cases, {counted_accepted[name] / cases:4.0%} of them accepted")
    print(
        f"{sum(counted.values())} cases in {time.monotonic() - began:.0f} s, {peak_megabytes()} MB at most, "
        f"{peak_megabytes() - before} of them for the cases"
    )
    assert peak_megabytes() - before < MEGABYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("untrusted")


@pytest.fixture(scope="module")
def runs(folder):
    return saved_runs(folder)


def fuzzed(share, **drawn):
    """Make a test with this share of all cases, each within its time. The test returns whether a case was accepted."""

    def decorate(check):
        @settings(
            max_examples=max(20, round(CASES * share)),
            deadline=None,
            database=None,
            derandomize=CASES <= 2000,
            suppress_health_check=list(HealthCheck),
        )
        @given(**drawn)
        @functools.wraps(check)
        def test(*fixtures, **values):
            began = time.process_time()
            accepted = check(*fixtures, **values)
            assert time.process_time() - began < SECONDS
            counted[check.__name__] += 1
            counted_accepted[check.__name__] += bool(accepted)

        return test

    return decorate


@fuzzed(0.25, content=files())
def test_files_with_any_header(folder, content):
    (folder / "a.safetensors").write_bytes(content)
    return check_file(folder / "a.safetensors", folder / "b.safetensors")


@fuzzed(0.15, content=damaged(VALID_FILES | files()) | st.binary(max_size=200))
def test_damaged_files(folder, content):
    (folder / "a.safetensors").write_bytes(content)
    return check_file(folder / "a.safetensors")


@fuzzed(0.15, metadata=METADATA)
def test_metadata(metadata):
    return check_metadata(metadata)


@fuzzed(
    0.1,
    config=json_of(PEFT) | TEXT,
    modules=st.lists(MODULES | st.just(".".join("a" * 60)), min_size=1, max_size=4),
)
def test_alphas_by_pattern(config, modules):
    return check_scale({"lora_adapter_metadata": config}, modules)


@fuzzed(
    0.08,
    text=STEPS,
    teacher_steps=st.just(60) | st.integers(1, 60),
    denoise=st.just(1.0) | st.floats(0.01, 1) | st.floats(),
)
def test_teacher_steps_as_text(text, teacher_steps, denoise):
    return check_steps(text, teacher_steps, denoise)


COUNTS = st.integers(0, 30)


@fuzzed(
    0.04,
    text=st.tuples(COUNTS, COUNTS).map(lambda two: f"{two[0]}+{two[1]}") | st.text("0123456789+ ", max_size=9) | TEXT,
    teacher_steps=st.integers(-1, 100) | st.just(10_000),
    boundary=st.none() | st.integers(-1, 60),
)
def test_splits_as_text(text, teacher_steps, boundary):
    return check_split(text, teacher_steps, boundary)


@fuzzed(
    0.03,
    rule=st.sampled_from(["flux", "qwen-image", "shift", "model", "x"]),
    steps=st.integers(-1, 60) | st.sampled_from([10_000, 10**9, 10**400]),
    tokens=st.none() | st.integers(),
    shift=st.none() | st.floats(),
)
def test_sigma_rules(rule, steps, tokens, shift):
    return check_sigmas(rule, steps, tokens, shift)


@fuzzed(0.07, text=SOLVERS)
def test_solvers_as_text(text):
    return check_solver(text)


FIRST_BYTES = [b"<html><title" * 300, b'{"error":"' * 400, b"\x80\x04", b"PK"]


@fuzzed(
    0.05,
    start=st.binary(max_size=4096) | TEXT.map(str.encode) | st.sampled_from(FIRST_BYTES),
    keys=st.lists(st.tuples(PREFIXES, MODULES, ENDS).map("".join) | TEXT, max_size=5),
    name=TEXT,
)
def test_file_types(start, keys, name):
    return check_file_type(start, keys, name)


@fuzzed(0.02, name=TEXT | st.text("ab./\\:~ \0", max_size=8))
def test_names_of_runs(folder, name):
    return check_name(folder, name)


@fuzzed(0.03, facts=json_of(FACTS) | TEXT, key=st.sampled_from(["glance_run"] * 4 + ["glance.format"]))
def test_checkpoints_with_any_facts(folder, facts, key):
    (folder / "c.safetensors").write_bytes(safetensors({"__metadata__": {key: facts}}))
    return check_checkpoint(folder / "c.safetensors")


@fuzzed(0.03, change=CHANGED_RUNS)
def test_runs_resumed_from_changed_checkpoints(folder, runs, change):
    which, changes = change
    (folder / "d.safetensors").write_bytes(apply_changes(runs[which], changes))
    return check_resume(folder / "d.safetensors")
