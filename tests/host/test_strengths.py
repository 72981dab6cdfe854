"""Strengths of both phases, against ComfyUI's own merge with the same strengths."""

import adapters
import comfyui
import pack
import pytest
import tiny_models
from safetensors.torch import load_file


def held(model):
    """Return the bytes that the model's pair holds."""
    return comfyui.pack_module("nodes.host.patcher").adapters_of(model).switch.weights.nbytes


@pytest.mark.parametrize("strengths", [(0.6, 1.4), (-0.5, 0.0)])
def test_each_phase_acts_as_comfyuis_merge_with_its_strength(strengths, loras):
    model = tiny_models.build("flux")
    files = adapters.save_pair(model, loras)
    with_pair, report = pack.load_pair(model, *files, *strengths)
    assert all(f"strength {strength:g}" in report for strength in strengths)
    merged = [pack.merged(model, load_file(loras / file), own) for file, own in zip(files, strengths, strict=True)]
    truth = pack.chained(*merged, "flux", pack.scheduler(model, "flux"), 5)
    assert pack.relative(pack.phase_split(with_pair, "flux"), truth) < 1e-5


def test_one_file_at_two_strengths_is_held_once(loras):
    model = tiny_models.build("flux")
    files = adapters.save_pair(model, loras)
    pair = pack.load_pair(model, *files)[0]
    one_file = pack.load_pair(model, files[0], files[0], 1.0, 0.3)[0]
    assert 2 * held(one_file) == held(pair)
    merged = [pack.merged(model, load_file(loras / files[0]), strength) for strength in (1.0, 0.3)]
    truth = pack.chained(*merged, "flux", pack.scheduler(model, "flux"), 5)
    assert pack.relative(pack.phase_split(one_file, "flux"), truth) < 1e-5
