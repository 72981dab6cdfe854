"""Whether two files can be one pair: what is rejected, and what is only noted."""

from pathlib import Path

import pytest
import torch
from lora_files import kohya_tensors
from safetensors.torch import save_file

from glance_core.errors import AdapterError
from glance_core.lora.factors import Factor
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import Adapter, read_adapter
from glance_core.lora.writer import write_adapter

ONE, TWO = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"


def adapter(name, factors=None, **pair):
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    down, up = torch.randn((4, 6), generator=generator), torch.randn((5, 4), generator=generator)
    own = {ONE: Factor(down, up, None, 1.0, ONE)}
    return Adapter(Path(name), own if factors is None else factors, ("lora_A/lora_B",), {}, PairMetadata(**pair))


CHOSEN = "was chosen as"
REJECTED = [
    (adapter("x", phase="fast"), adapter("y"), f"x is a Fast adapter but {CHOSEN} slow_lora; swap the two files"),
    (adapter("x"), adapter("y", phase="slow"), f"y is a Slow adapter but {CHOSEN} fast_lora; swap the two files"),
    (
        adapter("x", phase="fast"), adapter("y", phase="fast"),
        f"x is a Fast adapter but {CHOSEN} slow_lora; choose the Slow file of the pair there",
    ),
    (
        adapter("x", phase="slow"), adapter("y", phase="slow", partner=f"my\nother {'z' * 99}"),
        f"y is a Slow adapter but {CHOSEN} fast_lora; choose my other {'z' * 91} there",
    ),
    (adapter("x", base="flux"), adapter("y", base="wan"), "x is for flux and y for wan; choose two files of one pair"),
    (
        adapter("x", {"double_blocks.0.img_attn.qkv": None}), adapter("y", base="wan"),
        "x is for chroma/flux/flux2/hunyuan-video and y for wan; choose two files of one pair",
    ),
    *(
        (
            adapter("x", **{what: one}), adapter("y", **{what: two}),
            f"x was trained with glance.{what} {one} and y with {two}; choose two files of one pair",
        )
        for what, one, two in (
            ("sigma_rule", "flux", "model"), ("shift", 3.0, 1.0), ("teacher_steps", 50, 20), ("steps", "1|2", "1|3"),
            ("fingerprint", "a", "b"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("slow, fast, message", REJECTED)
def test_files_that_are_not_a_pair_are_rejected_by_name(slow, fast, message):
    with pytest.raises(AdapterError) as rejected:
        check_pair(slow, fast)
    assert str(rejected.value) == message


SAME = adapter("same")
HALF = {ONE: Factor(SAME.factors[ONE].down, SAME.factors[ONE].up, 2.0, 0.5, ONE)}
OTHER_DOWN = {ONE: Factor(SAME.factors[ONE].down + 1, SAME.factors[ONE].up, None, 1.0, ONE)}
OTHER_UP = {ONE: Factor(SAME.factors[ONE].down, SAME.factors[ONE].up + 1, None, 1.0, ONE)}
NOTHING = {ONE: Factor(SAME.factors[ONE].down, torch.zeros(5, 4), None, 1.0, ONE)}
COPY = {ONE: Factor(SAME.factors[ONE].down.clone(), SAME.factors[ONE].up.clone(), None, 1.0, ONE)}
FACTS = {"sigma_rule": "flux", "base": "flux", "pair": "p", "steps": "1|2"}
RUNS = "x and y come from different training runs"
TWICE = "same is used for both phases, so nothing switches; choose the pair's other file for one of them"
COPIED = "same and y hold the same numbers, so nothing switches; get the pair's other file again"


@pytest.mark.parametrize("slow, fast, notes", [
    (adapter("x"), adapter("y"), ()),
    (adapter("x", **FACTS), adapter("y"), ()),
    (adapter("x"), adapter("y", **FACTS), ()),
    (adapter("x", pair="p", partner="z"), adapter("y", pair="p"), ()),
    (adapter("x", pair="p"), adapter("y", pair="q"), (RUNS,)),
    (adapter("x", pair="p", partner="z"), adapter("y", pair="q"), (f"{RUNS}; x belongs to z",)),
    (
        adapter("My_FAST"), adapter("my_Slow"),
        ("the file names look swapped: My_FAST is used as Slow, at high noise, and my_Slow as Fast, at low noise",),
    ),
    (
        adapter("x_HIGH.safetensors"), adapter("x_LOW.safetensors"), (),
    ),
    (
        adapter("x_low_noise"), adapter("x_high_noise"),
        (
            "the file names look swapped: x_low_noise is used as Slow, at high noise, and x_high_noise as "
            "Fast, at low noise",
        ),
    ),
    (adapter("yellow"), adapter("highway"), ()),
    (adapter("my_fast"), adapter("y"), ()),
    (adapter("x"), adapter("my_slow"), ()),
    (adapter("my_fast", phase="slow"), adapter("my_slow"), ()),
    (adapter("my_fast"), adapter("my_slow", phase="fast"), ()),
    (SAME, SAME, (TWICE,)),
    (SAME, adapter("y", COPY), (COPIED,)),
    *((SAME, adapter("y", other), ()) for other in (HALF, OTHER_DOWN, OTHER_UP)),
    (adapter("x", NOTHING), adapter("y", NOTHING), ()),
    (
        SAME, adapter("y", {ONE: SAME.factors[ONE], TWO: SAME.factors[ONE]}),
        ("the two files target different modules (1 and 2)",),
    ),
])  # fmt: skip
def test_only_odd_things_about_a_pair_are_noted(slow, fast, notes):
    assert check_pair(slow, fast) == notes


def test_one_file_at_two_strengths_does_switch():
    (note,) = check_pair(SAME, SAME, same_strength=False)
    assert note == TWICE.replace("nothing switches", "only the strength switches")
    (note,) = check_pair(SAME, adapter("y", COPY), same_strength=False)
    assert note == COPIED.replace("nothing switches", "only the strength switches")


def written_pair(folder, slow=None, fast=None, names=("slow", "fast"), modules=(ONE, ONE)):
    """Write two different files and read them."""
    found = []
    for name, pair, module in zip(names, (slow, fast), modules, strict=True):
        generator = torch.Generator().manual_seed(len(found))
        down, up = torch.randn((4, 6), generator=generator), torch.randn((5, 4), generator=generator)
        factors = {module: Factor(down, up, 8.0, 2.0, module)}
        found.append(read_adapter(write_adapter(folder / f"{name}.safetensors", factors, pair or PairMetadata())))
    return found


def test_swapped_pair_is_rejected_and_the_error_says_what_to_do(tmp_path):
    slow, fast = written_pair(tmp_path, PairMetadata(phase="slow"), PairMetadata(phase="fast"))
    assert check_pair(slow, fast) == ()
    with pytest.raises(AdapterError, match="swap the two files"):
        check_pair(fast, slow)


@pytest.mark.parametrize(
    "slow, fast",
    [
        (PairMetadata(base="flux"), PairMetadata(base="qwen-image")),
        (PairMetadata(sigma_rule="flux"), PairMetadata(sigma_rule="qwen-image")),
        (PairMetadata(sigma_rule="shift", shift=3.0), PairMetadata(sigma_rule="shift", shift=6.0)),
        (PairMetadata(fingerprint="a"), PairMetadata(fingerprint="b")),
        (PairMetadata(teacher_steps=50), PairMetadata(teacher_steps=20)),
        (PairMetadata(teacher_steps=50, steps="1|11"), PairMetadata(teacher_steps=50, steps="1|12")),
    ],
)
def test_written_files_that_are_not_a_pair_are_rejected(slow, fast, tmp_path):
    with pytest.raises(AdapterError, match="one pair"):
        check_pair(*written_pair(tmp_path, slow, fast))


def test_odd_but_possible_things_are_noted(tmp_path):
    slow, fast = written_pair(tmp_path, PairMetadata(pair="a"), PairMetadata(pair="b"), modules=(ONE, f"{ONE}x"))
    notes = " ".join(check_pair(slow, fast))
    assert "different training runs" in notes
    assert "different modules" in notes
    fast, slow = written_pair(tmp_path, names=("my_fast", "my_slow"))
    assert "look swapped" in " ".join(check_pair(fast, slow))
    assert "nothing switches" in " ".join(check_pair(slow, slow))


def test_copies_of_one_file_are_not_a_pair(tmp_path):
    for name, seed in (("slow", 0), ("copy", 0), ("fast", 1)):
        save_file(kohya_tensors(seed=seed), tmp_path / f"{name}.safetensors")
    slow, copy, fast = (read_adapter(tmp_path / f"{name}.safetensors") for name in ("slow", "copy", "fast"))
    copied, twice, good = (" ".join(check_pair(slow, other)) for other in (copy, slow, fast))
    assert "slow.safetensors and copy.safetensors hold the same numbers, so nothing switches" in copied
    assert "slow.safetensors is used for both phases, so nothing switches; choose" in twice
    assert "nothing switches" not in good


@pytest.mark.parametrize(
    "partner, way_out",
    [("my_fast.safetensors", "choose my_fast.safetensors there"), (None, "choose the Fast file of the pair there")],
)
def test_error_about_a_slow_file_in_both_places_names_its_partner(partner, way_out, tmp_path):
    save_file(kohya_tensors(), tmp_path / "in.safetensors")
    factors = read_adapter(tmp_path / "in.safetensors").factors
    pair = PairMetadata(phase="slow", partner=partner)
    slow = read_adapter(write_adapter(tmp_path / "my_slow.safetensors", factors, pair))
    with pytest.raises(AdapterError, match="is a Slow adapter but was chosen as fast_lora") as rejected:
        check_pair(slow, slow)
    assert way_out in str(rejected.value)


def test_note_about_a_file_of_another_pair_names_the_missing_partner(tmp_path):
    save_file(kohya_tensors(), tmp_path / "in.safetensors")
    factors = read_adapter(tmp_path / "in.safetensors").factors
    files = []
    for name, phase in (("a", "slow"), ("b", "fast")):
        pair = PairMetadata(phase=phase, pair=name, partner=f"{name}_other.safetensors")
        files.append(read_adapter(write_adapter(tmp_path / f"{name}.safetensors", factors, pair)))
    assert "different training runs; a.safetensors belongs to a_other.safetensors" in " ".join(check_pair(*files))
