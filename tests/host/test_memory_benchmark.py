"""benchmarks.memory: what it predicts is what a real step takes, and changes as memory does."""

from dataclasses import replace

import pytest

from benchmarks import memory
from benchmarks.memory_setups import FLUX_CHECK, QWEN, sized
from benchmarks.memory_step import predict

SMALL = sized(FLUX_CHECK, 4, 2, stored="fp8", latent=(1, 16, 48, 48))
SMALL_QWEN = sized(QWEN, 4, 2)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_prediction_is_within_a_tenth_of_what_a_real_step_takes(checkpointing):
    assert memory.check(replace(SMALL, checkpointing=checkpointing))["ratio"] == pytest.approx(1, abs=memory.ALLOWED)


def test_more_layers_take_more_and_checkpointing_takes_less():
    kept, everything = (
        [predict(sized(SMALL_QWEN, 4, layers, checkpointing=checkpointing)).activations for layers in (2, 4)]
        for checkpointing in (True, False)
    )
    assert kept[0] < kept[1] < everything[1]
    assert everything[1] - everything[0] > 5 * (kept[1] - kept[0])


def test_fp8_weights_take_half_of_bf16_and_offloaded_ones_nothing():
    fp8, bf16 = predict(replace(SMALL_QWEN, stored="fp8")), predict(SMALL_QWEN)
    assert fp8.weights * 2 == bf16.weights == bf16.stored
    away = predict(replace(SMALL_QWEN, resident=0))
    assert (away.weights, away.stored) == (0, bf16.stored)
    assert bf16.activations < away.activations <= bf16.activations + 2 * away.largest


def test_streaming_keeps_as_many_weights_as_there_is_room_for():
    every = predict(SMALL_QWEN).weights
    assert 0.3 * every < predict(replace(SMALL_QWEN, resident=every // 2)).weights <= 0.5 * every


def test_adamw_holds_two_numbers_per_adapter_number_and_8_bit_states_a_quarter():
    peak = predict(SMALL_QWEN)
    recipe_rank, width = 32, 512
    # Attention, the second layer of img_mlp and txt_mlp, modulations.
    layer = 8 * (width + width) + 2 * (4 * width + width) + 2 * (width + 6 * width)
    assert peak.adapters == 2 * layer * recipe_rank * 4
    assert peak.optimizer == 2 * peak.adapters
    assert memory.eight_bit(peak).optimizer == pytest.approx(peak.optimizer / 4, rel=0.02)
