"""Written and converted adapters: every number kept, whole or not at all, and nothing overwritten."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_files import MODULE, STYLES, factors, good_tensors, save, style_names
from safetensors.torch import load_file

from glance_core.errors import AdapterError
from glance_core.lora.factors import Factor
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.reader import read_adapter
from glance_core.lora.writer import convert, write_adapter

ROOT = Path(__file__).resolve().parents[2]


PAIR = PairMetadata(
    phase="slow",
    base="qwen-image",
    fingerprint="ab12",
    sigma_rule="qwen-image",
    teacher_steps=50,
    steps="1,3,5,7,9|11,21,31,41,50",
    sigmas=(1.0, 0.979),
    partner="x_fast.safetensors",
    pair="1234",
    objective="teacher_forced",
    fold_guidance=False,
    guidance=4.0,
    rank=4,
    alpha=8.0,
    seed=7,
    image_sha256="00ff",
)


def test_written_file_is_read_back_whole(tmp_path):
    source = read_adapter(save(tmp_path / "in.safetensors", good_tensors()))
    written = read_adapter(write_adapter(tmp_path / "out.safetensors", source.factors, PAIR))
    assert written.pair == PAIR
    assert torch.equal(written.factors[MODULE].down, source.factors[MODULE].down)
    assert torch.equal(written.factors[MODULE].up, source.factors[MODULE].up)
    assert written.factors[MODULE].scale == 2.0
    assert written.metadata["ss_network_dim"] == "4"
    assert written.metadata["modelspec.architecture"] == "qwen-image/lora"
    keys = {f"diffusion_model.{MODULE}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    assert load_file(tmp_path / "out.safetensors").keys() == keys


@pytest.mark.parametrize("style", STYLES)
def test_convert_keeps_every_number_and_states_the_scale(style, tmp_path):
    down, up = factors(dtype=torch.bfloat16)
    tensors = dict(zip(style_names(style)[:2], (down, up), strict=True))
    source = read_adapter(save(tmp_path / "in.safetensors", tensors))
    written = read_adapter(convert(source, tmp_path / "out.safetensors", phase="fast"))
    assert next(iter(load_file(written.path))).startswith("transformer.transformer_blocks.0.attn.to_q.")
    assert written.pair.phase == "fast"
    assert torch.equal(written.factors[MODULE].down, down)
    assert torch.equal(written.factors[MODULE].up, up)
    assert (written.factors[MODULE].alpha, written.factors[MODULE].scale) == (4.0, 1.0)
    assert not any("scale 1 assumed" in note for note in written.assumed)


def test_convert_keeps_the_metadata_of_others(tmp_path):
    metadata = {"modelspec.author": "somebody", "ss_network_alpha": "3"}
    source = read_adapter(save(tmp_path / "in.safetensors", good_tensors(), metadata))
    written = read_adapter(convert(source, tmp_path / "out.safetensors"))
    assert written.metadata["modelspec.author"] == "somebody"
    assert written.metadata["ss_network_alpha"] == "8"


def test_written_file_has_the_mode_that_the_umask_allows(tmp_path):
    convert(read_adapter(save(tmp_path / "in.safetensors", good_tensors())), tmp_path / "out.safetensors")
    (tmp_path / "any").touch()
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_really_full_disk_gives_one_sentence(tmp_path):
    save(tmp_path / "in.safetensors", {f"{m}.{k}": v for m in range(50) for k, v in good_tensors().items()})
    code = (
        "import resource, signal, sys; from glance_core.__main__ import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "sys.exit(main(['convert', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_existing_file_is_never_overwritten(tmp_path):
    source = read_adapter(save(tmp_path / "in.safetensors", good_tensors()))
    before = (tmp_path / "in.safetensors").read_bytes()
    with pytest.raises(AdapterError, match="exists already"):
        convert(source, tmp_path / "in.safetensors")
    assert (tmp_path / "in.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    source = read_adapter(save(tmp_path / "in.safetensors", good_tensors()))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(AdapterError, match="No space left"):
        convert(source, tmp_path / "out.safetensors")
    assert os.listdir(tmp_path) == ["in.safetensors"]
    with pytest.raises(AdapterError, match="cannot be written"):
        convert(source, tmp_path / "no folder" / "out.safetensors")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EINVAL])  # Windows says EINVAL on exFAT
def test_file_system_without_hard_links_can_be_written_to(tmp_path, monkeypatch, number):
    def no_link(*_):
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", no_link)
    down, up = factors()
    path = write_adapter(tmp_path / "out.safetensors", {MODULE: Factor(down, up, 4.0, 1.0, MODULE)}, PairMetadata())
    assert torch.equal(read_adapter(path).factors[MODULE].down, down)
    assert [item.name for item in tmp_path.iterdir()] == ["out.safetensors"]


def test_name_taken_at_the_last_moment_is_not_overwritten(tmp_path, monkeypatch):
    source = read_adapter(save(tmp_path / "in.safetensors", good_tensors()))
    out, fsync = tmp_path / "out.safetensors", os.fsync

    def another_process_writes_first(handle):
        out.write_text("theirs")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", another_process_writes_first)
    with pytest.raises(AdapterError, match="exists already"):
        convert(source, out)
    assert out.read_text() == "theirs"
