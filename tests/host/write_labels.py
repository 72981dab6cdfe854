"""Write the English labels from the nodes' schemas.

    .venv/bin/python tests/host/write_labels.py

People write the other languages by hand after locales/en/nodeDefs.json. tests/host/test_help.py names missing and stale
entries.
"""

from __future__ import annotations

import json
from typing import Any

import comfyui


def english(schemas: dict[str, Any]) -> str:
    """Return locales/en/nodeDefs.json of these nodes, by name."""
    labels = {name: _labels(schema) for name, schema in sorted(schemas.items())}
    return json.dumps(labels, indent=2, ensure_ascii=False) + "\n"


def _labels(schema: Any) -> dict[str, Any]:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {each.id: {"name": each.display_name or each.id, "tooltip": each.tooltip} for each in schema.inputs},
        "outputs": {
            str(at): {"name": each.display_name, "tooltip": each.tooltip} for at, each in enumerate(schema.outputs)
        },
    }


def main() -> None:
    comfyui.boot_or_exit()
    ours = {
        name: each.GET_SCHEMA()
        for name, each in comfyui.load_pack().items()
        if getattr(each, "CATEGORY", "").lower().startswith("glance")
    }
    file = comfyui.PACK / "locales/en/nodeDefs.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(english(ours), encoding="utf-8")


if __name__ == "__main__":
    main()
