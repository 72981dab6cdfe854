"""benchmarks.growth on a narrow block: the pair's walk is the bare one with its branches on, and is undone after it."""

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
        yield growth.Bench("fp32", heads=1)


def measured(bench, setting):
    return bench.measure("rank", setting, 1, Progress("", 2, stream=io.StringIO()))


def test_both_walks_are_timed_and_the_model_is_bare_again(bench):
    row = measured(bench, SMALL)
    assert row["seconds_bare"] > 0 and row["ratio_to_bare"] == pytest.approx(row["seconds_pair"] / row["seconds_bare"], rel=0.05)
    assert not any("forward" in vars(module) for module in bench.model.modules())


def test_every_phase_answers_once_in_a_walk_that_has_as_many_steps(bench, monkeypatch):
    setting = replace(SMALL, phases=3, steps=6)
    switch, chosen = bench.switch(setting), []
    select = switch.select
    monkeypatch.setattr(switch, "select", lambda phase: (chosen.append(phase), select(phase)))
    bench.walk(setting, switch)
    assert chosen == [0, 0, 1, 1, 2, 2]


def test_the_factors_are_those_of_the_rank_the_targets_and_the_phases(bench):
    pair = measured(bench, SMALL)["pair_mb"]
    assert measured(bench, replace(SMALL, rank=8, phases=4))["pair_mb"] == pytest.approx(4 * pair, rel=0.05)
    assert (
        measured(bench, replace(SMALL, targets="attention"))["pair_mb"]
        < pair
        < measured(bench, replace(SMALL, targets="all linear"))["pair_mb"]
    )


def test_the_table_has_a_line_for_every_row(bench):
    told = growth.table({"rows": [measured(bench, SMALL)] * 2, "dtype": "fp32", "rounds": 1, "machine": "here"})
    assert told.count("\n| rank | 4 | ") == 2
