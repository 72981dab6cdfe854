"""Adapter files as peft and diffusers write them, in every other style in use, damaged in many ways, and rewritten."""

import contextlib
import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from glance_core.adapter_metadata import Trained
from glance_core.errors import AdapterError, GlanceError
from glance_core.lora_file import Factor, check_pair, read_adapter, with_alpha
from glance_core.lora_names import possible_bases, unflatten
from glance_core.lora_write import convert, write_adapter

ROOT = Path(__file__).resolve().parents[2]
MODULE = "transformer_blocks.0.attn.to_q"


def factors(rank=4, inside=6, outside=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn((rank, inside), generator=generator).to(dtype), torch.randn((outside, rank), generator=generator).to(dtype)


def save(path, tensors, metadata=None):
    save_file(tensors, path, metadata=metadata)
    return path


STYLES = {
    "peft, bare": ("{m}.lora_A.weight", "{m}.lora_B.weight", "{m}.alpha"),
    "peft, adapter name": ("base_model.model.{m}.lora_A.default.weight", "base_model.model.{m}.lora_B.default.weight", "base_model.model.{m}.alpha"),
    "diffusers": ("transformer.{m}.lora_A.weight", "transformer.{m}.lora_B.weight", "transformer.{m}.alpha"),
    "diffusers, old": ("transformer.{m}.lora.down.weight", "transformer.{m}.lora.up.weight", "transformer.{m}.alpha"),
    "ComfyUI": ("diffusion_model.{m}.lora_A.weight", "diffusion_model.{m}.lora_B.weight", "diffusion_model.{m}.alpha"),
    "ComfyUI, kohya factors": ("diffusion_model.{m}.lora_down.weight", "diffusion_model.{m}.lora_up.weight", "diffusion_model.{m}.alpha"),
    "kohya": ("lora_unet_{f}.lora_down.weight", "lora_unet_{f}.lora_up.weight", "lora_unet_{f}.alpha"),
    "OneTrainer": ("lora_transformer_{f}.lora_down.weight", "lora_transformer_{f}.lora_up.weight", "lora_transformer_{f}.alpha"),
    "no weight suffix": ("{m}.lora_A", "{m}.lora_B", "{m}.alpha"),
}  # fmt: skip


@pytest.mark.parametrize("alpha", [None, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_read_to_the_same_module_with_its_scale(style, dtype, alpha, tmp_path):
    down, up = factors(dtype=dtype)
    names = [pattern.format(m=MODULE, f=MODULE.replace(".", "_")) for pattern in STYLES[style]]
    tensors = dict(zip(names, (down, up, torch.tensor(alpha or 0)), strict=True))
    if alpha is None:
        tensors.pop(names[2])
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors))
    factor = adapter.factors[MODULE]
    assert torch.equal(factor.down, down)
    assert torch.equal(factor.up, up)
    assert (factor.alpha, factor.scale, factor.rank) == (alpha, 2.0 if alpha else 1.0, 4)
    assert any("scale 1 assumed" in note for note in adapter.assumed) == (alpha is None)
    assert adapter.skipped == ()


def tiny_qwen():
    return QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 12, 12)
    )


def tiny_flux():
    return FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(8, 12, 12), in_channels=16,
    )  # fmt: skip


QWEN_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "img_mlp.net.2", "img_mod.1"]


