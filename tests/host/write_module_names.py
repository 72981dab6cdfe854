"""Write glance_core/lora/module_names.txt: how ComfyUI and diffusers name the layers of models.

    .venv/bin/python tests/host/write_module_names.py

The names come from ComfyUI's own tiny models and from its own key map. tests/host/test_module_names.py fails if the
file is out of date.
"""

from __future__ import annotations

from collections.abc import Iterator

import comfyui

HEAD = """\
# Names of layers, # for a number. Written by tests/host/write_module_names.py; do not edit.
# Before the name: h if it is ComfyUI's own, d if it is diffusers' and ComfyUI knows it with the prefix `transformer.`.
"""
# ComfyUI has two spellings of these, and the other one is its own.
SECOND_SPELLINGS = ("attn_qkv", "attn_proj")


def text() -> str:
    """Return the whole file."""
    host, diffusers = (set().union(*names) for names in zip(*map(_both, _models()), strict=True))
    lines = [
        f"{'h' if name in host else ''}{'d' if name in diffusers else ''} {name}" for name in sorted(host | diffusers)
    ]
    return HEAD + "\n".join(lines) + "\n"


def _models() -> Iterator[object]:
    import tiny_models
    from architectures import ARCHITECTURES

    for name in (*tiny_models.MODELS, *ARCHITECTURES):
        yield tiny_models.build(name)


def _both(model: object) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of a model's layers: ComfyUI's, and diffusers' where they differ."""
    import comfy.lora

    template = comfyui.pack_module("glance_core.lora.module_names").template
    weights = {name for name, value in model.model.state_dict().items() if value.ndim > 1}
    own = {_layer(name) for name in weights if name.startswith("diffusion_model.") and name.endswith(".weight")}
    other = set()
    for key, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        weight = target if isinstance(target, str) else target[0]
        known = key.startswith("transformer.") and weight in weights
        if known and not key.endswith(SECOND_SPELLINGS):
            other.add(key.removeprefix("transformer."))
    return frozenset(map(template, own)), frozenset(map(template, other))


def _layer(weight: str) -> str:
    return weight.removeprefix("diffusion_model.").removesuffix(".weight")


def main() -> None:
    comfyui.boot_or_exit()
    comfyui.load_pack()
    import torch

    torch.set_grad_enabled(False)
    path = comfyui.PACK / "glance_core/lora/module_names.txt"
    path.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
