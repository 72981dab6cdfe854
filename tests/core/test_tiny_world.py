"""The tiny model's words, scenes and packing."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_core.errors import PromptError
from glance_core.tiny import packing, words, world


def words_of(text):
    return [words.WORDS[i] for i in words.parse(text)]


def test_prompt_is_read_into_slots():
    assert words_of("a small red star left and a large blue ring on striped black") == [
        "small",
        "red",
        "star",
        "left",
        "large",
        "blue",
        "ring",
        "striped",
        "black",
    ]


def test_words_can_have_another_order_and_synonyms():
    assert words_of("On a dotted gray background: a big violet heart, in the middle.") == [
        "large",
        "purple",
        "heart",
        "center",
        "none",
        "none",
        "none",
        "dotted",
        "grey",
    ]


def test_place_belongs_to_the_shape_before_it():
    assert words_of("a red star and a blue ring on the left")[3] == "right"  # the first shape lies opposite
    assert words_of("a red star on the left and a blue ring")[3] == "left"
    assert words_of("left a red star, a blue ring right") == words_of("a red star left and a blue ring")


def test_missing_words_are_any():
    assert words_of("red circle") == ["any", "red", "circle", "any", "none", "none", "none", "any", "any"]
    assert words_of("") == ["any"] * 9 == words_of("  ")


def test_unknown_word_is_rejected_with_the_known_words():
    with pytest.raises(PromptError, match=r"does not know the word 'dog'; it knows small, large, red.*pink"):
        words.parse("a red dog")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("red circle and blue star and green ring", "names 3 shapes; the tiny model draws at most two"),
        ("a red blue circle", "gives one colour twice: red and blue"),
        ("a circle on black white", "gives one ground twice: black and white"),
        ("any circle", "does not know the word 'any'"),
        ("a star and a ring on striped red", "the word red stands after its shape"),
        ("a star red and a ring", "the word red stands after its shape"),
        ("a star center and a ring", "puts one of two shapes in the center"),
        ("a red star left and a blue ring left", "gives one position twice: left and right"),
    ],
)
def test_prompt_outside_the_language_is_rejected(prompt, message):
    with pytest.raises(PromptError, match=message):
        words.parse(prompt)


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_is_parsed_or_rejected(text):
    with contextlib.suppress(PromptError):
        assert len(words.parse(text)) == 9


def test_parser_reads_captions_of_scenes_back():
    scenes = world.sample_scenes(300, torch.Generator().manual_seed(1), "all")
    for slots in scenes.slots().tolist():
        assert list(words.parse(words.caption(tuple(slots)))) == slots


def test_held_out_pairs_occur_in_unseen_prompts_only():
    held = set(world.HELD_OUT)
    assert len(held) == 6 and len({c for c, _ in held}) == 6 == len({s for _, s in held})
    seen = world.sample_scenes(3000, torch.Generator().manual_seed(0), "seen")
    drawn = {tuple(pair) for pair in torch.stack([seen.colour, seen.shape], -1).flatten(0, 1).tolist()}
    assert len(drawn) == 30 and not drawn & held
    unseen = world.sample_scenes(300, torch.Generator().manual_seed(0), "unseen")
    assert {tuple(pair) for pair in torch.stack([unseen.colour[:, 0], unseen.shape[:, 0]], -1).tolist()} == held


def test_pictures_are_seeded_and_in_range():
    first, again = (
        world.render(world.sample_scenes(20, g), g)
        for g in (torch.Generator().manual_seed(4), torch.Generator().manual_seed(4))
    )
    assert torch.equal(first, again)
    assert first.shape == (20, 3, 32, 32) and first.min() >= -1 and first.max() <= 1


def test_distances_to_outlines_match_geometry():
    line = torch.linspace(-2, 2, 41)
    y, x = torch.meshgrid(line, line, indexing="ij")
    names = torch.tensor([words.SHAPES.index("circle"), words.SHAPES.index("square")])
    circle, square = world._distance(names, x.expand(2, -1, -1), y.expand(2, -1, -1), torch.tensor(1.0))
    assert torch.allclose(circle, torch.hypot(x, y) - 1, atol=5e-3)
    qx, qy = x.abs() - 0.88, y.abs() - 0.88
    exact = torch.hypot(qx.clamp(min=0), qy.clamp(min=0)) + torch.maximum(qx, qy).clamp(max=0)
    assert torch.allclose(square, exact, atol=2e-2)


def test_a_large_shape_covers_more_than_a_small_one_and_lies_where_it_was_put():
    scenes = world.sample_scenes(200, torch.Generator().manual_seed(2))
    one = scenes[~scenes.two]
    plain = one[one.texture == 0]
    image = world.render(plain, torch.Generator().manual_seed(3))
    ground = image[:, :, 0, 0][:, :, None, None]
    mask = (image - ground).abs().amax(1) > 0.45
    covered = mask.sum((1, 2)).float()
    assert covered[plain.size[:, 0] == 1].mean() > 2 * covered[plain.size[:, 0] == 0].mean()
    columns = (mask.sum(1) * (torch.arange(32) + 0.5)).sum(1) / covered
    left, right = (
        columns[(plain.position == words.POSITIONS.index(side)) & (covered > 20)] for side in ("left", "right")
    )
    assert left.max() < 16 < right.min()


def test_packing_loses_nothing_and_keeps_distances():
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = packing.pack(pixels)
    assert latents.shape == (3, 16, 16, 16)
    assert torch.allclose(packing.unpack(latents), pixels, atol=1e-6)
    assert latents.square().sum() == pytest.approx(float(pixels.square().sum()), rel=1e-6)


def test_the_first_packed_channel_is_brightness():
    grey = torch.full((1, 3, 2, 2), 0.5)
    latents = packing.pack(grey)
    assert torch.allclose(latents[0, :4], torch.tensor(0.75)) and torch.allclose(latents[0, 4:], torch.tensor(-0.25))
