"""Check what the Comfy registry and ComfyUI Manager show about the pack."""

import re
from pathlib import Path

import pytest
import tomllib
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMFY = PROJECT["tool"]["comfy"]


@pytest.mark.parametrize(
    "field, shape",
    [("Icon", lambda wide, high: wide == high <= 400), ("Banner", lambda wide, high: 9 * wide == 21 * high)],
)
def test_icon_and_banner_exist_and_have_the_shape_that_the_registry_wants(field, shape):
    repository = PROJECT["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    base, file = COMFY[field].split(f"/{repository}/main/")
    assert base == "https://raw.githubusercontent.com"
    with Image.open(ROOT / file) as picture:
        assert shape(*picture.size)


def test_version_is_the_newest_in_the_changelog():
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest and newest.group(1) == PROJECT["project"]["version"]


def test_registry_accepts_the_name_and_the_comfyui_version():
    assert (
        re.fullmatch(r"[a-z](?:[a-z0-9]|[-_.](?=[a-z0-9]))*", PROJECT["project"]["name"])
        and "comfyui" not in PROJECT["project"]["name"]
    )
    assert re.fullmatch(r">=\d+\.\d+\.\d+", COMFY["requires-comfyui"])


def test_offered_models_are_named_by_a_workflow():
    named = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflows").glob("*.json"))
    for model in COMFY["Models"]:
        assert model["model_url"] in named and model["location"] == f"loras/{model['model_url'].rsplit('/', 1)[1]}"


def test_install_does_not_pull_in_torch():
    assert not [wanted for wanted in PROJECT["project"]["dependencies"] if wanted.startswith("torch")]


def test_source_can_be_read_in_the_windows_code_page():
    """comfy-test rejects packs with other characters in Python files; write those as escapes."""
    unreadable = [
        path.name
        for path in ROOT.rglob("*.py")
        if not {".venv", "mutants"} & set(path.parts)
        and any(not char.encode("cp1252", "ignore") for char in set(path.read_text(encoding="utf-8")))
    ]
    assert unreadable == []
