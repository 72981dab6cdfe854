"""Tests of benchmarks.report.

docs/BENCHMARKS.md shows what its JSON says, every number of it. Limits that do not hold are named. A benchmark that
fails leaves the last run's numbers.
"""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import report, report_limits, report_tables
from benchmarks.report_sections import SECTIONS as ALL_SECTIONS
from benchmarks.sampling_speed import METHODS as SAMPLED
from benchmarks.trainers import METHODS as TRAINED

FILES = {section.name: section.file(report.DOCS) for section in ALL_SECTIONS}
MEASURED = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in FILES.items() if file.exists()}
SECTIONS = {section.name: section for section in ALL_SECTIONS}
WITH_ROWS = [name for name in ("sampling_speed", "growth", "training_speed", "startup") if name in MEASURED]
UNSHOWN = {
    *("axis", "tokens", "steps", "batch", "phases", "targets", "rank", "setup_s", "first_loss", "parameters"),
    *("gap_ms", "rounds"),
}
UNSHOWN_OF_THE_REFERENCE = ("ratio_to_ours", "pair_mb", "cpu_added")
GROWN = {
    "axis": "tokens",
    "value": 4096,
    "ratio_to_base": 1.02,
    "ratio_spread": [1.01, 1.05],
    "seconds_base": 1.5,
    "seconds_pair": 1.53,
    "pair_mb": 15.7,
}


def test_page_shows_what_its_json_says():
    assert (report.DOCS / "BENCHMARKS.md").read_text(encoding="utf-8") == report.page(report.DOCS)


def test_every_measured_benchmark_is_in_the_docs():
    assert MEASURED.keys() == SECTIONS.keys()
    assert {path.stem for path in (report.DOCS / "benchmarks").iterdir()} == SECTIONS.keys() - {"quality"}


def test_quality_page_shows_what_its_json_says():
    text = report.QUALITY_PAGE.read_text(encoding="utf-8")
    assert report.renewed(text, FILES["quality"]) == text
    broken = text.replace("| teacher | - |", "")
    assert broken != text and report.renewed(broken, FILES["quality"]) == text


def is_reference(row):
    """Whether ratios of other rows are to this one."""
    return row.get("method", "").split("/")[0] in ("ours", "base") or row.get("pack") == "none"


@pytest.mark.parametrize("name", WITH_ROWS)
def test_every_number_of_a_row_is_on_the_page(name):
    found = MEASURED[name]
    before = SECTIONS[name].table(found)
    for at, row in enumerate(found["rows"]):
        for key, value in row.items():
            if key in UNSHOWN or not isinstance(value, float):
                continue
            if is_reference(row) and key in UNSHOWN_OF_THE_REFERENCE:
                continue
            if key == "cpu_added" and row["cpu_added_range"] is None:
                continue
            changed = copy.deepcopy(found)
            changed["rows"][at][key] = value + 7
            assert SECTIONS[name].table(changed) != before, f"{name}, row {at}: {key} is not shown"


def test_every_measured_method_has_a_name_on_the_page():
    assert set(SAMPLED) == set(report_tables.SAMPLED) and set(TRAINED) == set(report_tables.TRAINED)


@pytest.mark.parametrize("ratio, holds", [(1.03, "yes"), (1.031, "no")])
def test_step_is_held_against_its_limit(ratio, holds):
    rows = [GROWN | {"value": 256, "ratio_to_base": 9}, GROWN | {"ratio_to_base": ratio}]
    (line,) = report_limits.LIMITS["growth"]({"rows": rows})
    assert line[-1] == holds and line[2] == f"{ratio:.3f} (1.010 .. 1.050)"


def test_rival_that_trains_faster_is_named():
    case = {"model": "flux", "dtype": "fp32", "checkpointing": False}
    slower = {"method": "core", "ratio_to_ours": 1.4, "ratio_spread": [1.2, 1.5], "faster": 0, "rounds": 9}
    rows = [case | slower | {"peak_mb": 300.0}]
    assert [line[-1] for line in report_limits.LIMITS["training_speed"]({"rows": rows})] == ["yes"]
    faster = [
        rows[0] | {"method": "peft", "ratio_to_ours": 0.9, "ratio_spread": [0.8, 1.05], "faster": 8},
        rows[0] | {"ratio_to_ours": 0.99, "ratio_spread": [0.8, 1.1], "faster": 5},
    ]
    ours = case | {"method": "ours", "peak_mb": 50.0}
    lines = report_limits.LIMITS["training_speed"]({"rows": [*rows, ours, *faster]})
    assert lines[0][2] == "0.90 (0.80 .. 1.05); 300 MB to this pack's 50" and "PEFT loop on flux" in lines[0][0]
    assert [line[-1] for line in lines] == [
        "no: faster in 8 of 9 rounds, p = 0.039",
        "a tie: faster in 5 of 9 rounds, p = 1",
    ]


@pytest.mark.parametrize(
    "won, rounds, p", [(1, 8, 0.0703125), (8, 9, 0.0390625), (3, 17, 0.012725830078125), (10, 21, 1.0)]
)
def test_sign_test_agrees_with_scipy(won, rounds, p):
    """From scipy.stats.binomtest(won, rounds).pvalue, scipy 1.17.1."""
    assert report_limits.chance(won, rounds) == pytest.approx(p, abs=1e-12)


def test_start_and_memory_are_held_against_their_limits():
    loading = [
        report_limits.LIMITS["startup"]({"rows": [{"pack": "glance", "loading": seconds}]})[0][-1]
        for seconds in (0.29, 0.31)
    ]
    within = [
        report_limits.LIMITS["memory"]({"check": [{"ratio": 1.0}, {"ratio": ratio}]})[0][-1] for ratio in (0.91, 1.11)
    ]
    assert loading == within == ["yes", "no"]


def test_what_was_not_measured_is_named(tmp_path):
    text = report.page(tmp_path)
    assert text.count("Not measured yet") == len(ALL_SECTIONS)
    assert text.count("not measured yet") == len(report_limits.LIMITS)


def committed(folder):
    """Make a git repository of a folder; return its commit."""
    commands = (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"])
    for command in commands:
        subprocess.run(["git", *command], cwd=folder, check=True)
    head = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(head, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_run_is_kept_with_its_command_and_a_failing_one_leaves_the_last(tmp_path, monkeypatch, capfd):
    """A module of this test stands in for a benchmark."""
    ours = tmp_path / "benchmarks" / "ours.py"
    ours.parent.mkdir()
    ours.write_text("import json, sys\nprint('a line before')\nprint(json.dumps({'rows': sys.argv[1:]}))\n")
    (tmp_path / "benchmarks" / "broken.py").write_text("raise SystemExit('it broke')\n")
    head = committed(tmp_path)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    section = replace(SECTIONS["sampling_speed"], name="ours", full=("--rounds", "3", "--minutes", "{minutes}"))
    assert report.measure(section, tmp_path / "docs", False, 2.5)
    kept = json.loads(section.file(tmp_path / "docs").read_text())
    assert kept["rows"] == ["--json", "--rounds", "3", "--minutes", "2.5"]
    assert kept["command"] == "python -m benchmarks.ours --rounds 3 --minutes 2.5" and kept["commit"] == head
    ours.write_text("raise SystemExit('it broke')\n")
    assert not report.measure(section, tmp_path / "docs", quick=False) and "it broke" in capfd.readouterr().err
    assert json.loads(section.file(tmp_path / "docs").read_text()) == kept
    assert report.state(tmp_path) == f"{head} and changes"


def test_writing_the_page_needs_no_torch():
    code = "import sys; from benchmarks import report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=report.ROOT, check=True)
