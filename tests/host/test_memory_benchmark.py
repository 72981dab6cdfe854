"""benchmarks.memory: what it predicts is what a real step takes, and moves as memory does."""

from dataclasses import replace

import pytest

from benchmarks import memory
from benchmarks.memory_tracker import predict

SMALL = memory._sized(memory._FLUX_CHECK, 4, 2, stored="fp8", latent=(1, 16, 48, 48))
QWEN = memory._sized(memory.QWEN, 4, 2)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_prediction_is_within_a_tenth_of_what_a_real_step_takes(checkpointing):
    assert memory.check(replace(SMALL, checkpointing=checkpointing))["ratio"] == pytest.approx(1, abs=memory.ALLOWED)


def test_more_layers_take_more_and_checkpointing_takes_less():
    kept = [predict(memory._sized(QWEN, 4, layers, checkpointing=True)).activations for layers in (2, 4)]
    everything = [predict(memory._sized(QWEN, 4, layers, checkpointing=False)).activations for layers in (2, 4)]
    assert kept[0] < kept[1] < everything[1]
    assert everything[1] - everything[0] > 5 * (kept[1] - kept[0])


def test_fp8_weights_are_half_of_bf16_and_offloaded_ones_are_none():
    halves, wholes = predict(replace(QWEN, stored="fp8")), predict(QWEN)
    assert halves.weights * 2 == wholes.weights == wholes.stored
    away = predict(replace(QWEN, resident=0))
    assert (away.weights, away.stored) == (0, wholes.stored)
    assert wholes.activations < away.activations <= wholes.activations + 2 * away.largest


def test_streaming_keeps_as_many_weights_as_it_is_given_room_for():
    whole = predict(QWEN).weights
    assert 0.3 * whole < predict(replace(QWEN, resident=whole // 2)).weights <= 0.5 * whole


def test_adamw_holds_two_numbers_for_each_of_the_adapters_and_8bit_states_a_quarter_of_that():
    peak = predict(QWEN)
    recipe_rank, width = 32, 512
    layer = 8 * (width + width) + 2 * (4 * width + width) + 2 * (width + 6 * width)  # attention, img_mlp and txt_mlp's second, modulations
    assert peak.adapters == 2 * layer * recipe_rank * 4
    assert peak.optimizer == 2 * peak.adapters
    assert memory.eight_bit(peak).optimizer == pytest.approx(peak.optimizer / 4, rel=0.02)
