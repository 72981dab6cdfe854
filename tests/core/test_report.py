"""docs/BENCHMARKS.md is what its JSON says, every number of it; limits that are not held are told; a benchmark that fails leaves the last run's numbers."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import report, report_tables
from benchmarks.sampling import METHODS as SAMPLED
from benchmarks.trainers import METHODS as TRAINED

FILES = {section.name: section.file(report.DOCS) for section in report.SECTIONS}
MEASURED = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in FILES.items() if file.exists()}
SECTIONS = {section.name: section for section in report.SECTIONS}
UNSHOWN = {"axis", "tokens", "steps", "batch", "phases", "targets", "rank", "setup_s", "first_loss", "parameters", "gap_ms", "rounds"}
GROWN = {
    "axis": "tokens",
    "value": 4096,
    "ratio_to_bare": 1.02,
    "ratio_spread": [1.01, 1.05],
    "seconds_bare": 1.5,
    "seconds_pair": 1.53,
    "pair_mb": 15.7,
}


def test_the_page_is_what_its_json_says():
    assert (report.DOCS / "BENCHMARKS.md").read_text(encoding="utf-8") == report.page(report.DOCS)


@pytest.mark.parametrize("name", [name for name in ("sampling", "growth", "training", "startup") if name in MEASURED])
def test_every_number_of_a_row_is_on_the_page(name):
    found = MEASURED[name]
    before = SECTIONS[name].table(found)
    for at, row in enumerate(found["rows"]):
        of_ours_or_base = row.get("method", "").split("/")[0] in ("ours", "base") or row.get("pack") == "none"
        for key, value in row.items():
            if (
                key not in UNSHOWN
                and isinstance(value, float)
                and not (of_ours_or_base and key in ("ratio_to_ours", "pair_mb", "cpu_added"))
            ):
                if key == "cpu_added" and row["cpu_added_range"] is None:
                    continue
                changed = copy.deepcopy(found)
                changed["rows"][at][key] = value + 7
                assert SECTIONS[name].table(changed) != before, f"{name}, row {at}: {key} is nowhere"


def test_every_method_that_is_measured_has_a_name_on_the_page():
    assert set(SAMPLED) == set(report_tables.SAMPLED) and set(TRAINED) == set(report_tables.TRAINED)


@pytest.mark.parametrize("ratio, holds", [(1.03, "yes"), (1.031, "no")])
def test_the_step_is_held_against_its_limit(ratio, holds):
    (line,) = report_tables.LIMITS["growth"]({"rows": [GROWN | {"value": 256, "ratio_to_bare": 9}, GROWN | {"ratio_to_bare": ratio}]})
    assert line[-1] == holds and line[2] == f"{ratio:.3f} (1.010 .. 1.050)"


def test_a_rival_that_trains_quicker_is_named():
    case = {"model": "flux", "dtype": "fp32", "checkpointing": False}
    rows = [case | {"method": "core", "ratio_to_ours": 1.4, "ratio_spread": [1.2, 1.5], "quicker": 0, "rounds": 9, "peak_mb": 300.0}]
    assert [line[-1] for line in report_tables.LIMITS["training"]({"rows": rows})] == ["yes"]
    quicker = [
        rows[0] | {"method": "peft", "ratio_to_ours": 0.9, "ratio_spread": [0.8, 1.05], "quicker": 8},
        rows[0] | {"ratio_to_ours": 0.99, "ratio_spread": [0.8, 1.1], "quicker": 5},
    ]
    ours = case | {"method": "ours", "peak_mb": 50.0}
    told = report_tables.LIMITS["training"]({"rows": [*rows, ours, *quicker]})
    assert told[0][2] == "0.90 (0.80 .. 1.05); 300 MB to this pack's 50" and "PEFT loop on flux" in told[0][0]
    assert [line[-1] for line in told] == ["no: quicker in 8 of 9 rounds, p = 0.039", "a tie: quicker in 5 of 9 rounds, p = 1"]


@pytest.mark.parametrize("won, rounds, of_tables", [(1, 8, 0.0703125), (8, 9, 0.0390625), (3, 17, 0.012725830078125), (10, 21, 1.0)])
def test_the_sign_test_is_that_of_the_tables(won, rounds, of_tables):
    """Of scipy.stats.binomtest(won, rounds).pvalue, scipy 1.17.1."""
    assert report_tables.chance(won, rounds) == pytest.approx(of_tables, abs=1e-12)


def test_start_and_memory_are_held_against_theirs():
    loading = [report_tables.LIMITS["startup"]({"rows": [{"pack": "glance", "loading": seconds}]})[0][-1] for seconds in (0.29, 0.31)]
    within = [report_tables.LIMITS["memory"]({"check": [{"ratio": 1.0}, {"ratio": ratio}]})[0][-1] for ratio in (0.91, 1.11)]
    assert loading == within == ["yes", "no"]


def test_what_was_not_measured_is_said(tmp_path):
    told = report.page(tmp_path)
    assert told.count("Not measured yet") == len(report.SECTIONS) and told.count("not measured yet") == len(report_tables.LIMITS)


def test_a_run_is_kept_with_its_command_and_one_that_fails_leaves_the_last(tmp_path, monkeypatch, capfd):
    """A module of this test's own stands where a benchmark would."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "ours.py").write_text(
        "import json, sys\nprint('a line before')\nprint(json.dumps({'rows': sys.argv[1:]}))\n"
    )
    (tmp_path / "benchmarks" / "broken.py").write_text("raise SystemExit('it broke')\n")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    section = replace(SECTIONS["sampling"], name="ours", full=("--rounds", "3", "--minutes", "{minutes}"))
    assert report.measure(section, tmp_path / "docs", False, 2.5)
    kept = json.loads(section.file(tmp_path / "docs").read_text())
    assert (
        kept["rows"] == ["--json", "--rounds", "3", "--minutes", "2.5"]
        and kept["command"] == "python -m benchmarks.ours --rounds 3 --minutes 2.5"
        and kept["commit"] == head
    )
    (tmp_path / "benchmarks" / "ours.py").write_text("raise SystemExit('it broke')\n")
    assert not report.measure(section, tmp_path / "docs", quick=False) and "it broke" in capfd.readouterr().err
    assert json.loads(section.file(tmp_path / "docs").read_text()) == kept
    assert report.state(tmp_path) == f"{head} and changes"


def test_making_the_page_needs_no_torch():
    code = "import sys; from benchmarks import report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=report.ROOT, check=True)
