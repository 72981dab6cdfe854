"""In ComfyUI, too, the nodes unpickle, evaluate, connect and start nothing, and write only below ComfyUI's folders.

Loading, training, sampling and comparing are watched.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import comfyui
from audit_hooks import state

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
from audit_hooks import AuditHook
from glance_core import tiny
from pack import node
from train_node import train
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
def use_the_nodes(name):
    latent, prompt, nothing = {"samples": torch.zeros(1, *tiny.LATENT)}, text("a large green star"), text("")
    model = host_nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0]
    vae = node("GlanceTinyVAE").execute().args[0]
    inputs = {"latent": latent, "positive": prompt, "negative": nothing, "check": prompt, "preview_every": 2}
    files = train(model, None, name=name, **inputs)[1:3]
    for pair in (files, ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")):
        carrying = node("LoadGlanceLoRA").execute(model, *pair, 1.0, 1.0).args[0]
        inputs = (carrying, prompt, nothing, latent, 7, 1.0, "euler", "flux", 2, 2, 1.0, "")
        vae.decode(node("PhaseSplitSampler").execute(*inputs).args[0]["samples"])
    node("GlanceCompare").execute(model, carrying, prompt, nothing, latent, vae, 7, 4.0, "euler", None)
    return files
with torch.inference_mode():
    hook = AuditHook([loras, output, temp], sys.argv[2])
    use_the_nodes("first")
    hook.watching = True
    files = use_the_nodes("second")
    hook.watching = False
print(json.dumps({"forbidden": hook.forbidden, "seen": hook.seen, "files": files}))
"""


def test_nodes_do_nothing_forbidden_in_comfyui(tmp_path):
    base, home, here = (tmp_path / name for name in ("base", "home", "here"))
    for each in (base, home, here, tmp_path / "temp"):
        each.mkdir()
    pack = state(ROOT / "glance_core", ROOT / "nodes")
    environment = os.environ | {
        "HOME": str(home),
        "COMFYUI_PATH": str(comfyui.find()),
        "TMPDIR": str(tmp_path / "temp"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [HERE, ROOT / "tests/shared", ROOT])),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", DRIVE, base, ROOT]
    done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{found['seen']} events")
    assert found["forbidden"] == []
    assert found["seen"] > 30 and found["files"] == ["second_slow.safetensors", "second_fast.safetensors"]
    assert state(ROOT / "glance_core", ROOT / "nodes") == pack and state(here) == {}
    assert {Path(path).relative_to(base).parts[0] for path in state(base)} <= {"loras", "output", "temp"}