def trained_by_peft(model, targets, **config):
    """A model with a PEFT adapter whose B is no longer zero."""
    model.add_adapter(LoraConfig(r=4, target_modules=targets, **config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_a_file_diffusers_saves_is_read_whole_with_the_alpha_of_its_metadata(tmp_path):
    model = trained_by_peft(tiny_flux(), ["to_q", "to_k", "to_v", "to_out.0"], lora_alpha=16)
    layers = get_peft_model_state_dict(model)
    FluxLoraLoaderMixin.save_lora_weights(
        tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=model.peft_config["default"].to_dict()
    )  # fmt: skip
    adapter = read_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert len(adapter.factors) == len(layers) // 2 == 7
    assert {f.scale for f in adapter.factors.values()} == {4.0}
    assert "flux" in adapter.bases
    assert adapter.skipped == ()
    FluxLoraLoaderMixin.save_lora_weights(tmp_path / "plain", transformer_lora_layers=layers)
    assert {f.scale for f in read_adapter(tmp_path / "plain" / "pytorch_lora_weights.safetensors").factors.values()} == {1.0}


@pytest.mark.parametrize("rslora, scale", [(False, 4.0), (True, 8.0)])
def test_a_file_peft_saves_takes_alpha_from_the_configuration_beside_it(rslora, scale, tmp_path):
    config = LoraConfig(r=4, lora_alpha=16, use_rslora=rslora, target_modules=QWEN_TARGETS)
    peft.get_peft_model(tiny_qwen(), config).save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path / "adapter_model.safetensors")
    assert len(adapter.factors) == 2 * len(QWEN_TARGETS)
    assert {f.scale for f in adapter.factors.values()} == {scale}
    assert adapter.bases == {"qwen-image"}


ALPHAS = {r"^transformer_blocks\.0\..*": 2, "1.attn.to_q": 8, "img_mlp.net.2": 32, r"add_(q|k)_proj": 3, "to_k|to_v": 5}


def test_alphas_by_pattern_are_those_that_peft_gives_its_own_layers(tmp_path):
    """Regular expressions too, of which the first that matches counts; names that end alike but for a dot are others."""
    model = peft.get_peft_model(tiny_qwen(), LoraConfig(r=4, lora_alpha=16, alpha_pattern=ALPHAS, target_modules=QWEN_TARGETS))
    model.save_pretrained(tmp_path)
    layers = model.base_model.model.named_modules()
    expected = {name: layer.scaling["default"] for name, layer in layers if hasattr(layer, "scaling")}
    assert len(set(expected.values())) == 6
    adapter = read_adapter(tmp_path / "adapter_model.safetensors")
    assert {name: factor.scale for name, factor in adapter.factors.items()} == expected


@pytest.mark.parametrize("pattern", ["(", "(a+)+$", "(?=.*x)", ".*.*.*.*.*.*x", "x" * 10_000])
def test_a_pattern_that_cannot_be_matched_in_time_is_refused_for_it_holds_an_alpha(pattern, tmp_path):
    config = json.dumps({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {pattern: 2}})
    tensors = {key: value for key, value in good().items() if not key.endswith("alpha")}
    with pytest.raises(AdapterError, match="alpha_pattern cannot be read") as refused:
        read_adapter(save(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": config}))
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def mixed_like_the_published_qwen_files(model):
    """The image stream as lora.down / lora.up, the rest as lora_A / lora_B, without alpha (facts/glance.md, point 3)."""
    image = ("to_q", "to_k", "to_v", "to_out.0")
    tensors = {}
    for key, value in get_peft_model_state_dict(model).items():
        module, _, factor = key.rpartition(".lora_")
        if module.endswith(image):
            key = f"{module}.lora.{'down' if factor.startswith('A') else 'up'}.weight"
        tensors[f"transformer.{key}"] = value.contiguous()
    return tensors


def test_the_mixed_styles_of_the_published_qwen_files_are_both_read(tmp_path):
    tensors = mixed_like_the_published_qwen_files(trained_by_peft(tiny_qwen(), QWEN_TARGETS))
    adapter = read_adapter(save(tmp_path / "glance_qwen_slow.safetensors", tensors))
    assert adapter.styles == ("lora.down/lora.up", "lora_A/lora_B")
    assert len(adapter.factors) == len(tensors) // 2 == 2 * len(QWEN_TARGETS)
    assert adapter.describe()["scale"] == [1.0]


@pytest.mark.parametrize(
    "flat, module",
    [
        ("double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv"),
        ("single_blocks_37_linear1", "single_blocks.37.linear1"),
        ("transformer_blocks_59_attn_add_q_proj", "transformer_blocks.59.attn.add_q_proj"),
        ("transformer_blocks_0_attn_to_out_0", "transformer_blocks.0.attn.to_out.0"),
        ("transformer_blocks_0_img_mlp_net_0_proj", "transformer_blocks.0.img_mlp.net.0.proj"),
        ("blocks_3_cross_attn_k_img", "blocks.3.cross_attn.k_img"),
        ("input_blocks_1_1_transformer_blocks_0_attn2_to_k", "input_blocks.1.1.transformer_blocks.0.attn2.to_k"),
        ("down_blocks_0_attentions_1_proj_in", "down_blocks.0.attentions.1.proj_in"),
    ],
)
def test_flattened_names_get_their_dots_back(flat, module):
    assert unflatten(flat) == module


def test_architectures_are_told_by_their_module_names():
    assert possible_bases(["transformer_blocks.0.img_mod.1"]) == {"qwen-image"}
    assert "flux" in possible_bases(["single_transformer_blocks.0.attn.to_q"])
    assert "qwen-image" not in possible_bases(["double_blocks.0.img_attn.qkv"])
    assert possible_bases(["blocks.0.self_attn.q"]) == {"wan"}
    assert possible_bases(["something.else"]) == frozenset()


def good(rank=4):
    down, up = factors(rank)
    return {f"{MODULE}.lora_A.weight": down, f"{MODULE}.lora_B.weight": up, f"{MODULE}.alpha": torch.tensor(8.0)}


def test_an_alpha_of_any_number_type_is_read(tmp_path):
    for alpha in (torch.tensor(8), torch.tensor([8.0], dtype=torch.float64), torch.tensor(8, dtype=torch.int8)):
        assert read_adapter(save(tmp_path / "a.safetensors", edited(alpha=alpha))).factors[MODULE].scale == 2.0


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b""])
def test_a_peft_configuration_that_cannot_be_read_is_refused_for_it_holds_the_alpha(content, tmp_path):
    save(tmp_path / "adapter_model.safetensors", good())
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        read_adapter(tmp_path / "adapter_model.safetensors")


def test_convert_keeps_what_others_said_in_the_metadata(tmp_path):
    source = read_adapter(save(tmp_path / "in.safetensors", good(), {"modelspec.author": "somebody", "ss_network_alpha": "3"}))
    written = read_adapter(convert(source, tmp_path / "out.safetensors"))
    assert written.metadata["modelspec.author"] == "somebody"
    assert written.metadata["ss_network_alpha"] == "8"


def test_a_written_file_can_be_read_by_whoever_the_umask_lets(tmp_path):
    convert(read_adapter(save(tmp_path / "in.safetensors", good())), tmp_path / "out.safetensors")
    (tmp_path / "any").touch()
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_disk_that_is_really_full_is_one_sentence(tmp_path):
    save(tmp_path / "in.safetensors", {f"{m}.{k}": v for m in range(50) for k, v in good().items()})
    code = (
        "import resource, sys; from glance_core.__main__ import main; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sys.exit(main(['convert', *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "in.safetensors", tmp_path / "out.safetensors"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_text_encoder_and_foreign_tensors_are_left_out_and_said(tmp_path):
    extra = {"lora_te_text_model.lora_down.weight": torch.ones(2, 2), "x.diff_b": torch.ones(2)}
    adapter = read_adapter(save(tmp_path / "a.safetensors", good() | extra))
    assert list(adapter.factors) == [MODULE]
    assert adapter.skipped == ("x.diff_b",)
    assert any("1 text-encoder" in note for note in adapter.assumed)
    assert any("x.diff_b" in note for note in adapter.assumed)


def test_an_old_kohya_file_takes_alpha_from_ss_network_alpha(tmp_path):
    tensors = good()
    tensors.pop(f"{MODULE}.alpha")
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors, {"ss_network_alpha": "2.0"}))
    assert adapter.factors[MODULE].scale == 0.5
    assert any("ss_network_alpha" in note for note in adapter.assumed)


