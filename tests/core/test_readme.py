"""What README and docs tell a user to type is run, as it stands except for the time it takes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from safetensors.torch import save_file

from glance_core.tiny import LORA_FOLDER

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "glance_core" / "lora" / "FORMAT.md",
]
MOST_WORDS = 900


def typed(path):
    """The lines of a page's code blocks without a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    return [line for language, block in blocks if not language for line in block.splitlines() if line.strip()]


PAGES = [ROOT / "README.md", ROOT / "docs" / "cli.md", ROOT / "docs" / "diffusers.md"]
TYPED = [line for page in PAGES for line in typed(page)]
OURS = [line for line in TYPED if line.startswith("python -m glance_core ")]
SHORTER = {"demo": "--seconds 2 --judged 32", "train": "--steps 2 --noises 1 --judged 3 --held-out 0"}
PEFT = {"python -m pip install peft", "python_embeded\\python.exe -m pip install peft"}


def test_every_typed_line_is_run_here_or_known():
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    around = {f"git clone {repository}", "cd glance", "make demo", "make test"} | PEFT
    assert set(TYPED) - set(OURS) == around
    assert {shlex.split(line)[3] for line in OURS} == {"demo", "train", "sigmas", "inspect", "convert"}


def test_readme_is_short():
    assert len(README.split()) <= MOST_WORDS


@pytest.mark.parametrize("line", OURS)
def test_command_runs(line, tmp_path):
    prompts = "a small red circle on plain white\na large blue star on striped pink\n"
    (tmp_path / "prompts.txt").write_text(prompts, encoding="utf-8")
    for phase in ("slow", "fast"):
        names = (f"{phase}.safetensors", f"my_{phase}.safetensors")
        for name in names if " inspect " in line else names[1:]:
            (tmp_path / name).write_bytes((LORA_FOLDER / f"glance_tiny_{phase}.safetensors").read_bytes())
    plain = {
        f"diffusion_model.double_blocks.0.img_attn.proj.lora_{part}.weight": factor
        for part, factor in _factors().items()
    }
    save_file(plain, tmp_path / "any_lora.safetensors")
    line, _, into = line.partition(" > ")  # the shell writes that file
    arguments = shlex.split(line)[1:] + SHORTER.get(shlex.split(line)[3], "").split()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert not into or json.loads(done.stdout)


def _factors():
    import torch

    return {"A": torch.ones(4, 8), "B": torch.ones(8, 4)}


@pytest.mark.parametrize("goal, runs", [("demo", "-m glance_core demo --seconds 60"), ("test", "-m pytest")])
def test_make_runs_what_the_readme_says(goal, runs):
    printed = subprocess.run(["make", "-n", goal], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tests/env/bootstrap.py" in printed and runs in printed


@pytest.mark.parametrize(
    "module",
    sorted(
        {
            name
            for path in DOCS
            for name in re.findall(r"python -m (benchmarks\.[a-z_]+)", path.read_text(encoding="utf-8"))
        }
    ),
)
def test_named_benchmark_exists(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f"python -m {module}" in done.stdout, done.stderr


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_link_into_the_repository_leads_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        if file.startswith(("http://", "https://")):
            continue
        there = path.parent / file if file else path
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_template_of_the_readme_is_shipped_and_every_shipped_one_is_named():
    named = set()
    for row in re.findall(r"^\| .* \|$", README, re.M):
        first = None
        for name in re.findall(r"`((?:\.\.|glance)_\w+)`", row):
            if name.startswith(".."):
                assert first is not None
                stem = first if "_8_steps" in name else re.sub("_text_to_(image|video)$", "", first)
                name = stem + name.removeprefix("..")
            else:
                first = name
            named.add(name)
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert named == shipped, named ^ shipped
