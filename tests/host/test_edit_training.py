"""Edit models (Qwen-Image-Edit): the picture that is edited reaches the model in training and in sampling."""

import pack
import tiny_models
import torch
import train_node
from safetensors.torch import load_file

NAME = "qwen-image"


def instruction(seed, picture):
    """Conditioning as Text Encode Qwen Image Edit gives it: the words, and the encoded picture to be edited."""
    return [
        [tokens, {**extra, "reference_latents": [picture["samples"]]}]
        for tokens, extra in tiny_models.conditioning(NAME, seed)
    ]


def test_a_pair_of_one_edit_depends_on_the_picture_before_the_edit(loras, output):
    model = tiny_models.build(NAME)
    untouched = tiny_models.state(model)
    before, other, after = (train_node.picture(NAME, seed=seed) for seed in (4, 5, 6))

    def trained(picture, name):
        """The outputs and the Slow file of a pair trained on one edit, by the paper's loss."""
        prompts = {"positive": instruction(1, picture), "negative": instruction(2, picture)}
        settings = {"objective": "flow_matching", "cfg": 2.5, "steps": 2, "name": name}
        outputs = train_node.train(model, NAME, latent=after, **prompts, **settings)
        return outputs, load_file(loras / outputs[1])

    (carrying, _, _, _, report), weights = trained(before, "edit")
    tiny_models.assert_bit_exact(model, untouched)
    assert ", 0 unmatched" in report
    _, again = trained(before, "again")
    _, elsewhere = trained(other, "elsewhere")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert not all(torch.equal(weights[key], elsewhere[key]) for key in weights)
    pictures = [
        pack.phase_split(
            carrying, NAME, 2, 2, 2.5, "auto", positive=instruction(1, each), negative=instruction(2, each), seed=5
        )
        for each in (before, other)
    ]
    assert torch.isfinite(pictures[0]).all() and not torch.equal(*pictures)


def test_a_pair_is_trained_on_instructions_alone_towards_the_models_own_edits(loras, output):
    before = train_node.picture(NAME, seed=4)
    prompts = {"positive": instruction(1, before) + instruction(3, before), "negative": instruction(2, before)}
    settings = {"objective": "on_policy", "cfg": 2.5, "steps": 2, "name": "edits"}
    *_, report = train_node.train(tiny_models.build(NAME), NAME, **prompts, **settings)
    assert "on 2 prompts" in report and ", 0 unmatched" in report
