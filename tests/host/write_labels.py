"""Write the English labels anew from the nodes' schemas: .venv/bin/python tests/host/write_labels.py

The other languages are written by hand, after locales/en/nodeDefs.json; tests/host/test_help.py tells which entries are missing or stale.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import comfyui


def english(schemas: dict[str, Any]) -> str:
    """locales/en/nodeDefs.json of these nodes, by name."""
    return json.dumps({name: _of(schema) for name, schema in sorted(schemas.items())}, indent=2, ensure_ascii=False) + "\n"


def _of(schema: Any) -> dict[str, Any]:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {each.id: {"name": each.id, "tooltip": each.tooltip} for each in schema.inputs},
        "outputs": {str(at): {"name": each.display_name, "tooltip": each.tooltip} for at, each in enumerate(schema.outputs)},
    }


def main() -> None:
    found = comfyui.find()
    if found is None:
        sys.exit("no ComfyUI found: set COMFYUI_PATH, or put one at ~/ComfyUI")
    comfyui.boot(found)
    ours = {
        name: each.GET_SCHEMA() for name, each in comfyui.load_pack().items() if getattr(each, "CATEGORY", "").lower().startswith("glance")
    }
    file = comfyui.PACK / "locales/en/nodeDefs.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(english(ours), encoding="utf-8")


if __name__ == "__main__":
    main()
