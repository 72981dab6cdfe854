"""What alpha patterns may cost is counted to the way, and every sentence about a configuration names it."""

import json
import re

import pytest

from glance_core import stated_scale
from glance_core.errors import AdapterError
from glance_core.stated_scale import StatedScale, _ways

COUNTED = {
    "": (1, 0), "abc": (1, 0), "a*": (1, 1), "a+b{2}": (1, 2), "a?b?": (4, 0), "a|b": (2, 0), "a|b|c": (3, 0), "(a|b)(c|d|e)": (6, 0), "(?:a|b)c": (2, 0), "(?:a*|b)c+": (2, 2),
    "x*|y": (2, 1), "x|y*|z*": (3, 1), "a?b*|c": (3, 1), "(a?|b)?": (6, 0), "((a|b)|c)(d)": (3, 0), "a*(b*)": (1, 2), "a?(b*|c?)d*": (6, 2), "a*?": (2, 1),
    r"\(\*[|?*(][]*]": (1, 0),
}  # fmt: skip


@pytest.mark.parametrize("pattern", COUNTED)
def test_the_ways_of_a_pattern_are_counted(pattern):
    """By hand: what stands in a row multiplies, alternatives add up, `?` doubles, and a repeat may end anywhere in the text."""
    assert _ways(pattern) == COUNTED[pattern]
    re.compile(pattern)


@pytest.mark.parametrize("pattern", ["a)", "(a))b", ")"])
def test_a_parenthesis_too_many_is_named(pattern):
    with pytest.raises(re.error, match=r"^unbalanced parenthesis$"):
        _ways(pattern)


def stated(folder, config, name="a.safetensors"):
    return StatedScale(folder / name, {"lora_adapter_metadata": config if isinstance(config, str) else json.dumps(config)})


def test_all_patterns_and_modules_are_paid_from_one_purse(tmp_path, monkeypatch):
    """Two patterns are compiled; each module tries both, from its start and from each of its dots."""
    config, modules = {"lora_alpha": 4, "alpha_pattern": {"q*": 2, "v?": 8}}, ["block.0.to_k", "out"]
    cost = 2 * 20_000 + (12 + 1 + 2) * 3 + (3 + 1 + 2) * 1

    def read():
        scale = stated(tmp_path, config)
        return [scale.of(module, 4, None) for module in modules]

    monkeypatch.setattr(stated_scale, "_WAYS", cost)
    assert read() == [(4.0, 1.0)] * 2
    monkeypatch.setattr(stated_scale, "_WAYS", cost - 1)
    with pytest.raises(AdapterError) as refused:
        read()
    assert (
        str(refused.value)
        == "a.safetensors: 'v?' in PEFT's alpha_pattern cannot be read (it could take for ever); write the modules' names in its place"
    )


def test_a_configuration_is_read_up_to_its_longest(tmp_path, monkeypatch):
    """In the metadata, and beside the file that PEFT names."""
    text = json.dumps({"lora_alpha": 8, "note": "é"}, ensure_ascii=False)
    monkeypatch.setattr(stated_scale, "_LONGEST", len(text))
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    beside = tmp_path / "adapter_model.safetensors"
    assert stated(tmp_path, text).of("to_q", 4, None) == StatedScale(beside, {}).of("to_q", 4, None) == (8.0, 2.0)
    monkeypatch.setattr(stated_scale, "_LONGEST", len(text) - 1)
    said = f"has over {len(text) - 1} characters; it holds the alpha, get the file again"
    for build, what in (
        (lambda: stated(tmp_path, text), "a.safetensors: its lora_adapter_metadata"),
        (lambda: StatedScale(beside, {}), "adapter_model.safetensors: adapter_config.json beside it"),
    ):
        with pytest.raises(AdapterError) as refused:
            build()
        assert str(refused.value) == f"{what} {said}"


def test_no_more_of_a_configuration_is_read_than_is_needed_to_refuse_it(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("x" * 1000, encoding="utf-8")
    monkeypatch.setattr(stated_scale, "_LONGEST", 10)
    given = []
    monkeypatch.setattr(stated_scale, "_json_object", lambda text, what: given.append(text) or {})
    StatedScale(tmp_path / "adapter_model.safetensors", {})
    assert given == ["x" * 11]


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_what_is_no_json_is_named(text, tmp_path):
    with pytest.raises(AdapterError) as refused:
        stated(tmp_path, text)
    assert str(refused.value) == "a.safetensors: its lora_adapter_metadata is no JSON; it holds the alpha, get the file again"