def edited(**changes):
    tensors = good()
    for name, value in changes.items():
        key = {"down": f"{MODULE}.lora_A.weight", "up": f"{MODULE}.lora_B.weight", "alpha": f"{MODULE}.alpha"}.get(name, name)
        if value is None:
            tensors.pop(key)
        else:
            tensors[key] = value
    return tensors


BAD_TENSORS = {
    "no up": (edited(up=None), "no up"),
    "no down": (edited(down=None), "no down"),
    "NaN": (edited(up=torch.full((5, 4), torch.nan)), "NaN"),
    "infinity": (edited(down=torch.full((4, 6), torch.inf)), "infinity"),
    "ranks differ": (edited(up=torch.ones(5, 3)), r"\(5, 3\)"),
    "one dimension": (edited(up=torch.ones(5)), r"\(5,\)"),
    "empty factor": (edited(down=torch.ones(0, 6), up=torch.ones(5, 0)), r"\(0, 6\)"),
    "integer factors": (edited(up=torch.ones((5, 4), dtype=torch.int8)), "int8"),
    "long alpha": (edited(alpha=torch.ones(2)), "alpha"),
    "alpha 0": (edited(alpha=torch.tensor(0.0)), "is 0"),
    "NaN alpha": (edited(alpha=torch.tensor(torch.nan)), "NaN"),
    "DoRA": (good() | {f"{MODULE}.dora_scale": torch.ones(5)}, "DoRA"),
    "LoKr": ({f"{MODULE}.lokr_w1": torch.ones(2, 2), f"{MODULE}.alpha": torch.tensor(1.0)}, "LoKr"),
    "LoHa": ({f"{MODULE}.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
    "Tucker": (good() | {f"{MODULE}.lora_mid.weight": torch.ones(2, 2)}, "Tucker"),
    "a base model": ({f"{MODULE}.weight": torch.ones(2, 2)}, "none of its 1 tensors"),
    "no tensors": ({}, "none of its 0 tensors"),
    "an alpha alone": ({"snake.alpha": torch.ones(3)}, "none of its 1 tensors"),
    "twice": (good() | {f"transformer.{key}": value for key, value in good().items()}, "twice"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_tensors_that_cannot_be_applied_are_refused_in_one_sentence_with_the_file(what, tmp_path):
    tensors, shown = BAD_TENSORS[what]
    with pytest.raises(AdapterError, match=shown) as refused:
        read_adapter(save(tmp_path / "a.safetensors", tensors))
    message = str(refused.value)
    assert message.startswith("a.safetensors: ")
    assert "\n" not in message


def header(claimed, text=b""):
    return struct.pack("<Q", claimed) + text


BAD_BYTES = {
    "empty": (b"", "empty"),
    "three bytes": (b"abc", "3"),
    "header cut off": (header(1000, b"{}"), "1000"),
    "header of 10 GB": (header(10**10, b"{}"), "10000000000"),
    "header of 2^64": (header(2**64 - 1, b"{}"), "18446744073709551615"),
    "no JSON": (header(2, b"xx"), "not a valid safetensors"),
    "JSON of another shape": (header(2, b"[]"), "not a valid safetensors"),
    "offsets beyond the end": (header(72, b'{"a.lora_A.weight":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}}'), "cut off: its header tells of 404 bytes and the file has 80"),
    "deep JSON": (header(40000, b"[" * 40000), "not a valid safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_BYTES)
def test_files_that_are_no_safetensors_are_refused_in_one_sentence(what, tmp_path):
    data, shown = BAD_BYTES[what]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(AdapterError, match=shown) as refused:
        read_adapter(path)
    assert "\n" not in str(refused.value)


def test_a_header_above_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)  # sparse: no disk is used
    with pytest.raises(AdapterError, match="200000000"):
        read_adapter(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path, "a\0b"):
        with pytest.raises(AdapterError):
            read_adapter(path)


@pytest.mark.parametrize("low_byte", [0x80, 0x50])
def test_a_header_length_that_looks_like_another_format_is_no_reason_to_refuse(low_byte, tmp_path):
    """0x80 starts a pickle and 0x50 a zip; both are ordinary first bytes of a length."""
    path = tmp_path / "a.safetensors"
    lengths = set()
    for padding in range(2000):
        save(path, good(), {"padding": "x" * padding})
        with open(path, "rb") as file:
            lengths.add(file.read(1)[0])
        if low_byte in lengths:
            break
    assert low_byte in lengths
    assert read_adapter(path).factors


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_gives_an_adapter_or_the_packages_own_error(tmp_path, data):
    path = save(tmp_path / "a.safetensors", good(), {"glance.format": "1", "glance.phase": "slow"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with contextlib.suppress(GlanceError):
        for factor in read_adapter(path).factors.values():
            assert torch.isfinite(factor.down).all()
            assert torch.isfinite(factor.up).all()


BAD_METADATA = {
    "glance.format": "7", "glance.phase": "middle", "glance.ladder": "cosine", "glance.teacher_steps": "1", "glance.steps": "1|2|3",
    "glance.sigmas": "[1, NaN]", "glance.rank": "four", "glance.guidance": "inf", "glance.seed": "9" * 10_000,
}  # fmt: skip


@pytest.mark.parametrize("key", BAD_METADATA)
def test_metadata_that_cannot_be_meant_is_refused_with_its_key(key, tmp_path):
    metadata = {"glance.format": "1", "glance.teacher_steps": "50", key: BAD_METADATA[key]}
    with pytest.raises(AdapterError, match=key):
        read_adapter(save(tmp_path / "a.safetensors", good(), metadata))


TRAINED = Trained(
    phase="slow", base="qwen-image", fingerprint="ab12", ladder="qwen-image", teacher_steps=50, steps="1,3,5,7,9|11,21,31,41,50",
    sigmas=(1.0, 0.979), partner="x_fast.safetensors", pair="1234", objective="trajectory", guidance=4.0, rank=4, alpha=8.0, seed=7,
    image_sha256="00ff",
)  # fmt: skip


def test_what_is_written_is_read_back_whole(tmp_path):
    source = read_adapter(save(tmp_path / "in.safetensors", good()))
    written = read_adapter(write_adapter(tmp_path / "out.safetensors", source.factors, TRAINED))
    assert written.trained == TRAINED
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
    names = [pattern.format(m=MODULE, f=MODULE.replace(".", "_")) for pattern in STYLES[style]]
    source = read_adapter(save(tmp_path / "in.safetensors", dict(zip(names[:2], (down, up), strict=True))))
    written = read_adapter(convert(source, tmp_path / "out.safetensors", phase="fast"))
    assert next(iter(load_file(written.path))).startswith("transformer.transformer_blocks.0.attn.to_q.")
    assert written.trained.phase == "fast"
    assert torch.equal(written.factors[MODULE].down, down)
    assert torch.equal(written.factors[MODULE].up, up)
    assert (written.factors[MODULE].alpha, written.factors[MODULE].scale) == (4.0, 1.0)
    assert not any("scale 1 assumed" in note for note in written.assumed)


def test_with_alpha_sets_the_scale(tmp_path):
    tensors = good()
    tensors.pop(f"{MODULE}.alpha")
    adapter = with_alpha(read_adapter(save(tmp_path / "a.safetensors", tensors)), 16.0)
    assert adapter.factors[MODULE].scale == 4.0
    assert not any("assumed" in note and "alpha" in note for note in adapter.assumed)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AdapterError, match=str(bad)):
            with_alpha(adapter, bad)


def test_an_existing_file_is_never_overwritten(tmp_path):
    source = read_adapter(save(tmp_path / "in.safetensors", good()))
    before = (tmp_path / "in.safetensors").read_bytes()
    with pytest.raises(AdapterError, match="exists already"):
        convert(source, tmp_path / "in.safetensors")
    assert (tmp_path / "in.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    source = read_adapter(save(tmp_path / "in.safetensors", good()))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(AdapterError, match="No space left"):
        convert(source, tmp_path / "out.safetensors")
    assert os.listdir(tmp_path) == ["in.safetensors"]
    with pytest.raises(AdapterError, match="cannot be written"):
        convert(source, tmp_path / "no folder" / "out.safetensors")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EINVAL])  # EINVAL: what Windows says on exFAT
def test_a_file_system_without_hard_links_is_written_to_all_the_same(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    down, up = factors()
    path = write_adapter(tmp_path / "out.safetensors", {MODULE: Factor(down, up, 4.0, 1.0, MODULE)}, Trained())
    assert torch.equal(read_adapter(path).factors[MODULE].down, down)
    assert [item.name for item in tmp_path.iterdir()] == ["out.safetensors"]


def test_a_name_taken_in_the_last_moment_is_not_overwritten(tmp_path, monkeypatch):
    source = read_adapter(save(tmp_path / "in.safetensors", good()))
    out, fsync = tmp_path / "out.safetensors", os.fsync

    def somebody_else_writes_first(handle):
        out.write_text("theirs")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", somebody_else_writes_first)
    with pytest.raises(AdapterError, match="exists already"):
        convert(source, out)
    assert out.read_text() == "theirs"


def pair(tmp_path, slow=None, fast=None, names=("slow", "fast"), modules=(MODULE, MODULE)):
    found = []
    for name, trained, module in zip(names, (slow, fast), modules, strict=True):
        source = read_adapter(
            save(
                tmp_path / f"{name}_in.safetensors",
                {key.replace(MODULE, module): value * (len(found) + 1) for key, value in good().items()},  # two different files
            )
        )
        found.append(read_adapter(write_adapter(tmp_path / f"{name}.safetensors", source.factors, trained or Trained())))
    return found


def test_a_swapped_pair_is_refused_and_the_way_out_said(tmp_path):
    slow, fast = pair(tmp_path, Trained(phase="slow"), Trained(phase="fast"))
    assert check_pair(slow, fast) == ()
    with pytest.raises(AdapterError, match="swap the two files"):
        check_pair(fast, slow)


@pytest.mark.parametrize(
    "slow, fast",
    [
        (Trained(base="flux"), Trained(base="qwen-image")),
        (Trained(ladder="flux"), Trained(ladder="qwen-image")),
        (Trained(ladder="shift", shift=3.0), Trained(ladder="shift", shift=6.0)),
        (Trained(fingerprint="a"), Trained(fingerprint="b")),
        (Trained(teacher_steps=50), Trained(teacher_steps=20)),
        (Trained(teacher_steps=50, steps="1|11"), Trained(teacher_steps=50, steps="1|12")),
    ],
)
def test_two_files_that_are_no_pair_are_refused(slow, fast, tmp_path):
    with pytest.raises(AdapterError, match="one pair"):
        check_pair(*pair(tmp_path, slow, fast))


def test_what_is_odd_but_possible_is_said(tmp_path):
    slow, fast = pair(tmp_path, Trained(pair="a"), Trained(pair="b"), modules=(MODULE, f"{MODULE}x"))
    notes = " ".join(check_pair(slow, fast))
    assert "different runs" in notes
    assert "different modules" in notes
    fast, slow = pair(tmp_path, names=("my_fast", "my_slow"))
    assert "look swapped" in " ".join(check_pair(fast, slow))
    assert "no switch" in " ".join(check_pair(slow, slow))


def test_describe_is_plain_json(tmp_path):
    adapter = read_adapter(save(tmp_path / "a.safetensors", good()))
    described = json.loads(json.dumps(adapter.describe()))
    assert described["modules"] == 1
    assert described["rank"] == [4]
    assert described["scale"] == [2.0]
    assert described["parameters"] == 44
