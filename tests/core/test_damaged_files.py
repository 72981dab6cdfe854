"""Files that are damaged or hold something else: each is rejected in one sentence."""

import contextlib
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_files import MODULE, edited_tensors, good_tensors, save

from glance_core.errors import AdapterError, GlanceError
from glance_core.lora.reader import read_adapter

BAD_TENSORS = {
    "no up": (edited_tensors(up=None), "no up"),
    "no down": (edited_tensors(down=None), "no down"),
    "NaN": (edited_tensors(up=torch.full((5, 4), torch.nan)), "NaN"),
    "infinity": (edited_tensors(down=torch.full((4, 6), torch.inf)), "infinity"),
    "ranks differ": (edited_tensors(up=torch.ones(5, 3)), r"\(5, 3\)"),
    "one dimension": (edited_tensors(up=torch.ones(5)), r"\(5,\)"),
    "empty factor": (edited_tensors(down=torch.ones(0, 6), up=torch.ones(5, 0)), r"\(0, 6\)"),
    "integer factors": (edited_tensors(up=torch.ones((5, 4), dtype=torch.int8)), "int8"),
    "long alpha": (edited_tensors(alpha=torch.ones(2)), "alpha"),
    "alpha 0": (edited_tensors(alpha=torch.tensor(0.0)), "is 0"),
    "NaN alpha": (edited_tensors(alpha=torch.tensor(torch.nan)), "NaN"),
    "DoRA": (good_tensors() | {f"{MODULE}.dora_scale": torch.ones(5)}, "DoRA"),
    "LoKr": ({f"{MODULE}.lokr_w1": torch.ones(2, 2), f"{MODULE}.alpha": torch.tensor(1.0)}, "LoKr"),
    "LoHa": ({f"{MODULE}.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
    "Tucker": (good_tensors() | {f"{MODULE}.lora_mid.weight": torch.ones(2, 2)}, "Tucker"),
    "a base model": ({f"{MODULE}.weight": torch.ones(2, 2)}, "none of its 1 tensors"),
    "no tensors": ({}, "none of its 0 tensors"),
    "only an alpha": ({"snake.alpha": torch.ones(3)}, "none of its 1 tensors"),
    "twice": (good_tensors() | {f"transformer.{key}": value for key, value in good_tensors().items()}, "twice"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_tensors_that_cannot_be_applied_are_rejected_in_one_sentence(what, tmp_path):
    tensors, words = BAD_TENSORS[what]
    with pytest.raises(AdapterError, match=words) as rejected:
        read_adapter(save(tmp_path / "a.safetensors", tensors))
    message = str(rejected.value)
    assert message.startswith("a.safetensors: ")
    assert "\n" not in message


def header(claimed, text=b""):
    return struct.pack("<Q", claimed) + text


BEYOND_THE_END = b'{"a.lora_A.weight":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}}'
BAD_BYTES = {
    "empty": (b"", "empty"),
    "three bytes": (b"abc", "3"),
    "header cut off": (header(1000, b"{}"), "1000"),
    "header of 10 GB": (header(10**10, b"{}"), "10000000000"),
    "header of 2^64": (header(2**64 - 1, b"{}"), "18446744073709551615"),
    "not JSON": (header(2, b"xx"), "not a valid safetensors"),
    "JSON of another shape": (header(2, b"[]"), "not a valid safetensors"),
    "offsets beyond the end": (
        header(72, BEYOND_THE_END), "cut off: its header says 404 bytes and the file has 80",
    ),
    "deep JSON": (header(40000, b"[" * 40000), "not a valid safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_BYTES)
def test_bytes_that_are_not_safetensors_are_rejected_in_one_sentence(what, tmp_path):
    data, words = BAD_BYTES[what]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(AdapterError, match=words) as rejected:
        read_adapter(path)
    assert "\n" not in str(rejected.value)


def test_header_above_the_limit_is_rejected_before_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)  # a sparse file, so it uses no disk
    with pytest.raises(AdapterError, match="200000000"):
        read_adapter(path)


def test_missing_files_and_folders_are_rejected(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path, "a\0b"):
        with pytest.raises(AdapterError):
            read_adapter(path)


@pytest.mark.parametrize("low_byte", [0x80, 0x50])
def test_header_length_that_looks_like_another_format_is_accepted(low_byte, tmp_path):
    """0x80 starts a pickle and 0x50 a zip. Both are ordinary first bytes of a length."""
    path = tmp_path / "a.safetensors"
    lengths = set()
    for padding in range(2000):
        save(path, good_tensors(), {"padding": "x" * padding})
        with open(path, "rb") as file:
            lengths.add(file.read(1)[0])
        if low_byte in lengths:
            break
    assert low_byte in lengths
    assert read_adapter(path).factors


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_gives_an_adapter_or_the_packages_own_error(tmp_path, data):
    path = save(tmp_path / "a.safetensors", good_tensors(), {"glance.format": "2", "glance.phase": "slow"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with contextlib.suppress(GlanceError):
        for factor in read_adapter(path).factors.values():
            assert torch.isfinite(factor.down).all()
            assert torch.isfinite(factor.up).all()


BAD_METADATA = {
    "glance.format": "7", "glance.phase": "middle", "glance.sigma_rule": "cosine", "glance.teacher_steps": "1",
    "glance.steps": "1|2|3", "glance.sigmas": "[1, NaN]", "glance.rank": "four", "glance.guidance": "inf",
    "glance.seed": "9" * 10_000, "glance.fold_guidance": "yes",
}  # fmt: skip


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("key", BAD_METADATA)
def test_metadata_that_no_writer_writes_is_rejected_with_its_key(key, version, tmp_path):
    value = BAD_METADATA[key]
    if (version, key) == ("1", "glance.sigma_rule"):
        key = "glance.ladder"
    metadata = {"glance.format": version, "glance.teacher_steps": "50", key: value}
    with pytest.raises(AdapterError, match=key):
        read_adapter(save(tmp_path / "a.safetensors", good_tensors(), metadata))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b""])
def test_unreadable_peft_configuration_is_rejected_because_it_holds_the_alpha(content, tmp_path):
    save(tmp_path / "adapter_model.safetensors", good_tensors())
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        read_adapter(tmp_path / "adapter_model.safetensors")
