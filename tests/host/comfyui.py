"""Find a real ComfyUI and boot it in this process on the CPU, once."""

import asyncio
import importlib
import os
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def find() -> Path | None:
    """Return COMFYUI_PATH, else the ComfyUI that this checkout lies in (custom_nodes/<pack>), else ~/ComfyUI.

    None if there is nothing, or if COMFYUI_PATH is empty.
    """
    stated = os.environ.get("COMFYUI_PATH")
    places = [PACK.parent.parent, Path.home() / "ComfyUI"]
    if stated is not None:
        places = [Path(stated)] if stated else []
    found = next((p.resolve() for p in places if (p / "main.py").is_file() and (p / "comfy" / "sd.py").is_file()), None)
    if stated and found is None:
        sys.exit(f"COMFYUI_PATH is {stated!r}, which is not a ComfyUI; correct it, or set it empty to skip host tests")
    return found


def find_gguf() -> Path | None:
    """Return COMFYUI_GGUF_PATH, else the ComfyUI-GGUF in the found ComfyUI's custom_nodes, else ~/ComfyUI-GGUF.

    None if there is nothing, or if COMFYUI_GGUF_PATH is empty.
    """
    stated, host = os.environ.get("COMFYUI_GGUF_PATH"), find()
    places = [*([host / "custom_nodes" / "ComfyUI-GGUF"] if host else []), Path.home() / "ComfyUI-GGUF"]
    if stated is not None:
        places = [Path(stated)] if stated else []
    found = next((p.resolve() for p in places if (p / "dequant.py").is_file()), None)
    if stated and found is None:
        sys.exit(f"COMFYUI_GGUF_PATH is {stated!r}, which is not ComfyUI-GGUF; correct it, or set it empty")
    return found


def boot_or_exit() -> None:
    """Boot the ComfyUI that the tests use, for a script; without one, end it with a sentence."""
    found = find()
    if found is None:
        sys.exit("no ComfyUI found: set COMFYUI_PATH, or put one at ~/ComfyUI")
    boot(found)


def boot(comfyui: Path) -> None:
    """Import ComfyUI with --cpu. Its own packages win over ours of the same name (`nodes`)."""
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = arguments
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def load_pack() -> dict[str, type]:
    """Return the pack's node classes, loaded as ComfyUI loads a folder of custom_nodes."""
    import nodes

    if "LoadGlanceLoRA" not in nodes.NODE_CLASS_MAPPINGS:
        assert asyncio.run(nodes.load_custom_node(str(PACK)))
    return nodes.NODE_CLASS_MAPPINGS


def all_nodes() -> dict[str, type]:
    """Return the node classes of ComfyUI, of its extras, and of the pack."""
    import nodes

    load_pack()
    if "FluxGuidance" not in nodes.NODE_CLASS_MAPPINGS:
        asyncio.run(nodes.init_builtin_extra_nodes())
    return nodes.NODE_CLASS_MAPPINGS


def pack_module(name: str):
    """Return a module of the pack as ComfyUI imported it, e.g. `nodes.host.patcher`."""
    load_pack()
    return importlib.import_module(f"{str(PACK).replace('.', '_x_')}.{name}")
