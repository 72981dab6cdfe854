"""The quality benchmark's rows: each once, what was measured is not measured again, and the table says what the JSON holds."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import quality, quality_table, search
from glance_core.errors import GlanceError
from glance_core.objectives import OBJECTIVES, WALKED
from glance_core.schedule import parse_steps
from glance_core.tiny.methods import searched_control, searched_walks
from glance_core.walks import Walk, even_walk


def options(folder, **more):
    given = {"seeds": 1, "seed": 777, "prompts": 2, "count": 32, "only": "searched", "out": folder, "minutes": float("inf"), "kept": None}
    return Namespace(**given | more)


def test_every_row_is_there_once():
    every = list(quality.entries(3, 64))
    assert len({entry.key for entry in every}) == len({entry.place for entry in every}) == len(every)
    names = {(entry.name, entry.prompts, entry.seed) for entry in every}
    for objective in ("trajectory", "aimed", "end to end"):
        assert {(objective, 1, 0), (objective, 16, 0), (f"{objective}, fold guidance", 64, 0)} <= names
        assert {(objective, 64, seed) for seed in (0, 1, 2)} <= names
    assert {
        (name, count, 2) for name, count in (("end to end", 1), ("end to end, fold guidance", 64), ("the paper's loss, one picture", 1))
    } <= names
    assert ("end to end, solver alone", 64, 0) in names and ("end to end, adapters alone", 64, 0) in names
    assert {entry.settings.forwards for entry in every if entry.settings} == {0, 2, 3, 4, 5}
    assert all(not entry.harmless for entry in every if entry.name.startswith("the paper's"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    return folder, quality.Bench(options(folder)).run()


def test_a_row_is_plain_numbers_paired_to_the_control_at_as_many_forwards(measured):
    found = measured[1]
    assert (found["seed"], found["count"]) == (777, 32)
    control = max((row for row in found["rows"] if row["forwards"] == 10), key=lambda row: row["psnr"])
    assert control["method"] == "base, searched, 4 of 6 steps guided"
    assert control["paired_to_control"] == 0 and 28 < control["psnr"] < 33
    assert {"method", "forwards", "prompts", "seed", "psnr", "paired_to_control", "all_right", "fd", "train_s"} <= control.keys()
    assert found["rows"][0]["method"] == "teacher" and found["rows"][0]["psnr"] is None
    by_forwards = {}
    for row in found["rows"][1:]:
        by_forwards.setdefault(row["forwards"], []).append(row["paired_to_control"])
    assert all(max(gains) == 0 for gains in by_forwards.values())  # the control is the best that was searched at so many forwards


def test_what_was_measured_stays(measured, monkeypatch):
    folder, found = measured

    def never(self, entry):
        raise AssertionError(f"{entry.name} was measured again")

    monkeypatch.setattr(quality.Bench, "_measured", never)
    again = quality.Bench(options(folder)).run()
    assert again["rows"] == found["rows"]


def test_after_the_code_has_changed_it_is_measured_again(measured, monkeypatch):
    folder, _ = measured
    monkeypatch.setattr(quality, "measured_at", lambda: ("2030-01-01", "another"))
    monkeypatch.setattr(quality.Bench, "_measured", lambda self, entry: (_ for _ in ()).throw(InterruptedError(entry.name)))
    with pytest.raises(InterruptedError, match="base, searched"):
        quality.Bench(options(folder)).run()


def test_in_the_time_there_is_the_oldest_rows_are_measured_and_the_others_stay(measured, tmp_path, monkeypatch):
    """The clock goes on by a minute a row; a row brings the control at as many forwards."""
    folder, found = measured
    oldest = next(row for row in found["rows"] if row["forwards"] == 5)
    kept = [row | {"date": "2020-01-01" if row is oldest else "2025-01-01", "psnr": -1.0, "commit": "before"} for row in found["rows"]]
    (tmp_path / "kept.json").write_text(json.dumps(found | {"rows": kept}))
    clock, taken, whole = [0.0], [], quality.Bench._row

    def measure(self, entry):
        clock[0] += 60
        taken.append(entry.name)
        return whole(self, entry)

    monkeypatch.setattr(quality.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(quality.Bench, "_row", measure)
    again = quality.Bench(options(folder, minutes=1.0, kept=tmp_path / "kept.json", only="base, searched")).run()["rows"]
    assert [row["psnr"] == -1.0 for row in again] == [row["forwards"] != 5 and row["method"] != "teacher" for row in found["rows"]]
    assert set(taken) == {row["method"] for row in found["rows"] if row["forwards"] == 5}
    for new, old in zip(again, found["rows"], strict=True):
        assert (new["method"], new["paired_to_control"]) == (old["method"], old["paired_to_control"])
    told = quality.table({**found, "rows": again})
    assert "| before |" in told and f"| {found['rows'][1]['commit']} |" in told


def test_rows_of_another_table_are_not_taken(measured, tmp_path):
    (tmp_path / "kept.json").write_text(json.dumps(measured[1] | {"seed": 3}))
    with pytest.raises(GlanceError, match="seed is 3 there and 777 here; measure all rows, without --kept"):
        quality.Bench(options(measured[0], kept=tmp_path / "kept.json")).run()


def test_what_has_a_solver_has_three_parts():
    assert all((objective in WALKED) == objective.startswith(quality_table.WITH_SOLVER) for objective in OBJECTIVES)


def test_the_table_says_what_the_rows_hold(measured):
    row = {"method": "end to end", "steps": 5, "forwards": 10, "prompts": 64, "kept": "slow, fast", "train_s": 200.0, "threads": 2, "psnr": 30.0, "psnr_error": 0.1,
           "paired_to_control": 1.5, "paired_to_control_error": 0.1, "all_right": 0.85, "all_right_error": 0.01, "background": 0.9,
           "background_error": 0.01, "fd": 0.03, "fd_error": 0.005}  # fmt: skip
    rows = [{**row, "seed": 0}, {**row, "seed": 1, "psnr": 31.0, "kept": "slow, fast, solver", "train_s": 300.0, "threads": 1}]
    told = quality.table({**measured[1], "rows": rows})
    line = next(line for line in told.splitlines() if line.startswith("| end to end"))
    assert line == (
        "| end to end (kept: slow, fast) | 64 | 5 | 10 | 30.50 ± 0.10 ± 0.50 | +1.50 ± 0.10 ± 0.00 | 0.900 ± 0.010 ± 0.000 | 0.850 ± 0.010 ± 0.000 "
        "| 0.030 ± 0.005 ± 0.000 | 200, 300* | older |"
    )
    assert "32 prompts drawn by seed 777" in told
    json.dumps(measured[1])


def test_the_search_comes_nearer_than_even_steps_with_as_many_forwards(monkeypatch):
    monkeypatch.setattr(search, "PROMPTS", 6)
    monkeypatch.setattr(search, "TRIES", 30)
    work = search.Search()
    found = work.best(3, 2)
    near = work.near(even_walk(5, 4.0, 50))
    assert found["psnr"] > near + 1 and found["forwards"] == 5 and found["tried"] > 10
    assert work.near(
        Walk(parse_steps(found["steps"]).steps, found["guidance"], found["coefficient"], tuple(found["weights"]))
    ) == pytest.approx(found["psnr"], abs=0.02)


def test_there_is_a_control_for_every_number_of_forwards_that_is_compared():
    for forwards in (2, 3, 4, 5, 6, 8, 10, 20):
        assert searched_control(forwards).forwards == forwards
    assert {walk.forwards for walk in searched_walks() if walk.solver is None and walk.guidance != 1} == {4, 6, 8, 10, 20}
    assert min(walk.forwards for walk in searched_walks()) == 2


@pytest.mark.parametrize("page, forwards", [("README.md", 10), ("docs/QUALITY.md", None)])
def test_the_tables_that_are_shown_are_those_of_the_last_run(page, forwards):
    root = Path(__file__).resolve().parents[2]
    shown = (root / page).read_text(encoding="utf-8").split("--show docs/quality.json")[1].split("-->\n", 1)[1].split("<!-- end -->")[0]
    assert shown.strip() == quality.table(json.loads((root / "docs/quality.json").read_text(encoding="utf-8")), forwards)
