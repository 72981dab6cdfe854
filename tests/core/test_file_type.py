"""Wrong files, written by the programs that really write them: one sentence says what each is and what to do."""

import gzip
import io
import json
import pickle
import struct
import zipfile

import pytest
import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel, UNet2DConditionModel
from lora_files import kohya_tensors
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, T5Config, T5EncoderModel

from glance_core.errors import AdapterError
from glance_core.lora.file_type import START
from glance_core.lora.reader import read_adapter


def message_about(path):
    """Return the error, which must be one short line about this file."""
    with pytest.raises(AdapterError) as error:
        read_adapter(path)
    message = str(error.value)
    assert message.startswith(f"{path.name}: ") and "\n" not in message and len(message) < 400
    return message


class Exploding:
    """Code in a pickle, which runs if somebody opens it."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def saved_by_torch(what, **settings):
    buffer = io.BytesIO()
    torch.save(what, buffer, **settings)
    return buffer.getvalue()


def painted(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind)
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("lora.safetensors", save(kohya_tensors()))
    return buffer.getvalue()


def gguf(kind):
    """Return a file's first bytes by GGUF's specification: magic, version, counts, then keys with typed values."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    string = 8  # the type of a text
    stated = {"general.architecture": "flux"} | ({"general.type": kind} if kind else {})
    pairs = b"".join(text(key) + struct.pack("<I", string) + text(value) for key, value in stated.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(stated)) + pairs + bytes(64)


