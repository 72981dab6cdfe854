"""What is written follows what others read: ModelSpec 1.0.0 (Stability-AI/ModelSpec), kohya's keys, names of preview pictures."""

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

from glance_core import lora_write
from glance_core.adapter_metadata import Trained
from glance_core.errors import AdapterError
from glance_core.lora_file import Factor, read_adapter
from glance_core.lora_write import convert, write_adapter, write_preview
from glance_core.run_files import RunFiles
from glance_core.tensor_file import HASH

DIFFUSERS, COMFYUI = "transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn.qkv"
SLOW = Trained(
    phase="slow", base="qwen-image", ladder="qwen-image", teacher_steps=50, steps="1,3,5,7,9|11,21,31,41,50",
    sigmas=(1.0, 0.9791915, 0.9575157, 0.9349171, 0.9113354), partner="mine_fast.safetensors", objective="aimed", guidance=4.0, seed=7,
    verdict="+1.26 ± 0.19 dB", resolution="1328x928",
)  # fmt: skip


def factors(module=DIFFUSERS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {module: Factor(torch.randn((2, 6), generator=generator), torch.randn((5, 2), generator=generator), 8.0, 4.0, module)}


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def after_header(data):
    """The bytes of a safetensors file that are its tensors'."""
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_a_written_file_has_every_key_that_modelspec_demands_and_those_it_asks_for(tmp_path):
    told = metadata(write_adapter(tmp_path / "mine_slow.safetensors", factors(), SLOW))
    assert {key: told[f"modelspec.{key}"] for key in ("sai_model_spec", "architecture", "implementation", "title")} == {
        "sai_model_spec": "1.0.0", "architecture": "qwen-image/lora", "implementation": "diffusers", "title": "mine_slow",
    }  # fmt: skip
    assert told["modelspec.resolution"] == "1328x928"
    assert told["modelspec.timestep_range"] == "911,999"  # 1000 times the sigmas, of 0 to 999
    assert told["modelspec.usage_hint"] == "Load Glance LoRA, as slow_lora, beside mine_fast.safetensors; not alone in Load LoRA"
    for part in ("Slow half of a Glance pair for qwen-image", "+1.26 ± 0.19 dB", "arxiv.org/abs/2512.02899"):
        assert part in told["modelspec.description"]
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(told["modelspec.date"].replace("Z", "+00:00"))) < timedelta(minutes=5)
    kohya = {"output_name": "mine_slow", "network_module": "networks.lora", "network_dim": "2", "network_alpha": "8", "base_model_version": "qwen_image", "seed": "7"}  # fmt: skip
    assert {key: told[f"ss_{key}"] for key in kohya} == kohya
    assert all(isinstance(value, str) for value in told.values())


@pytest.mark.parametrize("base, module, architecture, implementation, version", [
    # kohya's sd-scripts write these for FLUX, SDXL and SD 1, and SwarmUI knows them
    ("flux", DIFFUSERS, "flux-1-dev/lora", "diffusers", "flux1"),
    ("flux", COMFYUI, "flux-1-dev/lora", "https://github.com/comfyanonymous/ComfyUI", "flux1"),
    ("flux-schnell", DIFFUSERS, "flux-1-schnell/lora", "diffusers", "flux1"),
    ("sdxl", "input_blocks.1.1.proj_in", "stable-diffusion-xl-v1-base/lora", "https://github.com/comfyanonymous/ComfyUI", "sdxl_base_v1-0"),
    ("sd1", "input_blocks.1.1.proj_in", "stable-diffusion-v1/lora", "https://github.com/comfyanonymous/ComfyUI", "sd_v1"),
    ("some-new-model", "layers.0.q", "some-new-model/lora", "https://github.com/comfyanonymous/ComfyUI", "some-new-model"),
])  # fmt: skip
def test_architectures_have_the_names_that_others_write_and_know(base, module, architecture, implementation, version, tmp_path):
    told = metadata(write_adapter(tmp_path / "a.safetensors", factors(module), Trained(base=base)))
    found = tuple(told[key] for key in ("modelspec.architecture", "modelspec.implementation", "ss_base_model_version"))
    assert found == (architecture, implementation, version)


def test_what_is_not_known_is_not_stated(tmp_path):
    told = metadata(write_adapter(tmp_path / "a.safetensors", factors(COMFYUI), Trained()))
    for key in ("sai_model_spec", "architecture", "implementation", "description", "usage_hint", "resolution", "timestep_range"):
        assert f"modelspec.{key}" not in told
    assert told["modelspec.title"] == "a"
    sigmas_of_no_flow = Trained(base="sd1", ladder="model", sigmas=(0.9, 0.03))
    assert "modelspec.timestep_range" not in metadata(write_adapter(tmp_path / "b.safetensors", factors(COMFYUI), sigmas_of_no_flow))


