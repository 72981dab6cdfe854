"""Pairs of format 1 are still read. tests/data/format_1/README.md says how the files were written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from glance_core.lora.metadata import PairMetadata
from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter
from glance_core.lora.writer import convert
from glance_core.sampling.solver import Solver

FOLDER = Path(__file__).resolve().parents[1] / "data" / "format_1"
SLOW, FAST = FOLDER / "old_slow.safetensors", FOLDER / "old_fast.safetensors"
SOLVER = Solver(
    sigma_scale=(1.0, 0.9, 1.1, 1.0),
    state_coef=(1.0, 1.0, 0.98, 1.0),
    cond_coef=((1.0,), (-0.1, 1.1), (0.0, -0.2, 1.3), (0.0, 0.0, 0.0, 1 / 3)),
    uncond_coef=((0.0,), (0.0, -0.1), (0.0, 0.0, -0.3), (0.0, 0.0, 0.0, 0.0)),
)
COMMON = PairMetadata(
    base="qwen-image",
    fingerprint="ab12",
    sigma_rule="shift",
    shift=3.0,
    teacher_steps=50,
    steps="1,6|11,31",
    pair="0123456789abcdef",
    objective="on_policy",
    fold_guidance=True,
    guidance=1.0,
    rank=4,
    alpha=8.0,
    seed=7,
    psnr_pair=30.25,
    psnr_base=28.5,
    kept="slow, solver",
    comparison="+1.75 ± 0.19 dB on 8 examples; kept slow, solver",
    resolution="1024x1024",
)
PAIRS = {
    SLOW: replace(COMMON, phase="slow", partner=FAST.name, sigmas=(1.0, 0.9642857142857143)),
    FAST: replace(COMMON, phase="fast", partner=SLOW.name, sigmas=(0.923, 0.6667)),
}


def stored_factors(sign):
    """Return the factors of one file by module, from the numbers that README.md gives."""
    numbers = torch.arange(24, dtype=torch.float32)
    down, up = sign * (numbers - 11.5).reshape(4, 6) / 7, (numbers[:20] - 9.5).reshape(5, 4) / 11
    modules = [f"transformer_blocks.{i}.attn.to_q" for i in range(2)]
    return {modules[0]: (down, up), modules[1]: (down.bfloat16(), up.bfloat16())}


def stored_metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_has_factors(adapter, expected):
    assert adapter.factors.keys() == expected.keys()
    for module, (down, up) in expected.items():
        factor = adapter.factors[module]
        assert (factor.down.dtype, factor.up.dtype) == (down.dtype, up.dtype)
        assert torch.equal(factor.down, down) and torch.equal(factor.up, up)
        assert (factor.alpha, factor.scale) == (8.0, 2.0)


def assert_is_pair(adapter, expected):
    assert replace(adapter.pair, solver=None) == expected
    assert Solver.loads(adapter.pair.solver) == SOLVER


@pytest.mark.parametrize("path, sign", [(SLOW, 1), (FAST, -1)], ids=["slow", "fast"])
def test_file_of_format_1_is_read_with_the_new_names(path, sign):
    written = stored_metadata(path)
    assert written["glance.format"] == "1"
    assert (written["glance.objective"], written["glance.ladder"]) == ("aimed, fold guidance", "shift")
    adapter = read_adapter(path)
    assert_has_factors(adapter, stored_factors(sign))
    assert_is_pair(adapter, PAIRS[path])
    assert (adapter.assumed, adapter.skipped, adapter.remarks) == ((), (), ())


def test_files_of_format_1_are_a_pair():
    assert check_pair(read_adapter(SLOW), read_adapter(FAST)) == ()


@pytest.mark.parametrize("path, sign", [(SLOW, 1), (FAST, -1)], ids=["slow", "fast"])
def test_convert_writes_format_2(path, sign, tmp_path):
    file = convert(read_adapter(path), tmp_path / "new.safetensors")
    assert_has_factors(read_adapter(file), stored_factors(sign))
    assert_is_pair(read_adapter(file), PAIRS[path])
    written = stored_metadata(file)
    facts = {key: value for key, value in written.items() if key.startswith("glance.")}
    assert facts["glance.format"] == "2"
    assert (facts["glance.objective"], facts["glance.fold_guidance"]) == ("on_policy", "True")
    assert (facts["glance.sigma_rule"], facts["glance.comparison"]) == ("shift", COMMON.comparison)
    assert not facts.keys() & {"glance.ladder", "glance.verdict"}
    assert json.loads(facts["glance.solver"]).keys() == {"sigma_scale", "state_coef", "cond_coef", "uncond_coef"}
    # Nothing that a source says about its own tensors changes, as the tensors are the same.
    assert written["sshs_model_hash"] == stored_metadata(path)["sshs_model_hash"]


def test_pair_of_both_formats_is_a_pair(tmp_path):
    assert check_pair(read_adapter(SLOW), read_adapter(convert(read_adapter(FAST), tmp_path / "b.safetensors"))) == ()


@pytest.mark.parametrize(
    "old, objective, fold_guidance",
    [
        ("trajectory", "teacher_forced", False),
        ("trajectory, fold guidance", "teacher_forced", True),
        ("aimed", "on_policy", False),
        ("aimed, fold guidance", "on_policy", True),
        ("end to end", "end_to_end", False),
        ("end to end, fold guidance", "end_to_end", True),
        ("flow_matching", "flow_matching", False),
    ],
)
def test_every_objective_of_format_1_has_its_new_name(old, objective, fold_guidance, tmp_path):
    """These were all seven objectives of commit 77af102."""
    tensors = {f"transformer_blocks.0.attn.to_q.lora_{x}.weight": torch.ones(1, 1) for x in "AB"}
    metadata = {"glance.format": "1", "glance.objective": old}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    pair = read_adapter(tmp_path / "a.safetensors").pair
    assert (pair.objective, pair.fold_guidance) == (objective, fold_guidance)
