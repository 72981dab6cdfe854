"""No code unpickles, evaluates text, connects to a network, starts a program, or writes outside of the asked folders.

One test reads the syntax trees of all shipped files. The other watches a run with `tests/shared/audit_hooks.py`.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from audit_hooks import state

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [ROOT / "__init__.py", *sorted((ROOT / "glance_core").rglob("*.py")), *sorted((ROOT / "nodes").rglob("*.py"))]

# Modules that only do forbidden things, and single functions of other modules.
MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "dbm", "marshal", "yaml",
    "code", "codeop", "runpy", "socket", "socketserver", "ssl", "select", "selectors", "asyncio", "http", "urllib",
    "urllib3", "requests", "httpx", "aiohttp", "websockets", "ftplib", "smtplib", "telnetlib", "xmlrpc", "webbrowser",
    "huggingface_hub", "subprocess", "pty", "multiprocessing", "torch.hub", "torch.distributed",
    "torch.multiprocessing", "torch.package", "torch.utils.model_zoo", "torch.utils.cpp_extension", "zipfile",
    "tarfile", "importlib.import_module",
}  # fmt: skip
FUNCTIONS = {
    "eval", "exec", "compile", "__import__", "breakpoint", "input", "globals", "torch.load", "torch.save",
    "torch.jit.load", "torch.export.load", "numpy.load", "numpy.fromfile", "numpy.loadtxt", "os.system", "os.popen",
    "os.fork", "os.forkpty", "os.startfile", "os.umask", "os.putenv",
}  # fmt: skip
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
# Developers retrain the embedded model with this. Its workers talk to each other, on one machine.
EXCEPTIONS = {"glance_core/tiny/pretrain.py": {"torch.distributed", "torch.multiprocessing.spawn.start_processes"}}
# The files that write, make or remove files, each with its reason. All others use `safetensors_io`.
WRITERS = {
    "glance_core/lora/safetensors_io.py",  # adapters, previews, checkpoints: atomically
    "glance_core/training/run/file_lock.py",  # the lock of a training run, removed at its end
    "glance_core/lora/pair_writer.py",  # makes the folder that the user named
    "glance_core/training/run/run_dir.py",  # removes finished runs, and what killed runs left
    "glance_core/plots/image_grid.py",  # the pictures of the demo
    "glance_core/tiny/demo.py",
    "glance_core/tiny/pretrain.py",  # its log
    "nodes/host/training_run.py",  # a picture into memory, which `safetensors_io` then writes
}
WRITES = {
    "write_text", "write_bytes", "mkdir", "makedirs", "touch", "unlink", "rmdir", "rmtree", "symlink_to",
    "hardlink_to", "symlink", "link", "rename", "renames", "remove", "removedirs", "truncate", "chmod", "chown",
    "utime", "copyfile", "copytree", "copy2", "move", "mkdtemp", "mkstemp", "TemporaryFile", "NamedTemporaryFile",
    "TemporaryDirectory", "save_file", "tofile", "savefig", "fdopen",
}  # fmt: skip
AMBIGUOUS = {"link", "remove", "rename", "move", "truncate", "copy2"}  # lists and patchers have these methods too
FILES = {"os", "shutil", "path"}  # on these names they write


def names_in(tree):
    """Yield every used name, dotted, as it was imported, with its node."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                known[alias.asname or first] = alias.name if alias.asname else first
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node
    for node in ast.walk(tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and isinstance(node, (ast.Attribute, ast.Name)):
            yield ".".join([known.get(inner.id, inner.id), *reversed(parts)]), node


def forbidden(tree):
    for name, node in names_in(tree):
        name = name.replace("np.", "numpy.", 1) if name.startswith("np.") else name
        parts = name.split(".")
        heads = {".".join(parts[: i + 1]) for i in range(len(parts))}
        if isinstance(node, ast.Name) and name not in FUNCTIONS and name not in MODULES:
            continue
        if heads & MODULES or name in FUNCTIONS or name.startswith(PREFIXES):
            yield name, node.lineno


def writes(tree):
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        on = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
        constants = [
            *(a.value for a in node.args if isinstance(a, ast.Constant)),
            *(k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)),
        ]
        opened = name == "open" and any(
            isinstance(mode, str) and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in constants
        )
        saved = name == "save" and isinstance(function, ast.Attribute)  # Pillow's
        replaced = name == "replace" and on == "os"
        if opened or saved or replaced or (name in WRITES and (name not in AMBIGUOUS or on in FILES)):
            yield name, node.lineno


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_file_names_nothing_forbidden(path):
    where = path.relative_to(ROOT).as_posix()
    excepted = tuple(EXCEPTIONS.get(where, ["\0"]))
    found = {(name, line) for name, line in forbidden(parsed(path)) if not name.startswith(excepted)}
    assert not found
    if where not in WRITERS:
        assert not list(writes(parsed(path)))


@pytest.mark.parametrize("code", [
    "import pickle", "from pickle import loads", "import torch as t\nt.load(x)", "from torch import load", "eval(x)",
    "f = exec", "import urllib.request as u", "from os import system", "import os\nos.execv(x, y)",
    "import numpy as np\nnp.load(x)", "from torch.hub import load", "import torch\ntorch.hub.load(x)",
    "def f():\n    from huggingface_hub import hf_hub_download", "__import__('pickle')",
    "import importlib\nimportlib.import_module(x)", "import os as o\no.umask(0)",
])  # fmt: skip
def test_forbidden_code_is_found(code):
    assert list(forbidden(ast.parse(code)))


