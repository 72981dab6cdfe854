"""Write the pack's workflows anew from their definitions in tests/host/graphs: .venv/bin/python tests/host/write_workflows.py

It boots the ComfyUI that the tests use, and says which files changed. The pictures beside them are made by tests/browser/run_workflow.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import comfyui


def main() -> None:
    found = comfyui.find()
    if found is None:
        sys.exit("no ComfyUI found: set COMFYUI_PATH, or put one at ~/ComfyUI")
    comfyui.boot(found)
    sys.path.append(str(comfyui.PACK))  # last: ComfyUI has packages of the same names
    import graphs

    classes = comfyui.all_nodes()
    folder: Path = comfyui.PACK / "workflows"
    for name in graphs.WORKFLOWS:
        file, text = folder / f"{name}.json", graphs.written(name, classes)
        before = file.read_text(encoding="utf-8") if file.exists() else None
        if text != before:
            file.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{file.name}: {'new' if before is None else 'changed'}\n")
    for file in sorted(set(folder.glob("*.json")) - {folder / f"{name}.json" for name in graphs.WORKFLOWS}):
        sys.stdout.write(f"{file.name}: not defined in tests/host/graphs\n")


if __name__ == "__main__":
    main()
