"""Open one of the pack's templates in ComfyUI as a user would, press Run, and take a screenshot of the results.

    python -m venv ~/browser_venv && ~/browser_venv/bin/pip install playwright
    ~/browser_venv/bin/python tests/browser/run_workflow.py http://127.0.0.1:8188 --out glance_tiny.png

It drives the system's Chromium. The server needs the pack as custom_nodes/glance; --pack takes another folder name.
--canvas --size 1280x697 --out workflows/glance_tiny.jpg makes the picture for the templates browser. --open does not
run the graph, for templates whose models you do not have. It ignores missing files, but no other error of the web
interface. Put empty files under the models' names, so that the graph has no red frames.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from playwright.sync_api import Error, Locator, Page, Route, TimeoutError, sync_playwright

ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Replace the server's own settings in this browser only: no first-run tour, nothing drawn over the graph.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
NO_BARS = {"Comfy.Graph.CanvasMenu": False}
SECOND = 1000
PICTURE_NODES = "app.graph.nodes.filter(node => ['PreviewImage', 'SaveImage'].includes(node.type))"
FIT_VIEW = """share => {
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect)
    const [left, top] = [0, 1].map(side => Math.min(...boxes.map(box => box[side])))
    const [right, bottom] = [0, 1].map(side => Math.max(...boxes.map(box => box[side] + box[side + 2])))
    app.canvas.ds.fitToBounds([left, top, right - left, bottom - top], { zoom: share })
    app.canvas.setDirty(true, true)
}"""
PICTURES_OF = (
    "node.imgs ?? [...document.querySelectorAll(`[data-node-id='${node.id}'] img`)]"  # on the canvas, or Nodes 2.0
)
PICTURES_ARE_SHOWN = f"""{PICTURE_NODES}.map(node => {PICTURES_OF})
    .every(pictures => pictures.length && pictures.every(i => i.complete && i.naturalWidth))"""
# What the web interface says about errors of one kind, and of several.
FILES_ARE_MISSING = re.compile(r"models? (is|are) missing|missing required inputs", re.IGNORECASE)
ERRORS_ARE_FOUND = re.compile(r"(\d+) errors found")
MISSING_FILES = """app.graph.nodes.flatMap(node => (node.widgets ?? []).filter(({ type, value, options }) => {
    const values = typeof options?.values === 'function' ? options.values() : options?.values
    return type === 'combo' && Array.isArray(values) && !values.includes(value)
}).map(widget => widget.value))"""  # values that are not among the choices
UNKNOWN_NODES = """app.graph.nodes.map(node => [node.type, node.constructor.nodeData])
    .filter(([type, known]) => !known && !['MarkdownNote', 'Note'].includes(type)).map(([type]) => type)"""
ERROR_IS_SHOWN = "!!document.querySelector('[data-testid=error-overlay]')"


class NotFound(Exception):
    """Something that a user would look for is not on the page."""


def main() -> None:
    options = read_options()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.chromium, args=ARGS)
            page = browser.new_page(
                viewport=options.size, device_scale_factor=2
            )  # at 1 a wide graph is drawn without its text
            settings = SETTINGS | {"Comfy.VueNodes.Enabled": options.nodes2} | (NO_BARS if options.canvas else {})
            open_comfyui(page, options.server, settings)
            open_template(page, options.pack, options.template)
            if options.open:
                look(page)
            else:
                run(page, options.seconds)
            if options.canvas:
                hide_bars(page)
            fit_view(page, share=0.985 if options.canvas else 0.93)
            save(page, options.out)
            browser.close()
    except (NotFound, Error) as error:
        raise SystemExit(f"run_workflow: {error}") from error
    print(f"{options.template} {'opened' if options.open else 'ran'}; its screenshot is {options.out}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="ComfyUI's address, http://127.0.0.1:8188")
    parser.add_argument("--out", type=Path, required=True, help="the screenshot, .png or .jpg")
    parser.add_argument("--template", default="glance_tiny")
    parser.add_argument("--pack", default="glance", help="the pack's folder in custom_nodes")
    parser.add_argument("--size", type=size, default="1920x1080", help="of the window, in pixels")
    parser.add_argument("--canvas", action="store_true", help="the graph without ComfyUI's bars")
    parser.add_argument("--nodes2", action="store_true", help="drawn as Nodes 2.0")
    parser.add_argument("--open", action="store_true", help="do not run it, and ignore missing files")
    parser.add_argument("--seconds", type=float, default=300, help="how long the run may take")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    return parser.parse_args()


def size(text: str) -> dict[str, int]:
    """Return a size like 1920x1080 as the browser takes it."""
    width, height = map(int, text.split("x"))
    return {"width": width, "height": height}


def open_comfyui(page: Page, server: str, settings: dict[str, bool]) -> None:
    def add_settings(route: Route) -> None:
        if route.request.method == "GET":
            answer = route.fetch()
            route.fulfill(response=answer, json=answer.json() | settings)
        else:
            route.continue_()

    page.route("**/api/settings", add_settings)
    try:
        page.goto(server)
    except Error as error:
        raise NotFound(f"no ComfyUI answers at {server}") from error
    find(page.get_by_test_id("queue-button"), "ComfyUI's Run button", seconds=60)


def open_template(page: Page, pack: str, template: str) -> None:
    find(page.get_by_role("button", name="Templates", exact=True), "the sidebar's Templates button").click()
    dialog = page.get_by_role("dialog")
    find(
        dialog.get_by_role("button", name=pack, exact=True),
        f"{pack!r} under Extensions in the templates browser",
        seconds=60,
    ).click()
    search = find(dialog.get_by_placeholder("Search"), "the templates browser's search")
    search.fill(template)  # the browser draws only the first two dozen
    find(dialog.get_by_test_id(f"template-workflow-{template}"), f"the template {template!r} of {pack!r}").click()
    find(
        page.get_by_test_id("topbar-workflow-tabs").get_by_text(template, exact=True),
        f"the tab of the opened template {template!r}",
    )
    try:
        dialog.wait_for(state="hidden", timeout=30 * SECOND)
        page.wait_for_function("() => app.graph.nodes.length > 0", timeout=30 * SECOND)
    except TimeoutError as error:
        raise NotFound(f"no graph came up from the template {template!r}") from error


def look(page: Page) -> None:
    """Raise NotFound for unknown nodes, and for any error of the web interface except missing files."""
    unknown = page.evaluate(UNKNOWN_NODES)
    if unknown:
        raise NotFound(f"the graph has nodes that this ComfyUI does not know: {', '.join(unknown)}")
    page.wait_for_timeout(3 * SECOND)  # it looks for the files
    if not page.evaluate(ERROR_IS_SHOWN):
        return
    text = error_text(page)
    found, missing = ERRORS_ARE_FOUND.search(text), page.evaluate(MISSING_FILES)
    if not FILES_ARE_MISSING.search(text) and not (found and int(found[1]) == len(missing)):
        raise NotFound(f"the opened graph shows an error: {text} (missing files: {', '.join(missing) or 'none'})")
    page.get_by_test_id("error-overlay-dismiss").click()
    page.get_by_test_id("error-overlay").wait_for(state="hidden", timeout=30 * SECOND)


def error_text(page: Page) -> str:
    return " ".join(page.get_by_test_id("error-overlay").inner_text().split())


def run(page: Page, seconds: float) -> None:
    if not page.evaluate(f"{PICTURE_NODES}.length"):
        raise NotFound("the graph has no Preview Image or Save Image to wait for")
    page.get_by_test_id("queue-button").click()
    try:
        page.wait_for_function(f"() => {PICTURES_ARE_SHOWN} || {ERROR_IS_SHOWN}", timeout=seconds * SECOND)
    except TimeoutError as error:
        raise NotFound(f"the graph shows no pictures after {seconds:g} seconds") from error
    if page.evaluate(ERROR_IS_SHOWN):
        raise NotFound(f"the graph shows an error instead of pictures: {error_text(page)}")
    page.get_by_test_id("queue-notification-banner").wait_for(state="hidden", timeout=30 * SECOND)


def hide_bars(page: Page) -> None:
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    # not add_style_tag, which fails if the page's security policy blocks anything meanwhile
    page.evaluate(
        "css => document.head.append(Object.assign(document.createElement('style'), { textContent: css }))",
        "[aria-label='Show Menu'] { display: none }",
    )


def fit_view(page: Page, share: float) -> None:
    """Show the whole graph. ComfyUI's own Fit View leaves a quarter of the page empty."""
    page.evaluate(FIT_VIEW, share)
    page.wait_for_timeout(2 * SECOND)  # the browser draws the pictures again


def save(page: Page, out: Path) -> None:
    kind = "jpeg" if out.suffix.lower() in (".jpg", ".jpeg") else "png"
    page.screenshot(path=out, type=kind, scale="css", **({"quality": 88} if kind == "jpeg" else {}))


def find(what: Locator, name: str, seconds: float = 20) -> Locator:
    """Return the locator once it is visible. Raise NotFound with the name that a person would give it."""
    try:
        what.wait_for(timeout=seconds * SECOND)
    except TimeoutError as error:
        raise NotFound(f"{name} was not found within {seconds:g} seconds") from error
    return what


if __name__ == "__main__":
    main()
