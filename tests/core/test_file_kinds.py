"""Wrong files, each written by what writes its kind: the reader says in one sentence what they are and what to do."""

import gzip
import io
import json
import pickle
import struct
import zipfile

import pytest
import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, T5Config, T5EncoderModel

from glance_core.adapter_metadata import Trained
from glance_core.errors import AdapterError
from glance_core.file_kinds import START
from glance_core.lora_file import check_pair, read_adapter
from glance_core.lora_write import convert, write_adapter


def lora(module="lora_unet_double_blocks_0_img_attn_qkv", ends=("lora_down", "lora_up"), seed=0):
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 6), (5, 4)))
    return {f"{module}.{ends[0]}.weight": down, f"{module}.{ends[1]}.weight": up}


def refused(path):
    with pytest.raises(AdapterError) as error:
        read_adapter(path)
    message = str(error.value)
    assert message.startswith(f"{path.name}: ") and "\n" not in message and len(message) < 400
    return message


class Exploding:
    """Code in a pickle, which opening it would run."""

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
        archive.writestr("lora.safetensors", save(lora()))
    return buffer.getvalue()


PAGE = '<!DOCTYPE html>\n<html lang="en"><head><title>\n  Sign in\n</title></head><body></body></html>'
DENIED = '{"error":"Access to model X is restricted."}'
BYTES = {
    "torch.save": (saved_by_torch({"a": Exploding()}), "pickled checkpoint, which could run any code and is not opened"),
    "torch.save, before 1.6": (saved_by_torch({"a": Exploding()}, _use_new_zipfile_serialization=False), "pickled checkpoint"),
    "pickle": (pickle.dumps(Exploding(), protocol=4), "pickled checkpoint"),
    "zip": (zipped(), "zip archive; unpack it"),
    "gzip": (gzip.compress(save(lora())), "gzip archive; unpack it"),
    "PNG": (painted("PNG"), "PNG picture, not a model"),
    "JPEG": (painted("JPEG"), "JPEG picture, not a model"),
    "WebP": (painted("WEBP"), "WebP picture, not a model"),
    "GIF": (painted("GIF"), "GIF picture, not a model"),
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + bytes(64), "GGUF model, not a LoRA; put it into models/diffusion_models"),
    "a page": (PAGE.encode(), 'web page ("Sign in"), not a model; open its address in a browser, log in'),
    "a long page": (PAGE.replace("</body>", "é" * START + "</body>").encode(), 'web page ("Sign in")'),
    "a page after white space": (b"\r\n\t " + PAGE.lower().encode(), "web page"),
    "a page after a mark": (b"\xef\xbb\xbf" + PAGE.encode(), "web page"),
    "a page in UTF-16, as PowerShell writes it": (PAGE.encode("utf-16"), 'web page ("Sign in")'),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'server\'s answer ("AccessDenied")'),
    "XHTML": (b'<?xml version="1.0"?>' + PAGE.encode(), "web page"),
    "an error": (DENIED.encode(), 'server\'s answer ("Access to model X is restricted."), not a model; log in'),
    "a long error": (DENIED.replace("X", "X" * 5000).encode(), "XXX...\")"),
    "an index": (json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode(), "list of parts of a model"),
    "PEFT's settings": (json.dumps({"alpha_pattern": {}, "peft_type": "LORA"}).encode(), "choose the adapter_model.safetensors beside it"),
    "other JSON": (b'{"nodes": [1, 2]}', "JSON text"),
    "a word from a server": (b"Entry not found", 'text ("Entry not found"), not a model'),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0a" * 32 + b"\nsize 472047184\n",
        "Git LFS pointer that stands for a file of 472047184 bytes; run git lfs pull",
    ),
    "zeros": (bytes(10_000), "never finished; download it again"),
    "nothing": (b"", "empty; download it again"),
    "a download that broke off": (save(lora())[:-1], f"cut off: its header tells of {len(save(lora()))} bytes and the file has {len(save(lora())) - 1}"),
    "a download that broke off early": (save(lora())[:100], "truncated"),
    "two files in one": (save(lora()) * 2, "longer than its header tells"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BYTES)