PAGE = '<!DOCTYPE html>\n<html lang="en"><head><title>\n  Sign in\n</title></head><body></body></html>'
XML = b'<?xml version="1.0"?>'
DENIED = '{"error":"Access to model X is restricted."}'
INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0a" * 32 + b"\nsize 472047184\n"
LORA = save(kohya_tensors())
BYTES = {
    "torch.save": (
        saved_by_torch({"a": Exploding()}),
        "this is a pickled checkpoint, which could run any code, so it is not opened; get it as .safetensors",
    ),
    "torch.save, before 1.6": (
        saved_by_torch({"a": Exploding()}, _use_new_zipfile_serialization=False), "pickled checkpoint",
    ),
    "pickle": (pickle.dumps(Exploding(), protocol=4), "pickled checkpoint"),
    "zip": (zipped(), "zip archive; unpack it"),
    "gzip": (gzip.compress(LORA), "gzip archive; unpack it"),
    "PNG": (painted("PNG"), "PNG picture, not a model"),
    "JPEG": (painted("JPEG"), "JPEG picture, not a model"),
    "WebP": (painted("WEBP"), "WebP picture, not a model"),
    "GIF": (painted("GIF"), "GIF picture, not a model"),
    "GGUF": (gguf("model"), "a GGUF model, not a LoRA; put a model into models/diffusion_models"),
    "GGUF, a LoRA": (gguf("adapter"), "a LoRA in GGUF, which is not read here; get it as .safetensors"),
    "GGUF of no stated type": (gguf(None), "a GGUF file, and LoRAs are read from .safetensors only; put a model into"),
    "a page": (
        PAGE.encode(),
        'web page ("Sign in"), not a model; open its address in a browser, log in or accept the model\'s terms if it '
        "asks for that, and download the file itself",
    ),
    "a long page": (PAGE.replace("</body>", "é" * START + "</body>").encode(), 'web page ("Sign in")'),
    "a page after white space": (b"\r\n\t " + PAGE.lower().encode(), "web page"),
    "a page after a mark": (b"\xef\xbb\xbf" + PAGE.encode(), "web page"),
    "a page in UTF-16, as PowerShell writes it": (PAGE.encode("utf-16"), 'web page ("Sign in")'),
    "XML": (XML + b"<Error><Code>AccessDenied</Code></Error>", 'server\'s answer ("AccessDenied")'),
    "XHTML": (XML + PAGE.encode(), "web page"),
    "an error": (
        DENIED.encode(), 'server\'s answer ("Access to model X is restricted."), not a model; log in',
    ),
    "a long error": (DENIED.replace("X", "X" * 5000).encode(), "XXX...\")"),
    "an index": (json.dumps(INDEX).encode(), "this is the index of a model in several files, not a LoRA"),
    "PEFT's settings": (
        json.dumps({"alpha_pattern": {}, "peft_type": "LORA"}).encode(),
        "choose the adapter_model.safetensors beside it",
    ),
    "other JSON": (b'{"nodes": [1, 2]}', "JSON text"),
    "a word from a server": (b"Entry not found", 'text ("Entry not found"), not a model'),
    "a Git LFS pointer": (POINTER, "Git LFS pointer for a file of 472047184 bytes; run git lfs pull"),
    "zeros": (bytes(10_000), "never finished; download it again"),
    "nothing": (b"", "empty; download it again"),
    "a download that broke off": (
        LORA[:-1], f"cut off: its header says {len(LORA)} bytes and the file has {len(LORA) - 1}",
    ),
    "a download that broke off early": (LORA[:100], "truncated"),
    "two files in one": (LORA * 2, "longer than its header says"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BYTES)
def test_file_that_is_not_safetensors_is_named_and_not_opened(kind, tmp_path):
    data, message = BYTES[kind]
    path = tmp_path / "my_lora.safetensors"
    path.write_bytes(data)
    assert message in message_about(path)


@pytest.mark.parametrize("kind", BYTES)
def test_content_counts_and_not_the_file_name(kind, tmp_path):
    path = tmp_path / "my_lora.ckpt"
    path.write_bytes(BYTES[kind][0])
    assert BYTES[kind][1] in message_about(path)
    path.write_bytes(save(kohya_tensors()))
    assert len(read_adapter(path).factors) == 1


def weights_of(model, folder):
    """Save a model with its own library and return the file."""
    model.save_pretrained(folder)
    (path,) = folder.glob("*.safetensors")
    return path


CLIP = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 10}
FLUX = {
    "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 1,
    "joint_attention_dim": 8, "pooled_projection_dim": 8, "in_channels": 4, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
UNET = {
    "block_out_channels": (8, 8), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 8, "attention_head_dim": 4,
    "norm_num_groups": 4, "layers_per_block": 1,
}  # fmt: skip
TEXT_ENCODER = "a text encoder; put it into models/text_encoders"
SAVED = {
    "FLUX": (
        lambda: FluxTransformer2DModel(**FLUX),
        r"whole chroma/flux/flux2/hunyuan-video model; put it into models/diffusion_models",
    ),
    "UNet": (
        lambda: UNet2DConditionModel(**UNET), "whole sd1/sd2/sdxl model; put it into models/diffusion_models",
    ),
    "ControlNet": (lambda: FluxControlNetModel(**FLUX), "belongs to a ControlNet; put it into models/controlnet"),
    "VAE": (lambda: AutoencoderKL(block_out_channels=(8,), norm_num_groups=8), "a VAE; put it into models/vae"),
    "CLIP": (lambda: CLIPTextModel(CLIPTextConfig(**CLIP, vocab_size=10)), TEXT_ENCODER),
    "T5": (lambda: T5EncoderModel(T5Config(**T5)), TEXT_ENCODER),
    "CLIP vision": (
        lambda: CLIPVisionModel(CLIPVisionConfig(**CLIP, image_size=4, patch_size=2)),
        "a vision encoder; put it into models/clip_vision",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAVED)
def test_error_about_a_whole_model_names_its_folder(kind, tmp_path):
    make, message = SAVED[kind]
    assert message in message_about(weights_of(make(), tmp_path))


def test_error_about_one_part_of_a_model_says_so(tmp_path):
    FluxTransformer2DModel(**FLUX).save_pretrained(tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    checked = 0
    for path in parts:
        if "transformer_blocks.0" in keys_of(path):
            checked += 1
            message = message_about(path)
            assert f"looks like one of {len(parts)} parts of a whole " in message
            assert "; get it in one file for models/diffusion_models" in message
    assert checked
    (index,) = tmp_path.glob("*.index.json")
    assert "the index of a model in several files" in message_about(index)


def keys_of(path):
    with safe_open(path, "pt") as file:
        return " ".join(file.keys())


def keys(*names):
    return {name: torch.ones(2, 2) for name in names}


DENOISER = "model.diffusion_model"
# Named as the originals name their tensors. We have no program at hand that writes these files.
TENSORS = {
    "Black Forest Labs' FLUX": (
        keys("double_blocks.0.img_attn.qkv.weight", "img_in.weight"), "whole chroma/flux/flux2/hunyuan-video model",
    ),
    "ComfyUI's ModelSave": (
        keys(f"{DENOISER}.transformer_blocks.0.img_mod.1.weight"),
        "whole qwen-image model; put it into models/diffusion_models",
    ),
    "diffusers' SD 3": (
        keys("transformer_blocks.0.attn.add_q_proj.weight"),
        "whole chroma/flux/flux2/hunyuan-video/qwen-image/sd3 model",
    ),
    "an unknown denoiser": (
        keys(f"{DENOISER}.some.thing.weight"), "whole diffusion model; put it into models/diffusion_models",
    ),
    "a checkpoint": (
        keys(f"{DENOISER}.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"),
        "put it into models/checkpoints",
    ),
    "Wan's VAE": (keys("decoder.conv1.weight", "encoder.downsamples.0.residual.0.gamma"), "a VAE"),
    "Qwen2.5-VL": (keys("model.embed_tokens.weight", "visual.blocks.0.attn.qkv.weight"), "a text encoder"),
    "an embedding": (
        {"emb_params": torch.ones(4, 768)}, "an embedding (textual inversion); put it into models/embeddings",
    ),
    "an SDXL embedding": ({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)}, "an embedding"),
    "SD's ControlNet": (keys("control_model.input_hint_block.0.weight"), "a ControlNet"),
    "an IP-Adapter": (
        keys("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
        "belongs to an IP-Adapter; put it into models/ipadapter",
    ),
    "a FaceID IP-Adapter, which holds a LoRA": (
        kohya_tensors("ip_adapter.0.to_q_lora", ("down", "up")), "belongs to an IP-Adapter",
    ),
    "a LoRA for text only": (
        kohya_tensors("lora_te1_text_model_encoder_layers_0_mlp_fc1"), "it is a LoRA for a text encoder only",
    ),
    "full weight changes": (
        keys("diffusion_model.blocks.0.ffn.0.diff"),
        "a file of full weight changes, not low-rank ones; load it with Load LoRA",
    ),
    "nothing known": (
        keys("a.b"),
        "none of its 1 tensors is part of a LoRA for a diffusion model (the first is a.b); choose a LoRA file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TENSORS)
def test_error_about_a_file_without_a_lora_says_what_it_is(kind, tmp_path):
    tensors, message = TENSORS[kind]
    path = tmp_path / "my_lora.safetensors"
    save_file(tensors, path)
    assert message in message_about(path)


UNKNOWN_LAYOUTS = {
    "XLabs": "double_blocks.0.processor.qkv_lora1.down.weight",
    "nunchaku": "transformer_blocks.0.qkv_proj.lora_down",
    "VeRA": "base_model.model.transformer_blocks.0.attn.to_q.vera_lambda_b",
}


@pytest.mark.parametrize("kind", UNKNOWN_LAYOUTS)
def test_an_adapter_of_an_unknown_layout_is_not_called_a_model(kind, tmp_path):
    key = UNKNOWN_LAYOUTS[kind]
    save_file({key: torch.ones(2, 2)}, tmp_path / "my_lora.safetensors")
    message = message_about(tmp_path / "my_lora.safetensors")
    assert f"looks like an adapter of a layout that is not known here ({key}); convert it" in message
    assert "model;" not in message
