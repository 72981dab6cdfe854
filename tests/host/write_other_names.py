"""Write glance_core/lora/other_names.txt: how diffusers and publishers name the layers of ComfyUI's models.

    .venv/bin/python tests/host/write_other_names.py

diffusers' own converters of single files say it: each gets ComfyUI's tiny model with a number of its own in every row,
and the numbers tell where the rows went. tests/host/test_other_names.py fails if the file is out of date.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import comfyui

HEAD = """\
# Base model, d for diffusers' names or p for its publisher's, that name, ComfyUI's name, and what of the layer it is:
# all of it if nothing follows; part/parts and how wide they are; or swapped halves. # is the number of a block.
# Written by tests/host/write_other_names.py; do not edit.
"""


@dataclass(frozen=True)
class Source:
    """Tiny models of one base; diffusers' function; settings of the models; widths that the function states."""

    models: tuple[str, ...]
    function: str
    config: dict = field(default_factory=dict)
    widths: dict[str, str] = field(default_factory=dict)

    def converter(self):
        """Return diffusers' function, with this model's widths where its source states those of the full size."""
        from diffusers.loaders import single_file_utils

        source = inspect.getsource(getattr(single_file_utils, f"convert_{self.function}_to_diffusers"))
        for full, tiny in self.widths.items():
            assert full in source
            source = source.replace(full, tiny)
        names = dict(vars(single_file_utils))
        exec(source, names)
        return names[f"convert_{self.function}_to_diffusers"]


