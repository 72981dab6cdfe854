"""Written files follow what other tools read.

ModelSpec 1.0.0 (Stability-AI/ModelSpec), kohya's keys, and the names of preview pictures.
"""

import errno
import hashlib
import json
import os
import re
from datetime import datetime, timedelta, timezone

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from glance_core.errors import AdapterError
from glance_core.lora.factors import Factor
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.pair_writer import PAIR_ENDS, PREVIEW_ENDS, write_preview
from glance_core.lora.reader import read_adapter
from glance_core.lora.safetensors_io import HASH
from glance_core.lora.writer import convert, write_adapter
from glance_core.training.run.run_dir import RunDir

DIFFUSERS, COMFYUI = "transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn.qkv"
SLOW = PairMetadata(
    phase="slow",
    base="qwen-image",
    sigma_rule="qwen-image",
    teacher_steps=50,
    steps="1,3,5,7,9|11,21,31,41,50",
    sigmas=(1.0, 0.9791915, 0.9575157, 0.9349171, 0.9113354),
    partner="mine_fast.safetensors",
    objective="on_policy",
    guidance=4.0,
    seed=7,
    comparison="+1.26 ± 0.19 dB",
    resolution="1328x928",
)
COMFY_ORG = "https://github.com/comfyanonymous/ComfyUI"


def factors(module=DIFFUSERS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        module: Factor(
            torch.randn((2, 6), generator=generator), torch.randn((5, 2), generator=generator), 8.0, 4.0, module
        )
    }


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def after_header(data):
    """Return the bytes of a safetensors file that hold its tensors."""
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_written_file_has_the_keys_that_modelspec_requires_and_recommends(tmp_path):
    written = metadata(write_adapter(tmp_path / "mine_slow.safetensors", factors(), SLOW))
    required = {
        "sai_model_spec": "1.0.0",
        "architecture": "qwen-image/lora",
        "implementation": "diffusers",
        "title": "mine_slow",
    }
    assert {key: written[f"modelspec.{key}"] for key in required} == required
    assert written["modelspec.resolution"] == "1328x928"
    assert written["modelspec.timestep_range"] == "911,999"  # 1000 times the sigmas, of 0 to 999
    assert (
        written["modelspec.usage_hint"]
        == "Load Glance LoRA, as slow_lora, beside mine_fast.safetensors; not alone in Load LoRA"
    )
    for part in ("Slow half of a Glance pair for qwen-image", "+1.26 ± 0.19 dB", "arxiv.org/abs/2512.02899"):
        assert part in written["modelspec.description"]
    date = datetime.fromisoformat(written["modelspec.date"].replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - date) < timedelta(minutes=5)
    kohya = {
        "output_name": "mine_slow",
        "network_module": "networks.lora",
        "network_dim": "2",
        "network_alpha": "8",
        "base_model_version": "qwen_image",
        "seed": "7",
    }
    assert {key: written[f"ss_{key}"] for key in kohya} == kohya
    assert all(isinstance(value, str) for value in written.values())


def test_description_says_phase_steps_comparison_and_method(tmp_path):
    written = metadata(write_adapter(tmp_path / "mine_slow.safetensors", factors(), SLOW))
    assert written["modelspec.description"] == (
        "The Slow half of a Glance pair for qwen-image: it answers at high noise, where the layout forms. Teacher "
        "steps 1,3,5,7,9|11,21,31,41,50 of 50. +1.26 ± 0.19 dB. Method: https://arxiv.org/abs/2512.02899"
    )


PROJ_IN, SDXL, SD1 = "input_blocks.1.1.proj_in", "stable-diffusion-xl-v1-base/lora", "stable-diffusion-v1/lora"


@pytest.mark.parametrize("base, module, architecture, implementation, version", [
    # kohya's sd-scripts write these for FLUX, SDXL and SD 1, and SwarmUI knows them
    ("flux", DIFFUSERS, "flux-1-dev/lora", "diffusers", "flux1"),
    ("flux", COMFYUI, "flux-1-dev/lora", COMFY_ORG, "flux1"),
    ("flux-schnell", DIFFUSERS, "flux-1-schnell/lora", "diffusers", "flux1"),
    ("sdxl", PROJ_IN, SDXL, COMFY_ORG, "sdxl_base_v1-0"),
    ("sd1", PROJ_IN, SD1, COMFY_ORG, "sd_v1"),
    ("some-new-model", "layers.0.q", "some-new-model/lora", COMFY_ORG, "some-new-model"),
])  # fmt: skip
def test_base_models_have_the_names_that_other_tools_write_and_know(
    base, module, architecture, implementation, version, tmp_path
):
    written = metadata(write_adapter(tmp_path / "a.safetensors", factors(module), PairMetadata(base=base)))
    keys = ("modelspec.architecture", "modelspec.implementation", "ss_base_model_version")
    assert tuple(written[key] for key in keys) == (architecture, implementation, version)


