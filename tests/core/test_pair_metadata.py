"""What is read from an adapter file, and every word said about it: names, alphas, shapes."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from glance_core.errors import AdapterError
from glance_core.lora.metadata import read_metadata, written_metadata
from glance_core.lora.reader import read_adapter, with_alpha

ONE, TWO = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"
ASSUMED = ("base model not stated in the file", "phase not stated in the file: used as chosen")
NO_ALPHA = "no alpha in the file: scale 1 assumed (alpha = rank); change the strength if it was trained at another"
SETTINGS = "lora_adapter_metadata"


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
    return {SETTINGS: json.dumps(config)}


@pytest.mark.parametrize("version, rule_key", [("1", "glance.ladder"), ("2", "glance.sigma_rule")])
def test_description_has_everything_that_was_found(version, rule_key, tmp_path):
    tensors = {**low_rank(ONE, alpha=8.0, dtype=torch.float16), **low_rank(TWO, rank=2), "stray.note": torch.ones(2)}
    stated = {
        "glance.format": version,
        "glance.phase": "slow",
        "glance.base": "flux",
        rule_key: "flux",
        "glance.teacher_steps": "50",
        "glance.steps": "1,3|11,50",
    }
    assert read(tmp_path, tensors, stated).describe() == {
        "file": "a.safetensors",
        "phase": "slow",
        "base": ["flux"],
        "modules": 2,
        "biases": 0,
        "parameters": 4 * 11 + 2 * 11,
        "rank": [2, 4],
        "alpha": [8.0],
        "scale": [1.0, 2.0],
        "dtype": ["float16", "float32"],
        "styles": ["lora_A/lora_B"],
        "sigma_rule": "flux",
        "teacher_steps": 50,
        "steps": "1,3|11,50",
        "skipped": ["stray.note"],
        "assumed": [f"{NO_ALPHA} (1 modules)", "1 tensors left out that are not part of a LoRA: stray.note"],
        "remarks": [],
    }
    assert read(tmp_path, low_rank()).describe()["alpha"] is None


def test_left_out_tensors_are_counted_and_named_and_the_rest_is_read(tmp_path):
    strays = {f"a{i}.note": torch.ones(1) for i in range(4)}
    encoder = {f"text_encoder.layers.{i}.q.lora_A.weight": torch.ones(2, 2) for i in range(3)}
    alone = {"zz.alpha": torch.tensor(1.0)}
    found = read(tmp_path, {**low_rank("something.else", alpha=4.0), **encoder, **strays, **alone})
    assert found.skipped == (*strays, "zz.alpha")
    assert found.assumed == (
        "3 text-encoder tensors left out: only the diffusion model changes",
        "5 tensors left out that are not part of a LoRA: a0.note, a1.note, a2.note, ...",
        *ASSUMED,
    )
    three = read(tmp_path, {**low_rank("something.else", alpha=4.0), **dict(list(strays.items())[:3])})
    assert three.assumed[0] == "3 tensors left out that are not part of a LoRA: a0.note, a1.note, a2.note"


def test_module_keeps_the_name_that_the_file_gives_it(tmp_path):
    tensors = {f"transformer.{key}": value for key, value in low_rank(ONE).items()}
    assert [factor.source for factor in read(tmp_path, tensors).factors.values()] == [f"transformer.{ONE}"]
    half = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 6)}
    with pytest.raises(AdapterError, match=r"module double_blocks\.0\.img_attn\.qkv has down but no up factor"):
        read(tmp_path, half)


def alpha_from(alpha, where=SETTINGS):
    return f"no alpha in the tensors: alpha {alpha} from {where}"


@pytest.mark.parametrize("metadata, alpha, scale, note", [
    (None, None, 1.0, NO_ALPHA),
    ({"ss_network_alpha": "2"}, 2.0, 0.5, alpha_from(2, "ss_network_alpha")),
    ({"ss_network_alpha": "0.5"}, 0.5, 0.125, alpha_from(0.5, "ss_network_alpha")),
    *(({"ss_network_alpha": text}, None, 1.0, NO_ALPHA) for text in ("0", "-2", "nan", "inf", "many", "")),
    (peft(lora_alpha=8), 8.0, 2.0, alpha_from(8)),
    (peft(**{"unet.lora_alpha": 8}), 8.0, 2.0, alpha_from(8)),
    (peft(**{"transformer.lora_alpha": 8, "lora_alpha": 3}), 8.0, 2.0, alpha_from(8)),
    (
        peft(lora_alpha=8, use_rslora=True), 16.0, 4.0,
        "no alpha in the tensors: rank-stabilised alpha / sqrt(rank) from lora_adapter_metadata",
    ),
    (peft(lora_alpha=int("9" * 400)), None, 1.0, NO_ALPHA),
    ({SETTINGS: "[1]"}, None, 1.0, NO_ALPHA),
])  # fmt: skip
def test_scale_comes_from_where_it_is_stated_and_modules_are_counted(metadata, alpha, scale, note, tmp_path):
    """PEFT scales by alpha / rank, or rank-stabilised by alpha / sqrt(rank). kohya writes ss_network_alpha."""
    found = read(tmp_path, low_rank(), metadata)
    assert {(factor.alpha, factor.scale) for factor in found.factors.values()} == {(alpha, scale)}
    assert f"{note} (2 modules)" in found.assumed


def test_configuration_counts_only_beside_the_file_that_peft_names(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}), encoding="utf-8")
    beside = read(tmp_path, low_rank(ONE), name="adapter_model.safetensors")
    assert beside.factors[ONE].scale == 2.0
    assert beside.assumed[0] == "no alpha in the tensors: alpha 8 from adapter_config.json (1 modules)"
    assert read(tmp_path, low_rank(ONE), name="other.safetensors").factors[ONE].scale == 1.0
    (tmp_path / "adapter_config.json").unlink()
    assert read(tmp_path, low_rank(ONE), name="adapter_model.safetensors").factors[ONE].scale == 1.0


def test_name_in_alpha_pattern_has_up_to_500_characters(tmp_path):
    longest, module = "x" * 500, "m" * 195 + ".to_q"
    found = read(tmp_path, low_rank(module), peft(lora_alpha=4, alpha_pattern={longest: 2, module: 8}))
    assert found.factors[module].alpha == 8.0
    with pytest.raises(AdapterError) as rejected:
        read(tmp_path, low_rank(ONE), peft(lora_alpha=4, alpha_pattern={"y" * 501: 2}))
    assert str(rejected.value) == (
        f"a.safetensors: {'y' * 60!r} in PEFT's alpha_pattern cannot be read, as it is not a plain module name; "
        "write module names instead"
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
def test_factors_that_do_not_fit_are_rejected_with_their_shapes(down, up, tmp_path):
    with pytest.raises(AdapterError) as rejected:
        read(tmp_path, {f"{ONE}.lora_A.weight": torch.ones(down), f"{ONE}.lora_B.weight": torch.ones(up)})
    assert str(rejected.value) == (
        f"a.safetensors: the factors of {ONE} do not fit together, down {down} and up {up}; get the file again"
    )


def test_error_about_a_missing_factor_names_what_is_there(tmp_path):
    tensors = low_rank(ONE, alpha=4.0)
    del tensors[f"{ONE}.lora_B.weight"]
    with pytest.raises(AdapterError) as rejected:
        read(tmp_path, tensors)
    assert str(rejected.value) == (
        f"a.safetensors: module {ONE} has alpha and down but no up factor; the file is incomplete, get it again"
    )


@pytest.mark.parametrize("alpha", [0.5, 8.0])
def test_given_alpha_applies_to_every_module(alpha, tmp_path):
    changed = with_alpha(read(tmp_path, low_rank()), alpha)
    assert {(factor.alpha, factor.scale) for factor in changed.factors.values()} == {(alpha, alpha / 4)}
    assert not any(note.startswith("no alpha") for note in changed.assumed)


def test_alpha_that_no_float_can_hold_counts_as_none(tmp_path):
    assert math.isinf(float("1e400"))  # as text it is infinite, and as JSON's integer it does not fit a float at all
    assert read(tmp_path, low_rank(ONE), peft(lora_alpha=10**400)).factors[ONE].alpha is None


LISTED = {"glance.format": "2", "glance.sigma_rule": "list", "glance.teacher_steps": "2"}


def test_a_list_of_sigmas_is_read_as_it_was_written():
    found = read_metadata("a", {**LISTED, "glance.teacher_sigmas": "[1.0, 0.5, 0.0]"})
    assert (found.sigma_rule, found.teacher_steps, found.teacher_sigmas) == ("list", 2, (1.0, 0.5, 0.0))
    assert written_metadata(found, "a")["glance.teacher_sigmas"] == "[1.0, 0.5, 0.0]"


@pytest.mark.parametrize("stated, why", [
    ({}, "the list rule needs the list itself"),
    (
        {"glance.teacher_sigmas": "[1.0, 0.5, 0.2, 0.0]"},
        "the list gave 3 teacher steps instead of 2; choose another number",
    ),
    ({"glance.teacher_sigmas": "[1.0, 0.0, 0.5]"}, "sigmas must fall, but sigma 3 is 0.5 after 0"),
    ({"glance.teacher_sigmas": "[1.0, 0.5, 0.25]"}, "sigmas must end with 0, but the last is 0.25"),
])  # fmt: skip
def test_a_list_of_sigmas_that_cannot_be_sampled_is_rejected(stated, why):
    with pytest.raises(AdapterError) as rejected:
        read_metadata("a", LISTED | stated)
    assert str(rejected.value) == f"a: glance.sigma_rule is list, and glance.teacher_sigmas: {why}"
