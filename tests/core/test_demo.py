"""python -m glance_core demo, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from glance_core.__main__ import main

ROOT = Path(__file__).parents[2]


def _demo(out, *more):
    command = [sys.executable, "-m", "glance_core", "demo", "--seconds", "2", "--judged", "32", "--json"]
    command += ["--out", str(out), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout), done.stderr


def test_one_seed_gives_the_same_numbers(tmp_path):
    first, shown = _demo(tmp_path)
    assert [row["method"] for row in first["rows"]] == [
        "teacher",
        "base, uniform",
        "searched, all guided",
        "searched control",
        "Glance",
    ]
    assert [row["nfe"] for row in first["rows"]] == [100, 10, 10, 10, 10]
    assert all("painting" in shown and stage in shown for stage in ("teacher", "training"))  # whatever takes long
    with Image.open(first["picture"]) as picture:
        assert picture.width > 800 and picture.height > 400
    again, _ = _demo(tmp_path)
    assert again["picture"] != first["picture"] and again["pair"] != first["pair"]  # nothing is overwritten
    for one, two in zip(first["rows"], again["rows"], strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}


def test_demo_without_time_to_train_is_rejected(tmp_path, capsys):
    assert main(["demo", "--seconds", "0", "--out", str(tmp_path)]) == 2
    assert "--seconds is 0; use 2 to 36000" in capsys.readouterr().err


def test_too_few_prompts_to_judge_on_are_rejected(tmp_path, capsys):
    assert main(["demo", "--judged", "8", "--out", str(tmp_path)]) == 2
    assert "--judged is 8; use 32 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "18446744073709551615"])
def test_seed_that_no_generator_takes_is_rejected(tmp_path, capsys, seed):
    assert main(["demo", f"--seed={seed}", "--out", str(tmp_path)]) == 2
    assert f"--seed is {seed}; use 0 to 2147483647" in capsys.readouterr().err


def test_unwritable_folder_is_rejected_before_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written into" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["peft", "PIL"])
def test_missing_package_is_named(tmp_path, capsys, monkeypatch, package):
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert f"demo needs {package.replace('PIL', 'pillow')}" in capsys.readouterr().err
