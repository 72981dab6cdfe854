"""benchmarks.growth on a narrow block: a run with the pair switches its branches, and leaves none behind."""

import io
from dataclasses import replace

import pytest
import torch

from benchmarks import growth
from glance_core.progress import Progress

SMALL = growth.Setting(tokens=16, rank=4)


@pytest.fixture(scope="module")
def bench():
    with torch.inference_mode():
        yield growth.GrowthBench("fp32", heads=1)


def measured(bench, setting):
    return bench.measure("rank", setting, 1, Progress("", 2, stream=io.StringIO()))


def test_both_runs_are_timed_and_no_branch_stays(bench):
    row = measured(bench, SMALL)
    assert row["seconds_base"] > 0
    assert row["ratio_to_base"] == pytest.approx(row["seconds_pair"] / row["seconds_base"], rel=0.05)
    assert not any("forward" in vars(module) for module in bench.model.modules())


def test_every_phase_answers_equally_often_in_a_run(bench, monkeypatch):
    setting = replace(SMALL, phases=3, steps=6)
    switch, chosen = bench.switch(setting), []
    select = switch.select
    monkeypatch.setattr(switch, "select", lambda phase: (chosen.append(phase), select(phase)))
    bench.seconds(setting, switch)
    assert chosen == [0, 0, 1, 1, 2, 2]


def test_size_of_the_pair_follows_rank_targets_and_phases(bench):
    pair = measured(bench, SMALL)["pair_mb"]
    assert measured(bench, replace(SMALL, rank=8, phases=4))["pair_mb"] == pytest.approx(4 * pair, rel=0.05)
    attention, every = (
        measured(bench, replace(SMALL, targets=targets))["pair_mb"] for targets in ("attention", "all linear")
    )
    assert attention < pair < every


def test_table_has_a_line_for_every_row(bench):
    text = growth.table({"rows": [measured(bench, SMALL)] * 2, "dtype": "fp32", "rounds": 1, "machine": "here"})
    assert text.count("\n| rank | 4 | ") == 2
