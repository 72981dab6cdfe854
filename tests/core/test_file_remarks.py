"""Remarks about a LoRA that loads, but by its names and metadata does not look like half of a pair."""

import json

import pytest
from lora_files import kohya_tensors
from safetensors.torch import save_file

from glance_core.lora.reader import read_adapter
from glance_core.lora.writer import convert

KOHYA = {"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1", "ss_network_dim": "4"}
ORDINARY = "looks like an ordinary LoRA, not half of a pair"
DISTILLED = "is made for a few steps of its own at cfg 1; load it with Load LoRA on the base model"
RECOMMENDS = {"ss_output_name": "cat", "modelspec.description": "try it with an 8-step Lightning LoRA"}
REMARKED = {
    "tags": ("cat.safetensors", KOHYA | {"ss_tag_frequency": json.dumps({"10_cat": {"cat": 10}})}, ORDINARY),
    "a comment": ("cat.safetensors", KOHYA | {"ss_training_comment": "my cat"}, ORDINARY),
    "a name": ("cat.safetensors", KOHYA | {"ss_output_name": "cat"}, ORDINARY),
    "an ai-toolkit file": (
        "cat.safetensors", {"training_info": json.dumps({"step": 2000}), "name": "cat"}, ORDINARY,
    ),
    "a style for Z-Image-Turbo": (
        "style_z-image-turbo.safetensors", {"ss_output_name": "style_zimage_turbo"}, ORDINARY,
    ),
    "a title": ("renamed.safetensors", KOHYA | {"modelspec.title": "FLUX.1-Turbo-Alpha"}, DISTILLED),
    "an output name": ("renamed.safetensors", KOHYA | {"ss_output_name": "hyper-flux-8step"}, DISTILLED),
    "Lightning": ("Qwen-Image-Lightning-4steps-V1.0.safetensors", {}, DISTILLED),
    "Hyper": ("Hyper-FLUX.1-dev-8steps-lora.safetensors", {}, DISTILLED),
    "LCM": ("lcm-lora-sdxl.safetensors", {}, DISTILLED),
    "DMD": ("dmd2_sdxl_4step_lora.safetensors", {}, DISTILLED),
    "lightx2v": ("lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors", {}, DISTILLED),
    "CausVid": ("Wan21_CausVid_14B_T2V_lora_rank32.safetensors", {}, DISTILLED),
    "a style that recommends another": ("cat.safetensors", RECOMMENDS, ORDINARY),
    "a published pair": ("glance_qwen_slow.safetensors", {}, None),
    "one of diffusers'": ("pytorch_lora_weights.safetensors", {"format": "pt"}, None),
    "only numbers of kohya's": ("slow.safetensors", KOHYA | {"ss_tag_frequency": "{}"}, None),
    "hyperrealism": ("hyperrealism_slow.safetensors", {}, None),
    "two thousand steps": ("slow-2000steps.safetensors", {}, None),
}  # fmt: skip


@pytest.mark.parametrize("which", REMARKED)
def test_lora_that_does_not_look_like_half_of_a_pair_loads_with_a_remark(which, tmp_path):
    name, metadata, remark = REMARKED[which]
    save_file(kohya_tensors(), tmp_path / name, metadata=metadata)
    adapter = read_adapter(tmp_path / name)
    assert len(adapter.factors) == 1
    assert [remark in each for each in adapter.remarks] == ([True] if remark else [])
    assert adapter.describe()["remarks"] == list(adapter.remarks)


def test_file_with_a_phase_is_not_an_ordinary_lora_whatever_its_name(tmp_path):
    save_file(kohya_tensors(), tmp_path / "turbo.safetensors", metadata=KOHYA | {"ss_output_name": "cat"})
    source = read_adapter(tmp_path / "turbo.safetensors")
    assert source.remarks
    written = read_adapter(convert(source, tmp_path / "turbo_slow.safetensors", phase="slow"))
    assert written.remarks == ()


def test_rewritten_file_gets_only_the_remarks_of_its_source(tmp_path):
    for name, metadata in (("plain", None), ("cat", {"ss_training_comment": "my cat"})):
        save_file(kohya_tensors(), tmp_path / f"{name}.safetensors", metadata=metadata)
        source = read_adapter(tmp_path / f"{name}.safetensors")
        written = read_adapter(convert(source, tmp_path / f"{name}_new.safetensors"))
        assert written.remarks == source.remarks
        assert bool(written.remarks) == (metadata is not None)