def test_what_is_no_safetensors_file_is_named_and_never_opened_as_what_it_is(kind, tmp_path):
    data, told = BYTES[kind]
    path = tmp_path / "my_lora.safetensors"
    path.write_bytes(data)
    assert told in refused(path)


@pytest.mark.parametrize("kind", BYTES)
def test_names_tell_nothing(kind, tmp_path):
    """A wrong name, or a right one on the wrong content: the content counts."""
    path = tmp_path / "my_lora.ckpt"
    path.write_bytes(BYTES[kind][0])
    assert BYTES[kind][1] in refused(path)
    path.write_bytes(save(lora()))
    assert len(read_adapter(path).factors) == 1


def weights_of(model, folder):
    """A model as its own library saves it."""
    model.save_pretrained(folder)
    (path,) = folder.glob("*.safetensors")
    return path


CLIP = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
FLUX = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 1, "joint_attention_dim": 8,
        "pooled_projection_dim": 8, "in_channels": 4, "axes_dims_rope": (4, 4, 8)}  # fmt: skip
SAVED = {
    "FLUX": (lambda: FluxTransformer2DModel(**FLUX), r"whole chroma/flux/flux2/hunyuan-video model; put it into models/diffusion_models"),
    "UNet": (
        lambda: UNet2DConditionModel(
            block_out_channels=(8, 8), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4, layers_per_block=1,
        ), "whole sd1/sd2/sdxl model; put it into models/diffusion_models"),
    "ControlNet": (lambda: FluxControlNetModel(**FLUX), "belongs to a ControlNet; put it into models/controlnet"),
    "VAE": (lambda: AutoencoderKL(block_out_channels=(8,), norm_num_groups=8), "a VAE; put it into models/vae"),
    "CLIP": (lambda: CLIPTextModel(CLIPTextConfig(**CLIP, vocab_size=10)), "a text encoder; put it into models/text_encoders"),
    "T5": (lambda: T5EncoderModel(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=10)), "a text encoder; put it into models/text_encoders"),
    "CLIP vision": (lambda: CLIPVisionModel(CLIPVisionConfig(**CLIP, image_size=4, patch_size=2)), "a vision encoder; put it into models/clip_vision"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAVED)
def test_a_whole_model_is_told_its_folder(kind, tmp_path):
    make, told = SAVED[kind]
    assert told in refused(weights_of(make(), tmp_path))


