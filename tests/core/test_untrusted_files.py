"""Files made to harm: whatever the file claims, the reader gives an adapter or one sentence."""

import json
import math
import pickle
import time

import pytest
import torch
from crafted_files import ALPHA, DOWN, ONE, UP, entry, header_of_pair, rejection, write
from lora_files import MODULE
from safetensors.torch import save_file
from untrusted_files import safetensors

from glance_core.__main__ import main
from glance_core.errors import AdapterError
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.reader import read_adapter
from glance_core.lora.writer import write_adapter

NOT_VALID = "not a valid safetensors"


def changed(key, *where):
    """Return a header with one wrong entry."""
    return header_of_pair(**{key: entry(*where)})


HEADERS = {
    "a header that claims 10 GB": (
        (10 * 2**30).to_bytes(8, "little") + b"{" + b" " * 100,
        "the header claims 10737418240 bytes but the file has 109",
    ),
    "a tensor of 10 GB": (
        safetensors(changed("big", 8, 8 + 10 * 2**30, [10 * 2**28]), ONE * 2), "cut off: its header says 107374",
    ),
    "rows 2^64": (safetensors(changed(DOWN, 0, 4, [2**64, 1]), ONE * 2), NOT_VALID),
    "rows 2^63 times 2": (safetensors(changed(DOWN, 0, 4, [2**63, 2]), ONE * 2), NOT_VALID),
    "negative rows": (safetensors(changed(DOWN, 0, 4, [-1, -1]), ONE * 2), NOT_VALID),
    "no rows": (safetensors({DOWN: entry(0, 0, [0, 1]), UP: entry(0, 0, [1, 0])}), "do not fit"),
    "no rows of 2^62": (
        safetensors({DOWN: entry(0, 0, [0, 2**62]), UP: entry(0, 0, [2**62, 0])}), f"do not fit|{NOT_VALID}",
    ),
    "no dimensions": (safetensors({DOWN: entry(0, 4, []), UP: entry(4, 8, [])}, ONE * 2), "do not fit"),
    "a thousand dimensions": (safetensors({DOWN: entry(0, 4, [1] * 1000), UP: entry(4, 8, [1] * 1000)}, ONE * 2), ""),
    "overlapping offsets": (safetensors(changed(UP, 2, 6, [1, 1]), ONE + ONE[:2]), NOT_VALID),
    "one place twice": (safetensors(changed(UP, 0, 4, [1, 1]), ONE), NOT_VALID),
    "offsets backwards": (safetensors(changed(UP, 8, 4, [1, 1]), ONE), NOT_VALID),
    "a hole": (safetensors(changed(UP, 8, 12, [1, 1]), ONE * 3), NOT_VALID),
    "fewer bytes than its shape": (safetensors(changed(UP, 4, 8, [2, 1]), ONE * 2), NOT_VALID),
    "deep JSON": (safetensors(b'{"a":' * 100_000), NOT_VALID),
    "a pickle behind a length": (safetensors(pickle.dumps({"a": 1})), f"{NOT_VALID}|header claims"),
    "not text": (safetensors(b"\xff" * 64), NOT_VALID),
    "metadata that is not text": (safetensors({"__metadata__": {"a": 1}, **header_of_pair()}, ONE * 2), NOT_VALID),
    "metadata that is a list": (safetensors({"__metadata__": [], **header_of_pair()}, ONE * 2), NOT_VALID),
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_header_that_lies_is_rejected(what, tmp_path):
    content, message = HEADERS[what]
    path = write(tmp_path, content)
    if message:
        with pytest.raises(AdapterError, match=message):
            read_adapter(path)
        rejection(path)
    else:  # odd, but it could be a factor
        assert read_adapter(path).factors[MODULE].rank == 1


BYTES_OF = {
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F4": 1,
    "F6_E2M3": 3,
    "C64": 8,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "I8": 1,
    "I64": 8,
    "XX": 4,
}
EIGHT_BIT = {"F8_E4M3": 1.0, "F8_E5M2": 0.5}  # what the byte 0x38 means by their definitions


@pytest.mark.parametrize("key", [DOWN, UP, ALPHA])
@pytest.mark.parametrize("dtype", BYTES_OF)
def test_other_dtypes_are_rejected_where_they_have_no_meaning(dtype, key, tmp_path):
    """Integers may be an alpha, and 8-bit floats anything. Half bytes and complex numbers may be nothing at all."""
    count = {"F4": 2, "F6_E2M3": 4}.get(dtype, 1)
    header = header_of_pair(**{ALPHA: entry(8, 12, [])})
    shapes = {DOWN: [1, 1], UP: [1, 1], ALPHA: []}
    position, data = 0, b""
    for name in (DOWN, UP, ALPHA):
        size = BYTES_OF[dtype] if name == key else 4
        shape = [*shapes[name][:-1], count] if name == key and count > 1 else shapes[name]
        header[name] = entry(position, position + size, shape, dtype if name == key else "F32")
        data += b"\x38" + b"\0" * (size - 1) if name == key else ONE
        position += size
    path = write(tmp_path, safetensors(header, data))
    if key == ALPHA and dtype in ("I8", "I64"):
        assert read_adapter(path).factors[MODULE].scale == 0x38
    elif dtype in EIGHT_BIT:
        factor = read_adapter(path).factors[MODULE]
        read = {DOWN: factor.down, UP: factor.up, ALPHA: factor.scale}[key]
        assert float(read) == EIGHT_BIT[dtype]
    else:
        rejection(path)


BAD_ALPHAS = {
    "400 digits": 10**400, "NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf, "a text": "8 or so",
    "a list": [8], "deep": [[[]]], "nothing": None, "1e300": 1e300, "5e-324": 5e-324, "400 digits as text": "9" * 400,
}  # fmt: skip


@pytest.mark.parametrize("alpha", BAD_ALPHAS)
@pytest.mark.parametrize("where", ["lora_alpha", "alpha_pattern", "ss_network_alpha"])
def test_impossible_alpha_never_becomes_a_scale(where, alpha, tmp_path):
    value = BAD_ALPHAS[alpha]
    config = {where: {"to_q": value} if where == "alpha_pattern" else value}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    if where == "ss_network_alpha":
        metadata = {where: str(value)[:1000]}
    save_file({DOWN: torch.ones(4, 6), UP: torch.ones(5, 4)}, tmp_path / "a.safetensors", metadata=metadata)
    try:
        factor = read_adapter(tmp_path / "a.safetensors").factors[MODULE]
    except AdapterError as error:
        assert "alpha of transformer_blocks.0.attn.to_q" in str(error)  # noqa: PT017
    else:
        assert (factor.alpha, factor.scale) == (None, 1.0)  # as if the file had none, which the report says


@pytest.mark.parametrize("alpha", [1e300, 5e-324, 1e-40, -1e35])
def test_alpha_that_float32_cannot_hold_is_rejected(alpha, tmp_path):
    """It could not be written again."""
    tensors = {DOWN: torch.ones(4, 6), UP: torch.ones(5, 4), ALPHA: torch.tensor(alpha, dtype=torch.float64)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert "which no training gives" in rejection(tmp_path / "a.safetensors")


def test_scale_at_the_limit_can_be_written_and_read_again(tmp_path):
    for i, alpha in enumerate((1e29, 1e-28, -3.0, 2.0**-60)):
        tensors = {DOWN: torch.ones(4, 6), UP: torch.ones(5, 4), ALPHA: torch.tensor(alpha, dtype=torch.float64)}
        save_file(tensors, tmp_path / f"{i}.safetensors")
        read = read_adapter(tmp_path / f"{i}.safetensors")
        again = read_adapter(write_adapter(tmp_path / f"{i}-again.safetensors", read.factors, PairMetadata()))
        assert again.factors[MODULE].scale == pytest.approx(read.factors[MODULE].scale, rel=1e-6)


PATTERNS = {
    "alternatives that are the same": "(a|a)" * 39 + "b", "options": "a?" * 60 + "a" * 60, "repeats": ".*a" * 10 + "z",
    "a group repeated": "(a*)*b", "a group counted": "(a|aa){50}b", "a hidden group": "(?:a|a)" * 25 + "b",
    "classes that look like alternatives": "a?" * 20 + "[|]" + "a?" * 30 + "b",
    "a class that begins with its end": "[]a*]" + "(a|a)" * 35,
    "parentheses that close the package's own": "a)(b|" * 30 + "(c", "a look-ahead by itself": "?=.*x",
    "a count beyond all": "a{99999999999}", "deep": "(" * 100 + ")" * 100, "a reference": r"(a*)\1\1\1\1\1*b",
    "lazy": ".*?a" * 10 + "z", "verbose": "?x:(a|a)" * 9,
}  # fmt: skip


@pytest.mark.parametrize("what", PATTERNS)
def test_hostile_alpha_pattern_is_rejected_at_once(what, tmp_path):
    """On many modules, whose names would keep a matcher of regular expressions busy for years."""
    names = [".".join(["a" * 9] * 20) + f"{i}" for i in range(100)] + ["a" * 60, "a" * 400]
    tensors = {f"{name}.lora_{x}.weight": torch.ones(1, 1) for name in names for x in "AB"}
    config = {"lora_alpha": 8, "alpha_pattern": {PATTERNS[what]: 2}}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    began = time.process_time()
    message = rejection(tmp_path / "a.safetensors")
    assert time.process_time() - began < 1
    assert message == (
        f"a.safetensors: {PATTERNS[what][:60]!r} in PEFT's alpha_pattern cannot be read, as it is not a plain module "
        "name; write module names instead"
    )


def test_as_many_patterns_as_layers_are_matched_quickly(tmp_path):
    """`convert --layout diffusers` writes them for layers of many ranks."""
    modules = [f"transformer_blocks.{i}.attn.to_q" for i in range(840)]
    patterns = {f"^{module}": i + 1 for i, module in enumerate(modules)}
    tensors = {f"{module}.lora_{x}.weight": torch.ones(1, 1) for module in modules for x in "AB"}
    metadata = {"lora_adapter_metadata": json.dumps({"alpha_pattern": patterns})}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    began = time.process_time()
    read = read_adapter(tmp_path / "a.safetensors")
    assert time.process_time() - began < 5
    # As in PEFT, whose dots stand for any character: no other key matches transformer_blocks.1.attn.to_q.
    assert [read.factors[module].alpha for module in modules] == list(range(1, 841))


NAMES = [
    "x\x1b[2Jy", "a\nb", "\u202egpj.exe", "zero\u200bwidth", "a\0b", "tab\t", "a" * 501, "\u2028", "\ufeffa",
    "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_tensor_name_that_deceives_the_eye_is_rejected(name, tmp_path):
    header = {f"{name}.lora_A.weight": entry(0, 4, [1, 1]), f"{name}.lora_B.weight": entry(4, 8, [1, 1])}
    message = rejection(write(tmp_path, safetensors(header, ONE * 2)))
    assert "names may have 500 printable characters" in message


def test_prefix_without_a_module_does_not_mean_the_whole_model(tmp_path):
    names = ("lora_unet_.lora_down.weight", "lora_unet_.lora_up.weight", DOWN, UP)
    save_file({name: torch.ones(1, 1) for name in names}, tmp_path / "a.safetensors")
    read = read_adapter(tmp_path / "a.safetensors")
    assert list(read.factors) == [MODULE] and len(read.skipped) == 2


@pytest.mark.parametrize("version, comparison", [("1", "glance.verdict"), ("2", "glance.comparison")])
def test_metadata_is_printed_without_terminal_codes(version, comparison, tmp_path, capsys):
    metadata = {
        "glance.format": version,
        "glance.base": "x\x1b[2J\u202e",
        "glance.partner": "a\nb",
        comparison: "\x07",
        "ss_output_name": "\x1b]0;title\x07 lightning",
    }
    save_file({DOWN: torch.ones(1, 1), UP: torch.ones(1, 1)}, tmp_path / "a\x1b[2J.safetensors", metadata=metadata)
    assert main(["inspect", str(tmp_path / "a\x1b[2J.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "x\\x1b[2J\\u202e" in printed and all(line.isprintable() for line in printed.splitlines())
    message = rejection(tmp_path / "none\x1b[2J\n.safetensors")
    assert message.startswith("none\\x1b[2J\\n.safetensors: cannot be opened")
