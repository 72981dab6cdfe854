"""Host tests run inside a real ComfyUI. Without one they are skipped by name, with a count at the end."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import comfyui

FOUND = comfyui.find()
WHY = "no ComfyUI found: set COMFYUI_PATH, or put one at ~/ComfyUI"

if FOUND is not None:
    comfyui.boot(FOUND)


class SkippedFile(pytest.File):
    """A test file that cannot be imported without ComfyUI: one skipped item for each of its test functions."""

    def collect(self):
        for node in ast.walk(ast.parse(self.path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield SkippedTest.from_parent(self, name=node.name)


class SkippedTest(pytest.Item):
    def runtest(self):
        pytest.skip(WHY)


def pytest_pycollect_makemodule(module_path, parent):
    if FOUND is None and module_path.parent == Path(__file__).parent:
        return SkippedFile.from_parent(parent, path=module_path)
    return None


def pytest_terminal_summary(terminalreporter):
    if FOUND is None:
        skipped = [r for r in terminalreporter.stats.get("skipped", []) if WHY in str(r.longrepr)]
        if skipped:
            terminalreporter.section("NOT TESTED IN COMFYUI", red=True)
            terminalreporter.line(f"{len(skipped)} host tests were skipped: {WHY}.")


@pytest.fixture(scope="session")
def node_classes():
    return comfyui.load_pack()


@pytest.fixture(autouse=True)
def inference_mode():
    """ComfyUI's executor runs every node under inference mode, so the tests do too."""
    if FOUND is None:
        yield
        return
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture
def loras(tmp_path, monkeypatch, node_classes):
    """ComfyUI's models/loras in this test, an empty folder. The pack is loaded first, as it adds its own folder."""
    import folder_paths

    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    return folder


@pytest.fixture
def output(tmp_path, monkeypatch, loras):
    """ComfyUI's output folder in this test; training runs keep their checkpoints in its `glance_training`."""
    import folder_paths

    folder = tmp_path / "output"
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


@pytest.fixture(autouse=True)
def nothing_stays_loaded():
    """Unload every model, so that each test starts with an empty device."""
    yield
    if FOUND is not None:
        import comfy.model_management

        comfy.model_management.unload_all_models()
