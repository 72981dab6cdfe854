"""The prompt bank is complete and clean, and any part of it mixes languages, lengths and text."""

import re

import pytest

from glance_core.errors import GlanceError
from glance_core.prompts.bank import SIZE, bank

CJK = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
UNSPACED = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")  # Chinese and Japanese; about two characters make a word
QUOTED = re.compile(r'"[^"]+"|“[^”]+”|„[^“]+“|«[^»]+»|\u300c[^\u300d]+\u300d')


def words(prompt: str) -> int:
    return len(UNSPACED.sub(" ", prompt).split()) + len(UNSPACED.findall(prompt)) // 2


def foreign(prompt: str) -> bool:
    """Return whether it has letters that English does not have."""
    return any(letter.isalpha() and not letter.isascii() for letter in prompt)


def test_the_bank_holds_256_different_prompts():
    assert len(bank()) == SIZE == 256
    assert len({prompt.casefold() for prompt in bank()}) == 256


def test_every_prompt_is_one_clean_line():
    for prompt in bank():
        assert prompt == prompt.strip() and prompt.isprintable() and len(prompt) >= 4
        assert prompt.count('"') % 2 == 0, prompt


def test_languages_are_mixed_and_most_prompts_are_english():
    prompts = bank()
    assert sum(bool(CJK.search(prompt)) for prompt in prompts) >= 25
    for script in (r"[\u0400-\u04ff]", r"[\u0600-\u06ff]", r"[\u0900-\u097f]", r"[\u3040-\u30ff]", r"[\uac00-\ud7af]"):
        assert sum(bool(re.search(script, prompt)) for prompt in prompts) >= 3, script
    assert 0.6 <= sum(not foreign(prompt) for prompt in prompts) / len(prompts) <= 0.8


def test_at_least_thirty_prompts_ask_for_text_in_the_picture():
    assert sum(bool(QUOTED.search(prompt)) for prompt in bank()) >= 30


def test_lengths_are_spread_evenly_from_a_few_words_to_a_long_paragraph():
    lengths = [words(prompt) for prompt in bank()]
    assert min(lengths) <= 4 and 60 <= max(lengths) <= 90
    for low, high in ((0, 12), (13, 34), (35, 90)):  # about a third each
        assert 70 <= sum(low <= length <= high for length in lengths) <= 100, (low, high)


@pytest.mark.parametrize("start", range(0, 256, 16))
def test_every_sixteen_prompts_are_mixed(start):
    part = bank()[start : start + 16]
    assert sum(foreign(prompt) for prompt in part) >= 2
    assert sum(words(prompt) < 12 for prompt in part) >= 3
    assert sum(words(prompt) > 34 for prompt in part) >= 2
    assert any(QUOTED.search(prompt) for prompt in part)


def test_no_two_prompts_begin_with_the_same_three_words():
    openings = [" ".join(prompt.casefold().split()[:3]) for prompt in bank()]
    assert len(set(openings)) == len(openings)


def test_a_smaller_number_of_prompts_is_the_start_of_the_bank():
    assert bank(3) == bank()[:3]
    assert bank(256) == bank()


@pytest.mark.parametrize("count", [-1, 0, 257])
def test_a_count_that_the_bank_cannot_give_is_rejected_with_the_range(count):
    with pytest.raises(GlanceError, match=f"^the bank cannot give {count} prompts; choose 1 to 256$"):
        bank(count)
