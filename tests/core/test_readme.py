"""What the README tells a user to type is run, as it stands but for the time it takes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from glance_core.tiny import LORA_FOLDER

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TYPED = [
    line
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    if not kind
    for line in block.splitlines()
    if line.strip()
]
OURS = [line for line in TYPED if line.startswith("python -m glance_core ")]
SHORTER = {"demo": "--seconds 2 --judged 32", "train": "--steps 2 --noises 1 --judged 3 --held-out 0"}
AROUND = {"cd ComfyUI/custom_nodes", "git clone REPOSITORY glance", "cd glance", "make demo", "make test"}


def test_nothing_is_typed_that_is_not_run_here():
    assert set(TYPED) - set(OURS) == AROUND
    assert {shlex.split(line)[3] for line in OURS} == {"demo", "train", "ladder", "inspect", "convert"}


@pytest.mark.parametrize("line", OURS)
def test_a_command_runs(line, tmp_path):
    (tmp_path / "prompts.txt").write_text("a small red circle on plain white\na large blue star on striped pink\n", encoding="utf-8")
    for phase in ("slow", "fast"):
        for name in (f"{phase}.safetensors", f"my_{phase}.safetensors") if " inspect " in line else (f"my_{phase}.safetensors",):
            (tmp_path / name).write_bytes((LORA_FOLDER / f"glance_tiny_{phase}.safetensors").read_bytes())
    plain = {f"diffusion_model.double_blocks.0.img_attn.proj.lora_{part}.weight": factor for part, factor in _factors().items()}
    save_file(plain, tmp_path / "any_lora.safetensors")
    line, _, into = line.partition(" > ")  # whose file is for the shell to write
    arguments = shlex.split(line)[1:] + SHORTER.get(shlex.split(line)[3], "").split()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert not into or json.loads(done.stdout)


def _factors():
    import torch

    return {"A": torch.ones(4, 8), "B": torch.ones(8, 4)}


@pytest.mark.parametrize("goal, runs", [("demo", "-m glance_core demo --seconds 60"), ("test", "-m pytest")])
def test_make_does_what_the_readme_says(goal, runs):
    told = subprocess.run(["make", "-n", goal], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tests/env/bootstrap.py" in told and runs in told


@pytest.mark.parametrize(
    "module", sorted({name for path in DOCS for name in re.findall(r"python -m (benchmarks\.[a-z_]+)", path.read_text(encoding="utf-8"))})
)
def test_a_benchmark_that_is_named_is_there(module):
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
