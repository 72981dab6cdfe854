"""The quality benchmark: every row once, nothing measured twice, and tables that show what the JSON holds."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import control_search, quality, quality_table
from benchmarks.origin import Origin
from glance_core.errors import GlanceError
from glance_core.schedule.plan import StepPlan, even_plan
from glance_core.schedule.split import parse_steps
from glance_core.tiny.methods import searched_control, searched_controls
from glance_core.training.objectives import Objective

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"seeds": 1, "seed": 777, "prompts": 2, "count": 32, "only": "searched", "minutes": float("inf"), "kept": None}


def options(folder, **more):
    return Namespace(**SMALL | {"out": folder} | more)


def test_every_row_is_listed_once():
    every = list(quality.entries(3, 64))
    assert len({entry.key for entry in every}) == len({entry.place for entry in every}) == len(every)
    names = {(entry.name, entry.prompts, entry.seed) for entry in every}
    for objective in ("teacher_forced", "on_policy", "end_to_end"):
        assert {(objective, 1, 0), (objective, 16, 0), (f"{objective}, guidance folded in", 64, 0)} <= names
        assert {(objective, 64, seed) for seed in (0, 1, 2)} <= names
    assert {
        ("end_to_end", 1, 2),
        ("end_to_end, guidance folded in", 64, 2),
        ("the paper's loss, one picture", 1, 2),
    } <= names
    assert ("end_to_end, solver alone", 64, 0) in names and ("end_to_end, adapters alone", 64, 0) in names
    assert {entry.settings.nfe for entry in every if entry.settings} == {0, 2, 3, 4, 5}
    assert all(entry.settings.checks == 0 for entry in every if entry.name.startswith("the paper's"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    return folder, quality.Bench(options(folder)).run()


def test_row_is_plain_numbers_paired_to_the_control_with_as_many_model_calls(measured):
    found = measured[1]
    assert (found["seed"], found["count"]) == (777, 32)
    control = max((row for row in found["rows"] if row["nfe"] == 10), key=lambda row: row["psnr"])
    assert control["method"] == "base, searched, 4 of 6 steps guided"
    assert control["paired_to_control"] == 0 and 28 < control["psnr"] < 33
    keys = {"method", "nfe", "prompts", "seed", "psnr", "paired_to_control", "all_right", "fd", "train_s"}
    assert keys <= control.keys()
    assert found["rows"][0]["method"] == "teacher" and found["rows"][0]["psnr"] is None
    by_nfe = {}
    for row in found["rows"][1:]:
        by_nfe.setdefault(row["nfe"], []).append(row["paired_to_control"])
    assert all(max(gains) == 0 for gains in by_nfe.values())  # the control is the best with as many model calls


def test_measured_rows_are_reused(measured, monkeypatch):
    folder, found = measured

    def never(self, entry):
        raise AssertionError(f"{entry.name} was measured again")

    monkeypatch.setattr(quality.Bench, "_measured", never)
    again = quality.Bench(options(folder)).run()
    assert again["rows"] == found["rows"]


def test_rows_are_measured_again_after_the_code_changed(measured, monkeypatch):
    def measure(self, entry):
        raise InterruptedError(entry.name)

    folder, _ = measured
    monkeypatch.setattr(quality, "current_origin", lambda: Origin("2030-01-01", "another"))
    monkeypatch.setattr(quality.Bench, "_measured", measure)
    with pytest.raises(InterruptedError, match="base, searched"):
        quality.Bench(options(folder)).run()


def test_oldest_rows_are_measured_in_the_given_time_and_the_others_stay(measured, tmp_path, monkeypatch):
    """The clock advances by one minute per row. A row brings the controls with as many model calls."""
    folder, found = measured
    oldest = next(row for row in found["rows"] if row["nfe"] == 5)
    kept = [
        row | {"date": "2020-01-01" if row is oldest else "2025-01-01", "psnr": -1.0, "commit": "before"}
        for row in found["rows"]
    ]
    (tmp_path / "kept.json").write_text(json.dumps(found | {"rows": kept}))
    clock, taken, real = [0.0], [], quality.Bench._row

    def measure(self, entry):
        clock[0] += 60
        taken.append(entry.name)
        return real(self, entry)

    monkeypatch.setattr(quality.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(quality.Bench, "_row", measure)
    chosen = options(folder, minutes=1.0, kept=tmp_path / "kept.json", only="base, searched")
    again = quality.Bench(chosen).run()["rows"]
    stays = [row["nfe"] != 5 and row["method"] != "teacher" for row in found["rows"]]
    assert [row["psnr"] == -1.0 for row in again] == stays
    assert set(taken) == {row["method"] for row in found["rows"] if row["nfe"] == 5}
    for new, old in zip(again, found["rows"], strict=True):
        assert (new["method"], new["paired_to_control"]) == (old["method"], old["paired_to_control"])
    shown = quality.table({**found, "rows": again})
    assert "| before |" in shown and f"| {found['rows'][1]['commit']} |" in shown


def test_rows_of_another_table_are_rejected(measured, tmp_path):
    (tmp_path / "kept.json").write_text(json.dumps(measured[1] | {"seed": 3}))
    with pytest.raises(GlanceError, match="seed is 3 there and 777 here; measure all rows, without --kept"):
        quality.Bench(options(measured[0], kept=tmp_path / "kept.json")).run()


def test_objectives_with_a_solver_train_three_components():
    assert all(each.is_rollout == each.value.startswith(quality_table.WITH_SOLVER) for each in Objective)


def test_table_shows_what_the_rows_hold(measured):
    row = {
        "method": "end_to_end", "steps": 5, "nfe": 10, "prompts": 64, "kept": "slow, fast", "train_s": 200.0,
        "threads": 2, "psnr": 30.0, "psnr_error": 0.1, "paired_to_control": 1.5, "paired_to_control_error": 0.1,
        "all_right": 0.85, "all_right_error": 0.01, "background": 0.9, "background_error": 0.01, "fd": 0.03,
        "fd_error": 0.005,
    }  # fmt: skip
    rows = [
        {**row, "seed": 0},
        {**row, "seed": 1, "psnr": 31.0, "kept": "slow, fast, solver", "train_s": 300.0, "threads": 1},
    ]
    shown = quality.table({**measured[1], "rows": rows})
    line = next(line for line in shown.splitlines() if line.startswith("| end_to_end"))
    assert line == (
        "| end_to_end (kept: slow, fast) | 64 | 5 | 10 | 30.50 ± 0.10 ± 0.50 | +1.50 ± 0.10 ± 0.00 | 0.900 ± 0.010 ± "
        "0.000 | 0.850 ± 0.010 ± 0.000 | 0.030 ± 0.005 ± 0.000 | 200, 300* | older |"
    )
    assert "32 prompts drawn by seed 777" in shown
    json.dumps(measured[1])


def test_search_is_closer_to_the_teacher_than_even_steps_with_as_many_model_calls(monkeypatch):
    monkeypatch.setattr(control_search, "PROMPTS", 6)
    monkeypatch.setattr(control_search, "MOST_TRIES", 30)
    search = control_search.Search()
    found = search.best(3, 2)
    even = search.psnr(even_plan(5, 4.0, 50))
    assert found["psnr"] > even + 1 and found["nfe"] == 5 and found["tried"] > 10
    steps, weights = parse_steps(found["steps"]).steps, tuple(found["weights"])
    plan = StepPlan(steps, found["guidance"], found["coefficient"], weights)
    assert search.psnr(plan) == pytest.approx(found["psnr"], abs=0.02)


def test_every_compared_number_of_model_calls_has_a_control():
    for nfe in (2, 3, 4, 5, 6, 8, 10, 20):
        assert searched_control(nfe).nfe == nfe
    controls = searched_controls()
    assert {each.nfe for each in controls if each.solver is None and each.guidance != 1} == {4, 6, 8, 10, 20}
    assert min(each.nfe for each in controls) == 2


def test_pages_show_the_last_run():
    measured = json.loads((ROOT / "docs/quality.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/quality.md").read_text(encoding="utf-8")
    shown = page.split("--show docs/quality.json")[1].split("-->\n", 1)[1].split("<!-- end -->")[0]
    assert shown.strip() == quality.table(measured)
    assert quality.table(measured, 10) in (ROOT / "docs/BENCHMARKS.md").read_text(encoding="utf-8")
