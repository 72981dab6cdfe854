"""Alphas by pattern, as PEFT applies them, and configurations that cannot be read."""

import json
import time

import peft
import pytest
from torch import nn

from glance_core.errors import AdapterError
from glance_core.lora import scale
from glance_core.lora.reader import read_adapter
from glance_core.lora.scale import StatedScale

EXPRESSIONS = [
    "", "a*", "a+b{2}", "a?b?", "a|b", "a|b|c", "(a|b)(c|d|e)", "(?:a|b)c", "(?:a*|b)c+", "x*|y", "x|y*|z*", "a?b*|c",
    "(a?|b)?", "((a|b)|c)(d)", "a*(b*)", "a?(b*|c?)d*", "a*?", r"\(\*[|?*(][]*]", "a)", "(a))b", ")", r"\d", "a b",
    "$", "^", "a^", "a$b", "^^a", "a$$", "\\", r"a\\.b",
]  # fmt: skip


def stated(folder, config, name="a.safetensors"):
    return StatedScale(
        folder / name, {"lora_adapter_metadata": config if isinstance(config, str) else json.dumps(config)}
    )


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_regular_expression_is_rejected_at_once(pattern, tmp_path):
    began = time.process_time()
    with pytest.raises(AdapterError) as rejected:
        stated(tmp_path, {"lora_alpha": 4, "alpha_pattern": {pattern: 2}}).of("block.0.to_k", 4, None)
    assert time.process_time() - began < 0.1
    assert str(rejected.value) == (
        f"a.safetensors: {pattern!r} in PEFT's alpha_pattern cannot be read, as it is not a plain module name; "
        "write module names instead"
    )


def test_regular_expression_is_rejected_among_many_names(tmp_path):
    patterns = {f"^blocks.{i}.to_q": i + 1 for i in range(1000)} | {"v?": 8}
    with pytest.raises(AdapterError, match=r"^a\.safetensors: 'v\?' in PEFT's alpha_pattern cannot be read, as it is"):
        stated(tmp_path, {"lora_alpha": 4, "alpha_pattern": patterns}).of("blocks.0.to_q", 4, None)


def test_pattern_does_not_matter_if_the_module_has_an_alpha_tensor(tmp_path):
    assert stated(tmp_path, {"alpha_pattern": {"(a|b)*": 2}}).of("a", 4, 8.0) == (8.0, 2.0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.q_proj, self.add_q_proj = (nn.Linear(4, 4) for _ in range(4))


class Block(nn.Module):
    """Module names that are the ends of others, with a dot before them and without one."""

    def __init__(self, blocks=()):
        super().__init__()
        self.attn, self.cross_attn, self.attn_to_q = Attention(), Attention(), nn.Linear(4, 4)
        self.blocks = nn.ModuleList(blocks)


LITERAL = {
    "a name": {"to_k": 2},
    "a name that ends others without a dot before it": {"q_proj": 2},
    "two names of one layer": {r"cross_attn\.to_q": 8, "to_q": 2},
    "names from the start": {r"^attn\.to_q": 2, r"^blocks\.1\.attn\.to_k": 8},
    "a name from the start and a shorter one": {r"^attn\.to_k": 2, "^blocks.0.cross_attn.to_k": 8, "to_k": 3},
    "one name from the start and from anywhere": {r"^attn\.q_proj": 2, r"attn\.q_proj": 8},
    "a name up to the end": {"add_q_proj$": 2, r"^cross_attn\.to_k$": 8},
    "escaped and plain dots": {r"blocks\.0.cross_attn.to_k": 2, "blocks.0.cross_attn.to_k": 8, "1.attn.to_k": 32},
    "names that differ in a dot": {r"attn\.to_q": 2, "attn_to_q": 8},
}  # fmt: skip


def scales_of(model):
    layers = model.base_model.model.named_modules()
    return {name: layer.scaling["default"] for name, layer in layers if hasattr(layer, "scaling")}


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("what", LITERAL)
def test_names_give_the_scales_that_peft_gives_its_layers(what, order, tmp_path):
    """PEFT's layers when it reads the file, as its saver sorts the keys, and the first one counts."""
    config = peft.LoraConfig(r=4, lora_alpha=16, alpha_pattern=LITERAL[what], target_modules=r".*(to_q|to_k|q_proj)")
    peft.get_peft_model(Block([Block(), Block()]), config).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    settings["alpha_pattern"] = dict(list(LITERAL[what].items())[::order])
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    expected = scales_of(peft.PeftModel.from_pretrained(Block([Block(), Block()]), tmp_path))
    assert len(expected) == 27 and len(set(expected.values())) > 1
    adapter = read_adapter(tmp_path / "adapter_model.safetensors")
    assert {name: factor.scale for name, factor in adapter.factors.items()} == expected


def test_pefts_own_saver_writes_what_is_read(tmp_path):
    """The same without a change to the configuration that PEFT saves."""
    patterns = {"to_q": 2, r"^attn\.to_k": 8, "add_q_proj$": 3, "^blocks.1.cross_attn.to_k": 32}
    config = peft.LoraConfig(r=4, lora_alpha=16, alpha_pattern=patterns, target_modules=r".*(to_q|to_k|q_proj)")
    model = peft.get_peft_model(Block([Block(), Block()]), config)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path / "adapter_model.safetensors")
    assert {name: factor.scale for name, factor in adapter.factors.items()} == scales_of(model)
    assert len(set(scales_of(model).values())) == 5


def test_plain_dot_is_a_dot(tmp_path):
    """PEFT reads it as any character. No model has two layers whose names differ only there."""
    config = {"lora_alpha": 16, "alpha_pattern": {"attn.to_q": 2}}
    scales = stated(tmp_path, config)
    assert [scales.of(module, 4, None)[0] for module in ("x.attn.to_q", "x.attn_to_q")] == [2, 16]


def test_configuration_is_read_up_to_its_limit(tmp_path, monkeypatch):
    """In the metadata, and in the file that PEFT writes."""
    text = json.dumps({"lora_alpha": 8, "note": "é"}, ensure_ascii=False)
    monkeypatch.setattr(scale, "_LONGEST", len(text))
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    beside = tmp_path / "adapter_model.safetensors"
    assert stated(tmp_path, text).of("to_q", 4, None) == StatedScale(beside, {}).of("to_q", 4, None) == (8.0, 2.0)
    monkeypatch.setattr(scale, "_LONGEST", len(text) - 1)
    message = f"has over {len(text) - 1} characters; it holds the alpha, so get the file again"
    for build, what in (
        (lambda: stated(tmp_path, text), "a.safetensors: its lora_adapter_metadata"),
        (lambda: StatedScale(beside, {}), "adapter_model.safetensors: adapter_config.json beside it"),
    ):
        with pytest.raises(AdapterError) as rejected:
            build()
        assert str(rejected.value) == f"{what} {message}"


def test_long_configuration_is_rejected_without_reading_all_of_it(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("x" * 1000, encoding="utf-8")
    monkeypatch.setattr(scale, "_LONGEST", 10)
    given = []
    monkeypatch.setattr(scale, "_json_object", lambda text, what: given.append(text) or {})
    StatedScale(tmp_path / "adapter_model.safetensors", {})
    assert given == ["x" * 11]


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_text_that_is_not_json_is_named(text, tmp_path):
    with pytest.raises(AdapterError) as rejected:
        stated(tmp_path, text)
    assert (
        str(rejected.value)
        == "a.safetensors: its lora_adapter_metadata is not JSON; it holds the alpha, so get the file again"
    )
