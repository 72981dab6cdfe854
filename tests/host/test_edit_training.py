"""Edit models (Qwen-Image-Edit): the picture that is edited reaches the model in training and in sampling."""

import folder_paths
import pack
import pytest
import tiny
import torch
import training
from safetensors.torch import load_file

NAME = "qwen-image"


@pytest.fixture
def output(tmp_path, monkeypatch, loras):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def instruction(seed, picture):
    """Conditioning as Text Encode Qwen Image Edit gives it: the words, and the encoded picture to be edited."""
    return [[tokens, {**extra, "reference_latents": [picture["samples"]]}] for tokens, extra in tiny.conditioning(NAME, seed)]


def trained(model, before, after, loras, name):
    """A pair from one edit, by the paper's loss."""
    said = {"positive": instruction(1, before), "negative": instruction(2, before)}
    outputs = training.train(model, NAME, latent=after, **said, objective="flow_matching", cfg=2.5, steps=2, name=name)
    return outputs, load_file(loras / outputs[1])


def test_a_pair_is_trained_on_one_edit_and_what_it_learns_depends_on_the_picture_before(loras, output):
    model = tiny.build(NAME)
    untouched = tiny.state(model)
    before, other, after = (training.picture(NAME, seed=seed) for seed in (4, 5, 6))
    (carrying, _, _, _, report), weights = trained(model, before, after, loras, "edit")
    tiny.assert_bit_exact(model, untouched)
    assert ", 0 unmatched" in report
    _, again = trained(model, before, after, loras, "again")
    _, elsewhere = trained(model, other, after, loras, "elsewhere")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert not all(torch.equal(weights[key], elsewhere[key]) for key in weights)
    sample = pack.node("PhaseSplitSampler").execute
    pictures = [
        sample(carrying, instruction(1, each), instruction(2, each), tiny.empty_latent(NAME), 5, 2.5, "auto", "auto", 2, 2, 1.0, "").args[
            0
        ]["samples"]
        for each in (before, other)
    ]
    assert torch.isfinite(pictures[0]).all() and not torch.equal(*pictures)


def test_a_pair_is_trained_on_instructions_alone_towards_the_models_own_edits(loras, output):
    before = training.picture(NAME, seed=4)
    several = instruction(1, before) + instruction(3, before)
    *_, report = training.train(
        tiny.build(NAME), NAME, positive=several, negative=instruction(2, before), objective="aimed", cfg=2.5, steps=2, name="edits"
    )
    assert "on 2 prompts" in report and ", 0 unmatched" in report