SOURCES = (
    Source(("wan", "wan21-i2v", "wan21-vace", "wan22-animate"), "wan_transformer"),
    Source(
        ("lumina2",), "lumina2", {"n_heads": 3, "n_kv_heads": 1, "axes_dims": [8, 12, 12]}, {"2304": "96", "768": "32"}
    ),
    Source(("z-image",), "z_image_transformer_checkpoint", {"dim": 384, "n_heads": 3, "n_kv_heads": 3}),
    Source(("hunyuan-video",), "hunyuan_video_transformer", widths={"3072": "128"}),
    Source(("ltxv",), "ltx_transformer_checkpoint"),
    Source(("flux2-dev",), "flux2_transformer_checkpoint"),
    Source(("sd3",), "sd3_transformer_checkpoint"),
    Source(("auraflow",), "auraflow_transformer_checkpoint"),
    Source(("cosmos-predict2",), "cosmos_transformer_checkpoint"),
)
# HunyuanVideo 1.5 has no converter in diffusers' package. Its layers beside those of 1.0, and the names of Tencent's
# own code, are those of diffusers' scripts/convert_hunyuan_video1_5_to_diffusers.py.
_ATTENTION = tuple(
    (f"double_blocks.#.{stream}_attn_{letter}", f"double_blocks.#.{stream}_attn.qkv {index}/3 equal")
    for stream in ("img", "txt")
    for index, letter in enumerate("qkv")
)
HUNYUAN_15 = (
    *(("p", *names) for names in _ATTENTION),
    ("d", "time_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("d", "time_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    *(("d", f"context_embedder_2.linear_{i}", f"byt5_in.fc{i}") for i in (1, 2, 3)),
    ("d", "image_embedder.linear_1", "vision_in.proj.1"),
    ("d", "image_embedder.linear_2", "vision_in.proj.3"),
)


def text() -> str:
    """Return the whole file."""
    lines: dict[tuple[str, str], set[str]] = {}
    for source in SOURCES:
        for name in source.models:
            for base, theirs, rest in _rows(name, source):
                lines.setdefault((f"{base} d {theirs}", base), set()).add(rest)
    # A layer that is swapped in some blocks only has no row.
    found = [f"{start} {rests.pop()}" for (start, _), rests in lines.items() if len(rests) == 1]
    base = "hunyuan-video"
    found += [f"{base} {owner} {theirs} {ours}" for owner, theirs, ours in HUNYUAN_15]
    return HEAD + "\n".join(sorted(set(found))) + "\n"


def original_names(model: object) -> dict[str, str]:
    """Return the publisher's names of layers by ComfyUI's, as ComfyUI's own key map has them."""
    import comfy.lora
    import comfy.model_base

    if not isinstance(model, comfy.model_base.HunyuanVideo):
        return {}
    targets = comfy.lora.model_lora_keys_unet(model, {}).items()
    names = {
        target.removeprefix("diffusion_model.").removesuffix(".weight"): key.removeprefix("transformer.")
        for key, target in targets
        if key.startswith("transformer.")
    }
    for ours, theirs in {"in_layer": "mlp.0", "out_layer": "mlp.2"}.items():
        names |= {f"{place}.{ours}": f"{place}.{theirs}" for place in ("time_in", "guidance_in", "txt_in.t_embedder")}
        names[f"txt_in.c_embedder.{ours}"] = f"txt_in.c_embedder.linear_{1 if ours == 'in_layer' else 2}"
    norms = [name for name, _ in model.diffusion_model.named_modules() if name.endswith(("query_norm", "key_norm"))]
    for name in norms:
        start, letter = name.rpartition("norm.")[0], name.rpartition("norm.")[2][0]
        names[name] = start.replace("_attn.", "_attn_") + f"{letter}_norm"
    return names


def renamed(tensors: dict, model: object) -> dict:
    """Return the tensors of a diffusion model under its publisher's names."""
    names = original_names(model)
    parts = {key: key.rpartition(".") for key in tensors}
    return {f"{names.get(p[0], p[0])}{p[1]}{p[2]}": tensors[key] for key, p in parts.items()}


def _rows(name: str, source: Source) -> Iterator[tuple[str, str, str]]:
    """Yield (base, diffusers' name, the rest of the line)."""
    import tiny_models
    import torch

    other_names = comfyui.pack_module("glance_core.lora.other_names")
    patcher = tiny_models.build(name, **source.config)
    base = comfyui.pack_module("nodes.host.base_model").base_of(patcher).name
    numbers, layers, first = {}, {}, 1
    for key, value in patcher.model.diffusion_model.state_dict().items():
        if value.ndim == 0:
            continue
        rows = torch.arange(first, first + len(value), dtype=torch.float64)
        numbers[key] = rows.reshape(-1, *[1] * (value.ndim - 1))
        if key.endswith(".weight") and value.ndim > 1:
            layers[key.removesuffix(".weight")] = (first, value)
        first += len(value)
    converted = source.converter()(renamed(numbers, patcher.model))
    found = []
    for key, value in converted.items():
        if not key.endswith(".weight") or value.ndim < 2:
            continue
        rows, theirs = value.flatten().long(), key.removesuffix(".weight")
        for ours, (start, weight) in layers.items():
            if start <= int(rows[0]) < start + len(weight):
                found.append((theirs, ours, rows - start, weight))
    parts = Counter(ours for _, ours, *_ in found)
    for theirs, ours, rows, weight in found:
        part = _part(rows, weight, parts[ours])
        yield base, other_names.template(theirs), f"{other_names.template(ours)}{part}"


def _part(rows, weight, count: int) -> str:
    """Return how the line says which rows of the weight these are, of so many parts."""
    import torch

    outside, inside = weight.shape[:2]
    whole = torch.arange(outside)
    if torch.equal(rows, whole):
        return ""
    if torch.equal(rows, torch.cat(whole.chunk(2)[::-1])):
        return " swapped"
    part = comfyui.pack_module("glance_core.lora.other_names").Part
    for sizes in ("equal", "grouped", "with_mlp") if count == 3 else ("equal", "with_mlp"):
        for index in range(count):
            start, length = part("", index, count, sizes).rows(inside, outside)
            if torch.equal(rows, whole[start : start + length]):
                return f" {index}/{count} {sizes}"
    raise ValueError(f"{rows[0]}.. of {tuple(weight.shape)} follows no known rule")


def main() -> None:
    comfyui.boot_or_exit()
    comfyui.load_pack()
    import torch

    torch.set_grad_enabled(False)
    path = comfyui.PACK / "glance_core/lora/other_names.txt"
    path.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
