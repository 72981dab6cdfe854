"""What is read from an adapter file and said of it, exactly: names, alphas wherever they stand, every refusal with its numbers and its way out."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glance_core.adapter_metadata import Trained
from glance_core.errors import AdapterError
from glance_core.lora_file import Adapter, Factor, check_pair, read_adapter, with_alpha

ONE, TWO = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"
ASSUMED = ("architecture not stated in the file", "phase not stated in the file: taken as chosen")
NO_ALPHA = "no alpha in the file: scale 1 assumed (alpha = rank); set the strength if it was trained at another"


def low_rank(*modules, rank=4, alpha=None, dtype=torch.float32):
    tensors = {}
    for seed, module in enumerate(modules or (ONE, TWO)):
        generator = torch.Generator().manual_seed(seed)
        tensors[f"{module}.lora_A.weight"] = torch.randn((rank, 6), generator=generator).to(dtype)
        tensors[f"{module}.lora_B.weight"] = torch.randn((5, rank), generator=generator).to(dtype)
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def read(folder, tensors, metadata=None, name="a.safetensors"):
    save_file(tensors, folder / name, metadata=metadata)
    return read_adapter(folder / name)


def peft(**config):
    return {"lora_adapter_metadata": json.dumps(config)}


def test_a_file_is_described_by_everything_that_was_found(tmp_path):
    tensors = {**low_rank(ONE, alpha=8.0, dtype=torch.float16), **low_rank(TWO, rank=2), "stray.weight": torch.ones(2)}
    stated = {
        "glance.format": "1",
        "glance.phase": "slow",
        "glance.base": "flux",
        "glance.ladder": "flux",
        "glance.teacher_steps": "50",
        "glance.steps": "1,3|11,50",
    }
    assert read(tmp_path, tensors, stated).describe() == {
        "file": "a.safetensors", "phase": "slow", "base": ["flux"], "modules": 2, "parameters": 4 * 11 + 2 * 11, "rank": [2, 4], "alpha": [8.0], "scale": [1.0, 2.0],
        "dtype": ["float16", "float32"], "styles": ["lora_A/lora_B"], "ladder": "flux", "teacher_steps": 50, "steps": "1,3|11,50", "skipped": ["stray.weight"],
        "assumed": [f"{NO_ALPHA} (1 modules)", "1 tensors left out that are no LoRA: stray.weight"], "remarks": [],
    }  # fmt: skip
    assert read(tmp_path, low_rank()).describe()["alpha"] is None


def test_what_is_left_out_is_counted_and_named_and_what_follows_is_still_read(tmp_path):
    strays = {f"a{i}.weight": torch.ones(1) for i in range(4)}
    encoder = {f"text_encoder.layers.{i}.q.lora_A.weight": torch.ones(2, 2) for i in range(3)}
    alone = {"zz.alpha": torch.tensor(1.0)}
    found = read(tmp_path, {**low_rank("something.else", alpha=4.0), **encoder, **strays, **alone})
    assert found.skipped == (*strays, "zz.alpha")
    assert found.assumed == (
        "3 text-encoder tensors left out: a Glance pair changes the diffusion model alone",
        "5 tensors left out that are no LoRA: a0.weight, a1.weight, a2.weight, ...",
        *ASSUMED,
    )
    three = read(tmp_path, {**low_rank("something.else", alpha=4.0), **dict(list(strays.items())[:3])})
    assert three.assumed[0] == "3 tensors left out that are no LoRA: a0.weight, a1.weight, a2.weight"


def test_a_module_keeps_the_name_that_the_file_gives_it(tmp_path):
    tensors = {f"transformer.{key}": value for key, value in low_rank(ONE).items()}
    assert [factor.source for factor in read(tmp_path, tensors).factors.values()] == [f"transformer.{ONE}"]
    refused = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 6)}
    with pytest.raises(AdapterError, match=r"module double_blocks\.0\.img_attn\.qkv has down but no up factor"):
        read(tmp_path, refused)


@pytest.mark.parametrize("metadata, alpha, scale, said", [
    (None, None, 1.0, NO_ALPHA),
    ({"ss_network_alpha": "2"}, 2.0, 0.5, "no alpha in the tensors: alpha 2 from ss_network_alpha"),
    ({"ss_network_alpha": "0.5"}, 0.5, 0.125, "no alpha in the tensors: alpha 0.5 from ss_network_alpha"),
    *(({"ss_network_alpha": text}, None, 1.0, NO_ALPHA) for text in ("0", "-2", "nan", "inf", "many", "")),
    (peft(lora_alpha=8), 8.0, 2.0, "no alpha in the tensors: alpha 8 from lora_adapter_metadata"),
    (peft(**{"unet.lora_alpha": 8}), 8.0, 2.0, "no alpha in the tensors: alpha 8 from lora_adapter_metadata"),
    (peft(**{"transformer.lora_alpha": 8, "lora_alpha": 3}), 8.0, 2.0, "no alpha in the tensors: alpha 8 from lora_adapter_metadata"),
    (peft(lora_alpha=8, use_rslora=True), 16.0, 4.0, "no alpha in the tensors: rank-stabilised alpha / sqrt(rank) from lora_adapter_metadata"),
    (peft(lora_alpha=int("9" * 400)), None, 1.0, NO_ALPHA),
    ({"lora_adapter_metadata": "[1]"}, None, 1.0, NO_ALPHA),
])  # fmt: skip
def test_the_scale_is_where_it_is_written_and_the_modules_are_counted(metadata, alpha, scale, said, tmp_path):
    """PEFT scales by alpha / rank, rank-stabilised by alpha / sqrt(rank); kohya writes ss_network_alpha."""
    found = read(tmp_path, low_rank(), metadata)
    assert {(factor.alpha, factor.scale) for factor in found.factors.values()} == {(alpha, scale)}
    assert f"{said} (2 modules)" in found.assumed


def test_a_configuration_counts_only_beside_the_file_that_peft_names(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}), encoding="utf-8")
    beside = read(tmp_path, low_rank(ONE), name="adapter_model.safetensors")
    assert beside.factors[ONE].scale == 2.0 and beside.assumed[0] == "no alpha in the tensors: alpha 8 from adapter_config.json (1 modules)"
    assert read(tmp_path, low_rank(ONE), name="other.safetensors").factors[ONE].scale == 1.0
    (tmp_path / "adapter_config.json").unlink()
    assert read(tmp_path, low_rank(ONE), name="adapter_model.safetensors").factors[ONE].scale == 1.0


def test_a_pattern_is_matched_up_to_the_length_that_is_safe(tmp_path):
    longest, module = "x" * 198 + ".*", "m" * 195 + ".to_q"
    found = read(tmp_path, low_rank(module), peft(lora_alpha=4, alpha_pattern={longest: 2, "m*.to_q": 8}))
    assert len(longest) == 200 and found.factors[module].alpha == 8.0
    with pytest.raises(AdapterError) as refused:
        read(tmp_path, low_rank(ONE), peft(lora_alpha=4, alpha_pattern={"y" * 201: 2}))
    assert (
        str(refused.value)
        == f"a.safetensors: {'y' * 60!r} in PEFT's alpha_pattern cannot be read (it could take for ever); write the modules' names in its place"
    )


@pytest.mark.parametrize("down, up", [((1, 6), (5, 1)), ((4, 6, 3, 3), (5, 4, 1, 1)), ((4, 6, 1), (5, 4, 1))])
def test_factors_that_fit_are_read(down, up, tmp_path):
    found = read(tmp_path, {f"{ONE}.lora_A.weight": torch.ones(down), f"{ONE}.lora_B.weight": torch.ones(up)})
    assert found.factors[ONE].rank == down[0]


@pytest.mark.parametrize(
    "down, up",
    [
        ((4,), (5, 4)),
        ((4, 6), (4,)),
        ((4, 6), (5, 3)),
        ((4, 0), (5, 4)),
        ((4, 6), (0, 4)),
        ((4, 6), (5, 4, 2)),
        ((4, 6, 3, 3), (5, 4, 1, 2)),
    ],
)
def test_factors_that_do_not_fit_are_refused_with_their_shapes(down, up, tmp_path):
    with pytest.raises(AdapterError) as refused:
        read(tmp_path, {f"{ONE}.lora_A.weight": torch.ones(down), f"{ONE}.lora_B.weight": torch.ones(up)})
    assert str(refused.value) == f"a.safetensors: the factors of {ONE} do not fit, down {down} and up {up}"


def test_a_factor_that_is_missing_is_told_beside_what_is_there(tmp_path):
    tensors = low_rank(ONE, alpha=4.0)
    del tensors[f"{ONE}.lora_B.weight"]
    with pytest.raises(AdapterError) as refused:
        read(tmp_path, tensors)
    assert str(refused.value) == f"a.safetensors: module {ONE} has alpha and down but no up factor; the file is incomplete, get it again"


@pytest.mark.parametrize("alpha", [0.5, 8.0])
def test_another_alpha_stands_on_every_module(alpha, tmp_path):
    changed = with_alpha(read(tmp_path, low_rank()), alpha)
    assert {(factor.alpha, factor.scale) for factor in changed.factors.values()} == {(alpha, alpha / 4)}
    assert not any(note.startswith("no alpha") for note in changed.assumed)


def adapter(name, factors=None, **trained):
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    own = {ONE: Factor(torch.randn((4, 6), generator=generator), torch.randn((5, 4), generator=generator), None, 1.0, ONE)}
    return Adapter(Path(name), own if factors is None else factors, ("lora_A/lora_B",), {}, Trained(**trained))


@pytest.mark.parametrize("slow, fast, said", [
    (adapter("x", phase="fast"), adapter("y"), "x is a Fast adapter but was chosen as slow_lora; swap the two files"),
    (adapter("x"), adapter("y", phase="slow"), "y is a Slow adapter but was chosen as fast_lora; swap the two files"),
    (adapter("x", phase="fast"), adapter("y", phase="fast"), "x is a Fast adapter but was chosen as slow_lora; choose the Slow file of the pair there"),
    (adapter("x", phase="slow"), adapter("y", phase="slow", partner=f"my\nother {'z' * 99}"),
     f"y is a Slow adapter but was chosen as fast_lora; choose my other {'z' * 91} there"),
    (adapter("x", base="flux"), adapter("y", base="wan"), "x is for flux and y for wan; choose two files of one pair"),
    (adapter("x", {"double_blocks.0.img_attn.qkv": None}), adapter("y", base="wan"), "x is for chroma/flux/flux2/hunyuan-video and y for wan; choose two files of one pair"),
    *((adapter("x", **{what: one}), adapter("y", **{what: two}), f"x was trained with glance.{what} {one} and y with {two}; choose two files of one pair")
      for what, one, two in (("ladder", "flux", "model"), ("shift", 3.0, 1.0), ("teacher_steps", 50, 20), ("steps", "1|2", "1|3"), ("fingerprint", "a", "b"))),
])  # fmt: skip
def test_files_that_are_no_pair_are_refused_by_name(slow, fast, said):
    with pytest.raises(AdapterError) as refused:
        check_pair(slow, fast)
    assert str(refused.value) == said


SAME = adapter("same")
HALF = {ONE: Factor(SAME.factors[ONE].down, SAME.factors[ONE].up, 2.0, 0.5, ONE)}
OTHER_DOWN = {ONE: Factor(SAME.factors[ONE].down + 1, SAME.factors[ONE].up, None, 1.0, ONE)}
OTHER_UP = {ONE: Factor(SAME.factors[ONE].down, SAME.factors[ONE].up + 1, None, 1.0, ONE)}
NOTHING = {ONE: Factor(SAME.factors[ONE].down, torch.zeros(5, 4), None, 1.0, ONE)}
COPY = {ONE: Factor(SAME.factors[ONE].down.clone(), SAME.factors[ONE].up.clone(), None, 1.0, ONE)}


@pytest.mark.parametrize("slow, fast, notes", [
    (adapter("x"), adapter("y"), ()),
    (adapter("x", ladder="flux", base="flux", pair="p", steps="1|2"), adapter("y"), ()),
    (adapter("x"), adapter("y", ladder="flux", base="flux", pair="p", steps="1|2"), ()),
    (adapter("x", pair="p", partner="z"), adapter("y", pair="p"), ()),
    (adapter("x", pair="p"), adapter("y", pair="q"), ("x and y were trained in different runs",)),
    (adapter("x", pair="p", partner="z"), adapter("y", pair="q"), ("x and y were trained in different runs; x belongs to z",)),
    (adapter("My_FAST"), adapter("my_Slow"), ("the file names look swapped: My_FAST is used as Slow, my_Slow as Fast",)),
    (adapter("my_fast"), adapter("y"), ()),
    (adapter("x"), adapter("my_slow"), ()),
    (adapter("my_fast", phase="slow"), adapter("my_slow"), ()),
    (adapter("my_fast"), adapter("my_slow", phase="fast"), ()),
    (SAME, SAME, ("same is used for both phases: there is no switch; choose the pair's other file for one of them",)),
    (SAME, adapter("y", COPY), ("same and y hold the same numbers: there is no switch; get the pair's other file again",)),
    *((SAME, adapter("y", other), ()) for other in (HALF, OTHER_DOWN, OTHER_UP)),
    (adapter("x", NOTHING), adapter("y", NOTHING), ()),
    (SAME, adapter("y", {ONE: SAME.factors[ONE], TWO: SAME.factors[ONE]}), ("the two files target different modules (1 and 2)",)),
])  # fmt: skip
def test_what_is_odd_about_a_pair_is_noted_and_nothing_else(slow, fast, notes):
    assert check_pair(slow, fast) == notes


def test_an_alpha_that_no_number_can_hold_is_none(tmp_path):
    assert math.isinf(float("1e400"))  # as text it is infinite, as JSON's integer it has no float at all
    assert read(tmp_path, low_rank(ONE), peft(lora_alpha=10**400)).factors[ONE].alpha is None
