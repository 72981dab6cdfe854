"""In ComfyUI, too, loading, training, calibrating and sampling unpickle, evaluate, connect and start nothing, and write below its own folders alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import comfyui
from deeds import state

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

DRIVE = """
import json, sys
from pathlib import Path
import comfyui
comfyui.boot(comfyui.find())
import folder_paths
import torch
import nodes as host_nodes
from deeds import Deeds
from glance_core import tiny
from pack import node
from training import train
base = Path(sys.argv[1])
loras, output, temp = (base / name for name in ("loras", "output", "temp"))
for folder in (loras, output, temp):
    folder.mkdir()
comfyui.load_pack()
folder_paths.set_output_directory(str(output))
folder_paths.set_temp_directory(str(temp))
folder_paths.folder_names_and_paths["loras"] = ([str(loras), str(tiny.LORA_FOLDER)], {".safetensors"})
def text(prompt):
    return node("GlanceTinyText").execute(prompt).args[0]
def everything(name):
    latent, prompt, nothing = {"samples": torch.zeros(1, *tiny.LATENT)}, text("a large green star"), text("")
    model = host_nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0]
    vae = node("GlanceTinyVAE").execute().args[0]
    files = train(model, None, latent=latent, positive=prompt, negative=nothing, name=name, preview_every=2, check=prompt)[1:3]
    for pair in (files, ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")):
        carrying = node("LoadGlanceLoRA").execute(model, *pair, 1.0, 1.0).args[0]
        sampled = node("PhaseSplitSampler").execute(carrying, prompt, nothing, latent, 7, 1.0, "euler", "flux", 2, 2, 1.0, "").args[0]["samples"]
        vae.decode(sampled)
    node("GlanceCompare").execute(model, carrying, prompt, nothing, latent, vae, 7, 4.0, "euler", None)
    return files
with torch.inference_mode():
    deeds = Deeds([loras, output, temp], sys.argv[2])
    everything("first")
    deeds.watching = True
    files = everything("second")
    deeds.watching = False
print(json.dumps({"strange": deeds.strange, "seen": deeds.seen, "files": files}))
"""


def test_nothing_strange_is_done_in_comfyui(tmp_path):
    base, home, here = (tmp_path / name for name in ("base", "home", "here"))
    for each in (base, home, here, tmp_path / "temp"):
        each.mkdir()
    pack = state(ROOT / "glance_core", ROOT / "nodes")
    environment = os.environ | {
        "HOME": str(home), "COMFYUI_PATH": str(comfyui.find()), "TMPDIR": str(tmp_path / "temp"), "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [HERE, ROOT / "tests/shared", ROOT])), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, base, ROOT], env=environment, cwd=here, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{told['seen']} events")
    assert told["strange"] == []
    assert told["seen"] > 30 and told["files"] == ["second_slow.safetensors", "second_fast.safetensors"]
    assert state(ROOT / "glance_core", ROOT / "nodes") == pack and state(here) == {}
    assert {Path(path).relative_to(base).parts[0] for path in state(base)} <= {"loras", "output", "temp"}
