"""Write the pack's workflows and blocks from their definitions in tests/host/graphs.

    .venv/bin/python tests/host/write_workflows.py

It boots the ComfyUI that the tests use, and names the files that changed. tests/browser/run_workflow.py makes the
pictures beside them.
"""

from __future__ import annotations

import sys

import comfyui


def main() -> None:
    comfyui.boot_or_exit()
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
    existing = {
        f"{folder}/{file.name}"
        for folder in ("workflows", "subgraphs")
        for file in (comfyui.PACK / folder).glob("*.json")
    }
    for place in sorted(existing - made.keys()):
        sys.stdout.write(f"{place}: not defined in tests/host/graphs\n")


if __name__ == "__main__":
    main()