def test_the_hash_in_the_file_is_that_of_its_tensors(tmp_path):
    """As sd-scripts and Civitai's AutoV3 reckon it: SHA-256 of all bytes after the header."""
    path = write_adapter(tmp_path / "a.safetensors", factors() | factors("transformer_blocks.1.attn.to_q", 1), SLOW)
    told, data = metadata(path), path.read_bytes()
    digest = hashlib.sha256(after_header(data)).hexdigest()
    assert (told["sshs_model_hash"], told["modelspec.hash_sha256"]) == (digest, f"0x{digest}")
    assert hashlib.sha256(after_header(save(load_file(path)))).hexdigest() == digest  # the library's own bytes of the same tensors
    assert HASH.encode() not in data
    other = metadata(write_adapter(tmp_path / "b.safetensors", factors(seed=2), SLOW))
    assert other["sshs_model_hash"] != digest


def test_the_header_is_small_enough_for_comfyuis_page_of_metadata(tmp_path):
    """It answers for headers up to 1 MiB; a pair for Qwen-Image has 840 modules."""
    many = {f"transformer_blocks.{i}.attn.add_{name}_proj": next(iter(factors().values())) for i in range(60) for name in "abcdefghijklmn"}
    data = write_adapter(tmp_path / "a.safetensors", many, SLOW).read_bytes()
    assert len(many) == 840 and int.from_bytes(data[:8], "little") < 2**20


def test_convert_keeps_what_others_said_better_and_drops_what_is_no_longer_true(tmp_path):
    said = {
        "modelspec.description": "my cat", "modelspec.usage_hint": "mycat", "modelspec.date": "2024-01-01", "modelspec.author": "me",
        "modelspec.thumbnail": "data:image/jpeg;base64,AA==", "ss_tag_frequency": json.dumps({"cat": {"mycat": 3}}), "ss_seed": "3",
        "modelspec.hash_sha256": "0x00", "modelspec.hash_md5": "0x00", "sshs_model_hash": "00", "sshs_legacy_hash": "00",
        "modelspec.title": "Old", "ss_network_dim": "99",
    }  # fmt: skip
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 6), "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(5, 2)},
              tmp_path / "in.safetensors", metadata=said)  # fmt: skip
    path = convert(read_adapter(tmp_path / "in.safetensors"), tmp_path / "new.safetensors", "slow")
    told = metadata(path)
    kept = (
        "modelspec.description",
        "modelspec.usage_hint",
        "modelspec.date",
        "modelspec.author",
        "modelspec.thumbnail",
        "ss_tag_frequency",
        "ss_seed",
    )
    assert {key: told[key] for key in kept} == {key: said[key] for key in kept}
    assert told["modelspec.title"] == "new" and told["ss_network_dim"] == "2"
    assert told["sshs_model_hash"] == hashlib.sha256(after_header(path.read_bytes())).hexdigest()
    assert "sshs_legacy_hash" not in told and "modelspec.hash_md5" not in told


def test_a_preview_has_the_name_that_managers_look_for_and_never_takes_the_place_of_another(tmp_path):
    adapter = tmp_path / "my.v2 (1)_slow.safetensors"
    path = write_preview(adapter, b"picture")
    assert path.name == "my.v2 (1)_slow.preview.png" and path.read_bytes() == b"picture"
    with pytest.raises(AdapterError, match="exists already and is not overwritten"):
        write_preview(adapter, b"another")
    assert path.read_bytes() == b"picture"
    assert os.listdir(tmp_path) == [path.name]


def test_a_preview_on_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AdapterError, match="No space left"):
        write_preview(tmp_path / "a_slow.safetensors", b"picture")
    assert os.listdir(tmp_path) == []


def test_what_a_kill_leaves_of_a_preview_is_swept_with_the_rest(tmp_path):
    for end in lora_write.PREVIEW_ENDS:
        left = tmp_path / f".a{end}.x.part"
        left.mkdir()
        os.utime(left, (0, 0))
    assert [re.sub(r"\.safetensors$", ".preview.png", end) for end in lora_write.PAIR_ENDS] == list(lora_write.PREVIEW_ENDS)
    RunFiles(tmp_path, "a").sweep()
    assert os.listdir(tmp_path) == []
