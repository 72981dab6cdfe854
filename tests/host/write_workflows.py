"""Write the pack's workflows and blocks anew from their definitions in tests/host/graphs: .venv/bin/python tests/host/write_workflows.py

It boots the ComfyUI that the tests use, and says which files changed. The pictures beside them are made by tests/browser/run_workflow.py.
"""

from __future__ import annotations

import sys

import comfyui


def main() -> None:
    found = comfyui.find()
    if found is None:
        sys.exit("no ComfyUI found: set COMFYUI_PATH, or put one at ~/ComfyUI")
    comfyui.boot(found)
    sys.path.append(str(comfyui.PACK))  # last: ComfyUI has packages of the same names
    import graphs

    made = graphs.files(comfyui.all_nodes())
    for place, text in made.items():
        file = comfyui.PACK / place
        before = file.read_text(encoding="utf-8") if file.exists() else None
        if text != before:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{place}: {'new' if before is None else 'changed'}\n")
    there = {f"{folder}/{file.name}" for folder in ("workflows", "subgraphs") for file in (comfyui.PACK / folder).glob("*.json")}
    for place in sorted(there - made.keys()):
        sys.stdout.write(f"{place}: not defined in tests/host/graphs\n")


if __name__ == "__main__":
    main()