def test_one_part_of_a_model_is_told_so(tmp_path):
    FluxTransformer2DModel(**FLUX).save_pretrained(tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    for path in parts:
        if "transformer_blocks.0" in keys_of(path):
            assert f"of which this is one of {len(parts)} parts by its name; get it in one file" in refused(path)
    (index,) = tmp_path.glob("*.index.json")
    assert "list of parts of a model" in refused(index)


def keys_of(path):
    with safe_open(path, "pt") as file:
        return " ".join(file.keys())


def keys(*names):
    return {name: torch.ones(2, 2) for name in names}


# As the originals name their tensors; none of these has a writer that is at hand.
TENSORS = {
    "Black Forest Labs' FLUX": (keys("double_blocks.0.img_attn.qkv.weight", "img_in.weight"), "whole chroma/flux/flux2/hunyuan-video model"),
    "ComfyUI's ModelSave": (keys("model.diffusion_model.transformer_blocks.0.img_mod.1.weight"), "whole qwen-image model; put it into models/diffusion_models"),
    "diffusers' SD 3": (keys("transformer_blocks.0.attn.add_q_proj.weight"), "whole chroma/flux/flux2/qwen-image/sd3 model"),
    "an unknown denoiser": (keys("model.diffusion_model.some.thing.weight"), "whole diffusion model; put it into models/diffusion_models"),
    "a checkpoint": (keys("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"), "put it into models/checkpoints"),
    "Wan's VAE": (keys("decoder.conv1.weight", "encoder.downsamples.0.residual.0.gamma"), "a VAE"),
    "Qwen2.5-VL": (keys("model.embed_tokens.weight", "visual.blocks.0.attn.qkv.weight"), "a text encoder"),
    "an embedding": ({"emb_params": torch.ones(4, 768)}, "an embedding (textual inversion); put it into models/embeddings"),
    "an SDXL embedding": ({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)}, "an embedding"),
    "SD's ControlNet": (keys("control_model.input_hint_block.0.weight"), "a ControlNet"),
    "an IP-Adapter": (keys("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "belongs to an IP-Adapter; put it into models/ipadapter"),
    "a FaceID IP-Adapter, which holds a LoRA": (lora("ip_adapter.0.to_q_lora", ("down", "up")), "belongs to an IP-Adapter"),
    "a LoRA for text alone": (lora("lora_te1_text_model_encoder_layers_0_mlp_fc1"), "a LoRA for a text encoder alone"),
    "whole changes": (keys("diffusion_model.blocks.0.ffn.0.diff"), "have no low rank; load it with Load LoRA"),
    "nothing known": (keys("a.b"), "none of its 1 tensors is part of a LoRA for a diffusion model (the first is a.b); choose a LoRA file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TENSORS)
def test_a_safetensors_file_without_a_lora_is_told_what_it_is(kind, tmp_path):
    tensors, told = TENSORS[kind]
    path = tmp_path / "my_lora.safetensors"
    save_file(tensors, path)
    assert told in refused(path)


KOHYA = {"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1", "ss_network_dim": "4"}
ORDINARY = "looks like an ordinary LoRA rather than half of a pair"
DISTILLED = "is made for a few steps of its own at cfg 1; load it with Load LoRA on the bare model"
REMARKED = {
    "tags": ("cat.safetensors", KOHYA | {"ss_tag_frequency": json.dumps({"10_cat": {"cat": 10}})}, ORDINARY),
    "a comment": ("cat.safetensors", KOHYA | {"ss_training_comment": "my cat"}, ORDINARY),
    "a name": ("cat.safetensors", KOHYA | {"ss_output_name": "cat"}, ORDINARY),
    "an ai-toolkit file": ("cat.safetensors", {"training_info": json.dumps({"step": 2000}), "name": "cat"}, ORDINARY),
    "a style for Z-Image-Turbo": ("style_z-image-turbo.safetensors", {"ss_output_name": "style_zimage_turbo"}, ORDINARY),
    "a title": ("renamed.safetensors", KOHYA | {"modelspec.title": "FLUX.1-Turbo-Alpha"}, DISTILLED),
    "an output name": ("renamed.safetensors", KOHYA | {"ss_output_name": "hyper-flux-8step"}, DISTILLED),
    "Lightning": ("Qwen-Image-Lightning-4steps-V1.0.safetensors", {}, DISTILLED),
    "Hyper": ("Hyper-FLUX.1-dev-8steps-lora.safetensors", {}, DISTILLED),
    "LCM": ("lcm-lora-sdxl.safetensors", {}, DISTILLED),
    "DMD": ("dmd2_sdxl_4step_lora.safetensors", {}, DISTILLED),
    "lightx2v": ("lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors", {}, DISTILLED),
    "CausVid": ("Wan21_CausVid_14B_T2V_lora_rank32.safetensors", {}, DISTILLED),
    "a style that recommends another": ("cat.safetensors", {"ss_output_name": "cat", "modelspec.description": "try it with an 8-step Lightning LoRA"}, ORDINARY),
    "a published pair": ("glance_qwen_slow.safetensors", {}, None),
    "one of diffusers'": ("pytorch_lora_weights.safetensors", {"format": "pt"}, None),
    "bare numbers of kohya's": ("slow.safetensors", KOHYA | {"ss_tag_frequency": "{}"}, None),
    "hyperrealism": ("hyperrealism_slow.safetensors", {}, None),
    "two thousand steps": ("slow-2000steps.safetensors", {}, None),
}  # fmt: skip


@pytest.mark.parametrize("which", REMARKED)
def test_a_lora_that_looks_like_no_half_of_a_pair_loads_with_a_remark(which, tmp_path):
    name, metadata, told = REMARKED[which]
    save_file(lora(), tmp_path / name, metadata=metadata)
    adapter = read_adapter(tmp_path / name)
    assert len(adapter.factors) == 1
    assert [told in remark for remark in adapter.remarks] == ([True] if told else [])
    assert adapter.describe()["remarks"] == list(adapter.remarks)


def test_a_file_that_states_its_phase_is_no_ordinary_lora_whatever_its_name(tmp_path):
    save_file(lora(), tmp_path / "turbo.safetensors", metadata=KOHYA | {"ss_output_name": "cat"})
    source = read_adapter(tmp_path / "turbo.safetensors")
    assert source.remarks
    written = read_adapter(convert(source, tmp_path / "turbo_slow.safetensors", phase="slow"))
    assert written.remarks == ()


def test_a_rewritten_file_is_remarked_on_for_what_its_source_said_alone(tmp_path):
    for name, metadata in (("bare", None), ("cat", {"ss_training_comment": "my cat"})):
        save_file(lora(), tmp_path / f"{name}.safetensors", metadata=metadata)
        source = read_adapter(tmp_path / f"{name}.safetensors")
        written = read_adapter(convert(source, tmp_path / f"{name}_new.safetensors"))
        assert written.remarks == source.remarks
        assert bool(written.remarks) == (metadata is not None)


def test_copies_of_one_file_are_no_pair(tmp_path):
    for name, seed in (("slow", 0), ("copy", 0), ("fast", 1)):
        save_file(lora(seed=seed), tmp_path / f"{name}.safetensors")
    slow, copy, fast = (read_adapter(tmp_path / f"{name}.safetensors") for name in ("slow", "copy", "fast"))
    assert "slow.safetensors and copy.safetensors hold the same numbers: there is no switch" in " ".join(check_pair(slow, copy))
    assert "slow.safetensors is used for both phases: there is no switch; choose" in " ".join(check_pair(slow, slow))
    assert "no switch" not in " ".join(check_pair(slow, fast))


@pytest.mark.parametrize(
    "partner, told", [("my_fast.safetensors", "choose my_fast.safetensors there"), (None, "choose the Fast file of the pair there")]
)
def test_a_stated_slow_file_in_both_places_is_told_its_partner(partner, told, tmp_path):
    save_file(lora(), tmp_path / "in.safetensors")
    factors = read_adapter(tmp_path / "in.safetensors").factors
    slow = read_adapter(write_adapter(tmp_path / "my_slow.safetensors", factors, Trained(phase="slow", partner=partner)))
    with pytest.raises(AdapterError, match="is a Slow adapter but was chosen as fast_lora") as refused:
        check_pair(slow, slow)
    assert told in str(refused.value)


def test_a_stranger_in_a_pair_is_told_whose_partner_is_missing(tmp_path):
    save_file(lora(), tmp_path / "in.safetensors")
    factors = read_adapter(tmp_path / "in.safetensors").factors
    slow, fast = (
        read_adapter(
            write_adapter(tmp_path / f"{name}.safetensors", factors, Trained(phase=phase, pair=name, partner=f"{name}_other.safetensors"))
        )
        for name, phase in (("a", "slow"), ("b", "fast"))
    )
    assert "different runs; a.safetensors belongs to a_other.safetensors" in " ".join(check_pair(slow, fast))
