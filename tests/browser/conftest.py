"""Browser tests drive the pack's graphs in Chromium against a real server.

Without ComfyUI, playwright or Chromium each test is skipped, with a count at the end.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "host"))
sys.path.append(str(HERE))  # last: modules of the host tests mean their own `conftest`
import comfyui  # noqa: E402

CHROMIUM = (
    os.environ.get("CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
MISSING = [
    name
    for name, found in (
        ("a ComfyUI (COMFYUI_PATH, or ~/ComfyUI)", comfyui.find()),
        ("playwright", importlib.util.find_spec("playwright")),
        ("a Chromium (CHROMIUM, or on the path)", CHROMIUM),
    )
    if not found
]
WHY = f"no browser tests without {' and '.join(MISSING)}"


def pytest_collection_modifyitems(items):
    if MISSING:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=WHY))


def pytest_terminal_summary(terminalreporter):
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if WHY in str(report.longrepr)]
    if MISSING and skipped:
        terminalreporter.section("NOT TESTED IN A BROWSER", red=True)
        terminalreporter.line(f"{len(skipped)} browser tests were skipped: {WHY}.")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return a real ComfyUI whose only custom nodes are the pack."""
    from real_server import Server, folder

    base = tmp_path_factory.mktemp("server")
    folder(base)
    running = Server(base)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright
    from run_workflow import ARGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def comfy(chromium, server, request):
    """Return a function that opens ComfyUI with some settings. At the end the page is saved as a picture."""
    from run_workflow import SETTINGS, open_comfyui

    context = chromium.new_context(viewport={"width": 1600, "height": 900})
    page = context.new_page()

    def opened(**settings):
        open_comfyui(page, f"http://127.0.0.1:{server.port}", SETTINGS | {"Comfy.VueNodes.Enabled": False} | settings)
        return page

    yield opened
    page.screenshot(path=server.base / f"{request.node.name}.png")
    context.close()
