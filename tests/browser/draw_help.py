"""Draw the small graph on each help page: the node, and what is usually wired to it.

    ~/browser_venv/bin/python tests/browser/draw_help.py http://127.0.0.1:8188

run_workflow.py says how to get playwright and a server. This writes web/docs/pictures/<NodeId>.jpg, and drawn.json with
the names in the pictures. Run it again when a node changes; tests/host/test_help.py compares the names with the nodes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from run_workflow import ARGS, NO_BARS, SETTINGS, hide_bars, open_comfyui

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"
GIVES = {
    "MODEL": "UNETLoader", "CONDITIONING": "CLIPTextEncode", "LATENT": "EmptySD3LatentImage", "VAE": "VAELoader",
    "CLIP": "CLIPLoader", "GLANCE_SETTINGS": "CalibrateGlance", "GLANCE_TRAINING_OPTIONS": "GlanceTrainingOptions",
    "with_pair": "LoadGlanceLoRA", "SIGMAS": "BasicScheduler",
}  # fmt: skip
TAKES = {
    "MODEL": "PhaseSplitSampler", "LATENT": "VAEDecode", "SIGMAS": "SamplerCustom", "SAMPLER": "SamplerCustom",
    "IMAGE": "PreviewImage", "STRING": "PreviewAny", "CONDITIONING": "PhaseSplitSampler",
    "GLANCE_SETTINGS": "PhaseSplitSampler", "GLANCE_TRAINING_OPTIONS": "TrainGlanceAdapter", "VAE": "VAEDecode",
    "GUIDER": "SamplerCustomAdvanced",
}  # fmt: skip
# Puts a collapsed neighbour at each socket, in a column on either side. Returns the size of it all, and the names.
DRAW = """([type, gives, takes, first]) => {
    app.graph.clear()
    app.graph.state.lastNodeId = first  // widgets keep their values by a node's number, also after clear()
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = [x, y]
        return node
    }
    const node = add(type, 330, 40)
    node.size = [Math.max(300, node.computeSize()[0]), node.computeSize()[1]]
    const sockets = node.inputs.map((input, at) => ({ ...input, at })).filter(input => !input.widget)
    sockets.forEach((input, row) => {
        const from = gives[input.name] ?? gives[input.type]
        if (!from || from === type) return
        const source = add(from, 40, 50 + 46 * row)
        source.flags.collapsed = true
        source.connect(source.outputs.findIndex(output => output.type === input.type), node, input.at)
    })
    node.outputs.forEach((output, row) => {
        const to = takes[output.type]
        if (!to || to === type) return
        const target = add(to, 330 + node.size[0] + 110, 50 + 46 * row)
        target.flags.collapsed = true
        const fits = input => !input.widget && [output.type, '*'].includes(input.type)
        const slot = target.inputs.findIndex(fits)
        node.connect(row, target, slot)
    })
    const names = slots => slots.map(slot => slot.name)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [20, 20]
    app.canvas.setDirty(true, true)
    const height = Math.max(node.pos[1] + node.size[1] + 50, 46 * Math.max(sockets.length, node.outputs.length) + 80)
    const widgets = (node.widgets ?? []).filter(widget => widget.name !== 'control_after_generate')
    return { size: [330 + node.size[0] + 330, height], shown: [names(sockets), names(widgets), names(node.outputs)] }
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="ComfyUI's address, http://127.0.0.1:8188, with the pack among its custom nodes")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    (DOCS / "pictures").mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=ARGS)
        page = browser.new_page(viewport={"width": 1300, "height": 1500}, device_scale_factor=2)
        open_comfyui(page, options.server, SETTINGS | NO_BARS | {"Comfy.VueNodes.Enabled": False})
        hide_bars(page)
        drawn = {
            page_file.stem: draw(page, page_file.stem, 100 * at)
            for at, page_file in enumerate(sorted(DOCS.glob("*.md")))
        }
        browser.close()
    (DOCS / "pictures" / "drawn.json").write_text(json.dumps(drawn, indent=1) + "\n", encoding="utf-8")


def draw(page: Page, node: str, first: int) -> list[list[str]]:
    """Draw a node. Return the names of the sockets, widgets and outputs that the picture shows."""
    found = page.evaluate(DRAW, [node, GIVES, TAKES, first])
    width, height = found["size"]
    page.wait_for_timeout(1000)  # the canvas is drawn again
    box = page.locator("canvas#graph-canvas").bounding_box() or {"x": 0, "y": 0}
    clip = {"x": box["x"], "y": box["y"], "width": width, "height": height}
    page.screenshot(path=DOCS / "pictures" / f"{node}.jpg", type="jpeg", quality=82, scale="css", clip=clip)
    return found["shown"]


if __name__ == "__main__":
    main()
