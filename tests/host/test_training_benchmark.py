"""benchmarks.training_speed on models of a minute: every method trains; ours and PEFT's start from the same loss."""

import json

import pytest
import torch

from benchmarks import report_tables, trainers, training_speed

CASES = {
    "qwen-image": trainers.Case("qwen-image", "qwen-image", (1, 16, 1, 8, 8), rank=4, text_tokens=6, steps=1),
    "qwen-image, bf16": trainers.Case(
        "qwen-image, bf16", "qwen-image", (1, 16, 1, 8, 8), {}, "bf16", (False,), 4, 6, 1
    ),
    "flux": trainers.Case("flux", "flux", (1, 16, 8, 8), checkpointing=(True,), rank=4, text_tokens=6, steps=3),
}
WIDE = trainers.Case(
    "wide", "qwen-image", (1, 16, 1, 4, 4), {"num_layers": 1, "num_attention_heads": 8}, "fp32", (False,), 32, 6
)


@pytest.fixture(scope="module")
def rows():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products in several threads wait for each other beside other work
    yield {
        (name, row["checkpointing"], row["method"]): row
        for name, case in CASES.items()
        for row in training_speed.measure(case, 1, print)
    }
    torch.set_num_threads(threads)


def test_every_method_has_a_row_of_positive_numbers(rows):
    assert len(rows) == 4 * len(trainers.METHODS)
    for row in rows.values():
        assert row["seconds_per_step"] > 0 and row["setup_s"] >= 0
        assert 0 < row["ratio_spread"][0] <= row["ratio_to_ours"] <= row["ratio_spread"][1]
        assert row["ratio_to_ours"] == 1 or row["faster"] == (row["ratio_to_ours"] < 1)  # in the one round


def test_first_losses_of_ours_and_peft_are_the_same(rows):
    for (name, checkpointing, method), row in rows.items():
        if method == "peft":
            assert row["first_loss"] == pytest.approx(rows[name, checkpointing, "ours"]["first_loss"], rel=1e-5)


def test_wrong_gradients_of_rivals_under_checkpointing_are_noted(rows):
    for (name, checkpointing, method), row in rows.items():
        wrong = name == "flux" and checkpointing and method != "ours"
        assert ("wrong gradients" in row["note"]) == wrong, row


def test_peak_memory_is_at_least_adapters_and_optimiser_states(rows):
    ((checkpointing, peak),) = training_speed.peaks_of("ours", WIDE)
    # Four numbers of four bytes; rank times the widths of four layers and more.
    assert not checkpointing and peak > 4 * 4 * 32 * 2 * 1024 * 4 / 1e6


def test_only_a_rival_that_is_much_slower_in_every_round_is_left_out():
    def runs(*seconds):
        return [trainers.Run([0.0, 1.0]), *(trainers.Run([0.0, 1.0, 1.0 + each]) for each in seconds)]

    ours, clearly_slower = runs(1, 1, 1, 1, 1), training_speed.clearly_slower
    assert clearly_slower(runs(1.3, 1.4, 2, 1.3, 9), ours) and not clearly_slower(runs(1.3, 1.4, 2, 1.2, 9), ours)
    assert not clearly_slower(runs(2, 2, 2, 2), ours) and not clearly_slower(ours, ours)


def test_table_has_a_line_for_every_row_and_json_can_hold_it(rows):
    assert len(report_tables.training_table({"rows": list(rows.values())}).splitlines()) == 2 + len(rows)
    assert json.loads(json.dumps(list(rows.values()))) == list(rows.values())