@pytest.mark.parametrize("code", [
    "open(x, 'w')", "open(x, mode='ab')", "p.open('r+')", "p.write_text(x)", "os.replace(a, b)", "os.remove(x)",
    "shutil.rmtree(x)", "picture.save(x)",
])  # fmt: skip
def test_writing_code_is_found(code):
    assert list(writes(ast.parse(code)))
    harmless = "open(x); open(x, 'rb'); values.remove(x); text.replace(a, b); json.dumps(x); save(x)"
    assert not list(writes(ast.parse(harmless)))


DRIVE = """
import json, sys
from pathlib import Path
from audit_hooks import AuditHook
from glance_core.__main__ import main
from glance_core.tiny import LORA_FOLDER
folder, files = Path(sys.argv[1]), sys.argv[2:]
own = [str(LORA_FOLDER / f"glance_tiny_{phase}.safetensors") for phase in ("slow", "fast")]
train = ["train", "--steps", "2", "--judged", "2"]
rollout = ["--batch", "2", "--held-out", "2", "--noises", "1", "--save-every", "1"]
prompts = ["--prompts", f"{folder}/prompts.txt"]
picture = ["--held-out", "0", "--image", f"{folder}/picture.png", "--caption", "a small red star"]
def everything(out):
    answers = [
        main(["inspect", *own]),
        main(["inspect", "--json", *own]),
        *(main(["inspect", file]) for file in files),
        main(["convert", own[0], f"{out}/a.safetensors"]),
        main(["convert", own[1], f"{out}/b.safetensors", "--layout", "diffusers", "--phase", "fast"]),
        main(["sigmas", "--model", "flux"]),
        main([*train, *rollout, *prompts, "--objective", "on_policy", "--out", f"{out}/on_policy"]),
        main([*train, *picture, "--objective", "flow_matching", "--out", f"{out}/flow"]),
    ]
    return answers
hook = AuditHook([folder / "second"])
(folder / "second").mkdir()
first = everything(folder / "first")
hook.watching = True
second = everything(folder / "second")
hook.watching = False
print(json.dumps({"forbidden": hook.forbidden, "seen": hook.seen, "answers": [first, second]}))
"""


def test_commands_do_nothing_forbidden(tmp_path):
    """The commands get good files and harmful ones. Home and current folder must stay empty."""
    import pickle

    import torch
    from PIL import Image

    work, home, here = (tmp_path / name for name in ("work", "home", "here"))
    for each in (work, work / "first", home, here):
        each.mkdir()
    prompts = "a small red star left and a large blue ring on striped black\na large green heart\n"
    (work / "prompts.txt").write_text(prompts, encoding="utf-8")
    Image.new("RGB", (64, 64), "red").save(work / "picture.png")
    (work / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.zeros(1)}, work / "torch.safetensors")
    pack = state(ROOT / "glance_core", ROOT / "nodes")
    environment = os.environ | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/shared")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path / "temp"),
    }
    (tmp_path / "temp").mkdir()
    harmful = [work / f"{name}.safetensors" for name in ("pickle", "torch", "none")]
    command = [sys.executable, "-c", DRIVE, work, *harmful]
    done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["forbidden"] == []
    assert report["answers"][0] == report["answers"][1] == [0, 0, 2, 2, 2, 0, 0, 0, 0, 0]
    assert report["seen"] > 50  # the hook works
    print(f"{report['seen']} events")
    assert state(ROOT / "glance_core", ROOT / "nodes") == pack
    assert state(here) == state(home) == state(tmp_path / "temp") == {}  # torch makes an empty folder there
    assert {Path(path).relative_to(tmp_path).parts[0] for path in state(tmp_path)} == {"work"}
    inputs = {"prompts.txt", "picture.png", "pickle.safetensors", "torch.safetensors"}
    assert {Path(path).relative_to(work).parts[0] for path in state(work)} == {"first", "second", *inputs}


def test_audit_hook_hears_every_forbidden_action(tmp_path):
    code = """
import os, pickle, socket, subprocess, sys
from pathlib import Path
from audit_hooks import AuditHook
folder = Path(sys.argv[1])
(folder / "in").mkdir()
hook = AuditHook([folder / "in"])
hook.allowed = hook.allowed[:1]
for act in (
    lambda: eval("1"),
    lambda: pickle.loads(pickle.dumps(Path)),
    lambda: socket.socket().close(),
    lambda: subprocess.run(["true"]),
    lambda: open(folder / "a", "w").close(),
    lambda: os.mkdir(folder / "b"),
    lambda: os.rename(folder / "b", folder / "in" / "b"),
    lambda: (folder / "in" / "link").symlink_to(folder),
    lambda: (folder / "in" / "link" / "c").touch(),
    lambda: open(folder / "in" / "fine", "w").close(),
    lambda: open(folder / "a").close(),
    lambda: os.remove(folder / "in" / "fine"),
):
    hook.forbidden = []
    hook.watching = True
    act()
    hook.watching = False
    print(len(hook.forbidden) > 0)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/shared")}
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # The link itself lies inside, but a write through it goes outside.
    assert done.stdout.split() == ["True"] * 7 + ["False", "True"] + ["False"] * 3