def test_unknown_facts_are_not_stated(tmp_path):
    written = metadata(write_adapter(tmp_path / "a.safetensors", factors(COMFYUI), PairMetadata()))
    for key in (
        "sai_model_spec",
        "architecture",
        "implementation",
        "description",
        "usage_hint",
        "resolution",
        "timestep_range",
    ):
        assert f"modelspec.{key}" not in written
    assert written["modelspec.title"] == "a"
    listed = PairMetadata(base="sd1", sigma_rule="list", sigmas=(14.6, 0.03))
    assert "modelspec.timestep_range" not in metadata(write_adapter(tmp_path / "c.safetensors", factors(), listed))
    not_a_flow = PairMetadata(base="sd1", sigma_rule="model", sigmas=(0.9, 0.03))
    file = write_adapter(tmp_path / "b.safetensors", factors(COMFYUI), not_a_flow)
    assert "modelspec.timestep_range" not in metadata(file)


def test_hash_in_the_file_is_that_of_its_tensors(tmp_path):
    """sd-scripts and Civitai's AutoV3 take the SHA-256 of all bytes after the header."""
    path = write_adapter(tmp_path / "a.safetensors", factors() | factors("transformer_blocks.1.attn.to_q", 1), SLOW)
    written, data = metadata(path), path.read_bytes()
    digest = hashlib.sha256(after_header(data)).hexdigest()
    assert (written["sshs_model_hash"], written["modelspec.hash_sha256"]) == (digest, f"0x{digest}")
    library = after_header(save(load_file(path)))  # the library's own bytes of the same tensors
    assert hashlib.sha256(library).hexdigest() == digest
    assert HASH.encode() not in data
    other = metadata(write_adapter(tmp_path / "b.safetensors", factors(seed=2), SLOW))
    assert other["sshs_model_hash"] != digest


def test_header_is_small_enough_for_comfyuis_metadata_page(tmp_path):
    """The page shows headers up to 1 MiB. A pair for Qwen-Image has 840 modules."""
    many = {
        f"transformer_blocks.{i}.attn.add_{name}_proj": next(iter(factors().values()))
        for i in range(60)
        for name in "abcdefghijklmn"
    }
    data = write_adapter(tmp_path / "a.safetensors", many, SLOW).read_bytes()
    assert len(many) == 840 and int.from_bytes(data[:8], "little") < 2**20


def test_convert_keeps_better_metadata_and_drops_what_is_no_longer_true(tmp_path):
    source = {
        "modelspec.description": "my cat",
        "modelspec.usage_hint": "mycat",
        "modelspec.date": "2024-01-01",
        "modelspec.author": "me",
        "modelspec.thumbnail": "data:image/jpeg;base64,AA==",
        "ss_tag_frequency": json.dumps({"cat": {"mycat": 3}}),
        "ss_seed": "3",
    }
    stale = {
        "modelspec.hash_sha256": "0x00",
        "modelspec.hash_md5": "0x00",
        "sshs_model_hash": "00",
        "sshs_legacy_hash": "00",
        "modelspec.title": "Old",
        "ss_network_dim": "99",
    }
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{module}.lora_down.weight": torch.ones(2, 6), f"{module}.lora_up.weight": torch.ones(5, 2)}
    save_file(tensors, tmp_path / "in.safetensors", metadata=source | stale)
    path = convert(read_adapter(tmp_path / "in.safetensors"), tmp_path / "new.safetensors", "slow")
    written = metadata(path)
    assert {key: written[key] for key in source} == source
    assert written["modelspec.title"] == "new" and written["ss_network_dim"] == "2"
    assert written["sshs_model_hash"] == hashlib.sha256(after_header(path.read_bytes())).hexdigest()
    assert "sshs_legacy_hash" not in written and "modelspec.hash_md5" not in written


def test_preview_has_the_name_that_managers_look_for_and_replaces_nothing(tmp_path):
    adapter = tmp_path / "my.v2 (1)_slow.safetensors"
    path = write_preview(adapter, b"picture")
    assert path.name == "my.v2 (1)_slow.preview.png" and path.read_bytes() == b"picture"
    with pytest.raises(AdapterError, match="exists already and is not overwritten"):
        write_preview(adapter, b"another")
    assert path.read_bytes() == b"picture"
    assert os.listdir(tmp_path) == [path.name]


def test_preview_on_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AdapterError, match="No space left"):
        write_preview(tmp_path / "a_slow.safetensors", b"picture")
    assert os.listdir(tmp_path) == []


def test_half_written_preview_of_a_killed_process_is_removed_with_the_rest(tmp_path):
    for end in PREVIEW_ENDS:
        left = tmp_path / f".a{end}.x.part"
        left.mkdir()
        os.utime(left, (0, 0))
    assert [re.sub(r"\.safetensors$", ".preview.png", end) for end in PAIR_ENDS] == list(PREVIEW_ENDS)
    RunDir(tmp_path, "a").sweep()
    assert os.listdir(tmp_path) == []
