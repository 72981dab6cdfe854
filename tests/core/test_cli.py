"""python -m glance_core as a user runs it, and the pack imported without ComfyUI."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, expect=0):
    done = subprocess.run(
        [sys.executable, "-m", "glance_core", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if expect == 0 else done.stderr


def lora(path, seed=0, metadata=None):
    generator = torch.Generator().manual_seed(seed)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{name}.lora_down.weight": torch.randn((4, 6), generator=generator),
        f"{name}.lora_up.weight": torch.randn((5, 4), generator=generator),
    }
    save_file(tensors, path, metadata=metadata)
    return path


def test_sigmas_prints_the_sigmas_slow_steps_and_boundary():
    printed = json.loads(run("sigmas", "--model", "qwen-image", "--width", 1024, "--height", 1024, "--json"))
    assert len(printed["sigmas"]) == 11
    assert printed["sigmas"][-1] == 0
    assert printed["slow_steps"] == 5
    assert printed["boundary"] == printed["sigmas"][5] == pytest.approx(0.8867053, abs=5e-5)
    text = run("sigmas", "--model", "flux", "--split", "3+5")
    assert "slow_steps 3, boundary 0.926647" in text


def test_sigmas_takes_explicit_steps_a_shift_and_denoise():
    printed = json.loads(
        run("sigmas", "--model", "shift", "--shift", 3, "--steps", "1,5|9,10", "--teacher-steps", 10, "--json")
    )
    assert printed["slow_steps"] == 2
    assert len(printed["sigmas"]) == 5
    assert len(json.loads(run("sigmas", "--model", "flux", "--denoise", 0.5, "--json"))["sigmas"]) < 11


WRONG_OPTIONS = [
    ("--model", "flux", "--split", "0+5"),
    ("--model", "flux", "--steps", "1,2"),
    ("--model", "flux", "--width", "1"),
    ("--model", "shift"),
    ("--model", "flux", "--denoise", "0"),
    ("--model", "flux", "--shift", "3"),
    ("--model", "flux", "--width", "400000", "--height", "400000"),
    ("--model", "flux", "--split", "5+" + "9" * 5000),
    ("--model", "flux", "--steps", "1|2", "--boundary-step", "3"),
    ("--model", "flux", "--teacher-steps", "1"),
]


@pytest.mark.parametrize("arguments", WRONG_OPTIONS, ids=lambda words: " ".join(words)[:40])
def test_wrong_options_of_sigmas_give_a_one_line_error(arguments):
    message = run("sigmas", *arguments, expect=2)
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_sigmas_starts_without_torch():
    code = (
        "import sys; sys.argv = ['x', 'sigmas', '--model', 'flux', '--json']; from glance_core.__main__ import main; "
        "main(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_inspect_prints_what_the_loader_would_do(tmp_path):
    slow, fast = lora(tmp_path / "slow.safetensors"), lora(tmp_path / "fast.safetensors", 1)
    text = run("inspect", slow)
    assert "scale 1 assumed" in text
    assert "flux" in text
    printed = json.loads(run("inspect", slow, fast, "--json"))
    assert [f["modules"] for f in printed["files"]] == [1, 1]
    assert "no such" not in run("inspect", slow, slow, slow, expect=2)
    assert run("inspect", tmp_path / "none.safetensors", expect=2).startswith("error: none.safetensors")


def test_inspect_names_a_wrong_file_in_one_line_and_remarks_on_an_unusual_one(tmp_path):
    page = tmp_path / "lora.safetensors"
    page.write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    message = run("inspect", page, expect=2)
    assert message.startswith('error: lora.safetensors: this is a web page ("Sign in"), not a model; ')
    assert message.count("\n") == 1
    unusual = lora(tmp_path / "cat.safetensors", metadata={"ss_training_comment": "my cat"})
    remarks = "  remarks       by its metadata (ss_training_comment) it looks like an ordinary LoRA"
    assert remarks in run("inspect", unusual)
    (remark,) = json.loads(run("inspect", unusual, "--json"))["files"][0]["remarks"]
    assert remark.startswith("by its metadata")


def test_convert_writes_the_projects_format(tmp_path):
    source, out = lora(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    assert str(out) in run("convert", source, out, "--phase", "fast", "--alpha", 16)
    printed = json.loads(run("inspect", out, "--json"))["files"][0]
    assert (printed["phase"], printed["alpha"], printed["scale"]) == ("fast", [16.0], [4.0])
    assert "exists already" in run("convert", source, out, expect=2)
    assert ".safetensors" in run("convert", source, tmp_path / "out.bin", expect=2)
    assert "swap" in run("inspect", out, source, expect=2)


def test_importing_the_pack_outside_comfyui_registers_nothing(tmp_path):
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('pack', "
        f"r'{ROOT / '__init__.py'}'); pack = importlib.util.module_from_spec(spec); sys.modules['pack'] = pack; "
        "spec.loader.exec_module(pack); assert not hasattr(pack, 'comfy_entrypoint') and not hasattr(pack, "
        "'NODE_CLASS_MAPPINGS'); assert 'comfy' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
