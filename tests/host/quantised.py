"""Tiny models stored in ComfyUI's quantised formats, read by its own loader."""

import json

import comfy.sd
import comfy.utils
import tiny_models
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

FORMATS = {
    "fp8": ("float8_e4m3fn", {}), "mxfp8": ("mxfp8", {}), "nvfp4": ("nvfp4", {}), "int8": ("int8_tensorwise", {}),
    "int8 convrot": ("int8_tensorwise", {"convrot": True, "convrot_groupsize": 16, "per_channel": True}),
}  # fmt: skip


def load(name, kind, dtype=torch.float32):
    """Return (MODEL whose Linears of the blocks are stored in this format, the same with the weights that these mean).

    Both compute in `dtype`.
    """
    tensors, plain = {}, {}
    model = tiny_models.build(name).model.diffusion_model
    linears = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "block" in n}
    for key, value in model.state_dict().items():
        if key in linears:
            stored = stored_weight(value.to(dtype), kind, key)
            tensors |= stored
            plain[key] = dequantised(value.to(dtype), kind)
        else:
            tensors[key] = plain[key] = value
    settings = {key: value for key, value in tiny_models.tiny(name).config.items() if key != "image_model"}
    metadata = {"config": json.dumps({"transformer": settings})} if name.startswith("ltx") else None
    return tuple(
        comfy.sd.load_diffusion_model_state_dict(each, {"dtype": dtype}, metadata=metadata) for each in (tensors, plain)
    )


def quantised(weight, kind):
    format_name, options = FORMATS[kind]
    return QuantizedTensor.from_float(weight, QUANT_ALGOS[format_name]["comfy_tensor_layout"], **options)


def dequantised(weight, kind):
    return quantised(weight, kind).dequantize().to(weight.dtype)


def stored_weight(weight, kind, key):
    format_name, options = FORMATS[kind]
    stated = torch.tensor(list(json.dumps({"format": format_name} | options).encode()), dtype=torch.uint8)
    return quantised(weight, kind).state_dict(key) | {key.removesuffix("weight") + "comfy_quant": stated}
