"""Tiny models in GGUF files, written by the `gguf` package and loaded by the real ComfyUI-GGUF."""

import asyncio
import importlib.util
import json

import comfy.sd
import comfyui
import tiny_models
import torch

import nodes

PACK = comfyui.find_gguf()
MISSING = "no ComfyUI-GGUF found: set COMFYUI_GGUF_PATH, or put one at ~/ComfyUI-GGUF"
if importlib.util.find_spec("gguf") is None:
    PACK, MISSING = None, "the package gguf is not installed: run make test"
else:
    import gguf

# What the loader calls the architecture, and the settings that ComfyUI takes for granted where a file has no metadata.
ARCHITECTURES = {
    "flux": ("flux", {}),
    "wan": ("wan", {}),
    "ltxv": ("ltxv", {"num_attention_heads": 32, "attention_head_dim": 4}),
    "sd3": ("sd3", {}),
    "hunyuan-video": ("hyvid", {}),
}  # fmt: skip


def load(name, kind, folder, dequant_dtype="default"):
    """Return (MODEL from a GGUF file of this kind, the same with the plain weights that the file means).

    dequant_dtype: that of ComfyUI-GGUF's advanced loader. By default, as in its other loader, the product of scale and
    number is rounded to half precision.
    """
    path, plain = folder / f"{name}_{kind}.gguf", {}
    architecture, settings = ARCHITECTURES[name]
    writer = gguf.GGUFWriter(path, architecture)
    model = tiny_models.build(name, **settings).model.diffusion_model
    for key, value in model.state_dict().items():
        kind_here = gguf.GGMLQuantizationType[_stored_as(kind, model, key, value)]
        data = gguf.quants.quantize(value.numpy(), kind_here)
        writer.add_tensor(key, data, raw_dtype=kind_here)
        means = torch.from_numpy(gguf.quants.dequantize(data, kind_here)).reshape(value.shape)
        rounds = dequant_dtype == "default" and kind_here.name == kind != "BF16"
        plain[key] = means.half().float() if rounds else means
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    settings = {key: value for key, value in tiny_models.tiny(name).config.items() if key != "image_model"} | settings
    metadata = {"config": json.dumps({"transformer": settings})} if name == "ltxv" else None
    model = _loader().load_unet(path.name, dequant_dtype)[0]
    return model, comfy.sd.load_diffusion_model_state_dict(plain, {"dtype": torch.float32}, metadata=metadata)


def _stored_as(kind, model, key, value):
    """Return what the file stores a tensor as: Linears of the blocks are quantised, the first and last ones are not."""
    layer = model.get_submodule(key.rpartition(".")[0])
    if value.ndim > 2 and key.endswith("weight"):  # of a convolution
        return "F16"
    quantised = isinstance(layer, torch.nn.Linear) and "block" in key and value.ndim == 2 and value.shape[1] % 32 == 0
    return kind if quantised else "F32"


def _loader():
    """Return ComfyUI-GGUF's node, loaded as ComfyUI loads a folder of custom_nodes."""
    if "UnetLoaderGGUF" not in nodes.NODE_CLASS_MAPPINGS:
        assert asyncio.run(nodes.load_custom_node(str(PACK)))
    return nodes.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]()
