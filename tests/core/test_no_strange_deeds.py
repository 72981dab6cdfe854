"""No code path unpickles, evaluates, opens a network connection, starts a program, or writes where it was not told to.

What is shipped is read (its syntax trees), and what runs is watched (`tests/shared/deeds.py`).
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deeds import state

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [ROOT / "__init__.py", *sorted((ROOT / "glance_core").rglob("*.py")), *sorted((ROOT / "nodes").rglob("*.py"))]

# Modules that serve for nothing but such deeds, and single functions of others.
MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "dbm", "marshal", "yaml", "code", "codeop", "runpy", "socket",
    "socketserver", "ssl", "select", "selectors", "asyncio", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "websockets", "ftplib", "smtplib",
    "telnetlib", "xmlrpc", "webbrowser", "huggingface_hub", "subprocess", "pty", "multiprocessing", "torch.hub", "torch.distributed", "torch.multiprocessing",
    "torch.package", "torch.utils.model_zoo", "torch.utils.cpp_extension", "zipfile", "tarfile", "importlib.import_module",
}  # fmt: skip
FUNCTIONS = {
    "eval", "exec", "compile", "__import__", "breakpoint", "input", "globals", "torch.load", "torch.save", "torch.jit.load", "torch.export.load", "numpy.load",
    "numpy.fromfile", "numpy.loadtxt", "os.system", "os.popen", "os.fork", "os.forkpty", "os.startfile", "os.umask", "os.putenv",
}  # fmt: skip
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
# The one program that makes the embedded model anew, on a developer's demand: its workers speak with one another, on this machine alone.
EXCEPTIONS = {"glance_core/tiny/train.py": {"torch.distributed", "torch.multiprocessing.spawn.start_processes"}}
# Where files are written, made or removed. Whoever adds to it says why; all but these go through `tensor_file`.
WRITERS = {
    "glance_core/tensor_file.py",  # adapters, previews, checkpoints: atomically
    "glance_core/file_lock.py",  # the lock of a training, gone with it
    "glance_core/lora_write.py",  # makes the folder that was asked for
    "glance_core/run_files.py",  # removes finished runs and what kills left
    "glance_core/pictures.py",  # the pictures of the demo
    "glance_core/demo.py",
    "glance_core/tiny/train.py",  # its log
    "nodes/training_run.py",  # a picture into memory, for `tensor_file` to write
}
WRITES = {
    "write_text", "write_bytes", "mkdir", "makedirs", "touch", "unlink", "rmdir", "rmtree", "symlink_to", "hardlink_to", "symlink", "link", "rename", "renames",
    "remove", "removedirs", "truncate", "chmod", "chown", "utime", "copyfile", "copytree", "copy2", "move", "mkdtemp", "mkstemp", "TemporaryFile",
    "NamedTemporaryFile", "TemporaryDirectory", "save_file", "tofile", "savefig", "fdopen",
}  # fmt: skip
OF_OTHERS = {
    "link",
    "remove",
    "rename",
    "move",
    "truncate",
    "copy2",
}  # of lists and patchers too: theirs only where they are called on these
FILES = {"os", "shutil", "path"}


def names_in(tree):
    """Every dotted name that is used, as it was imported, with its node."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = alias.name if alias.asname else alias.name.partition(".")[0]
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


def strange(tree):
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
        told = [
            *(a.value for a in node.args if isinstance(a, ast.Constant)),
            *(k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)),
        ]
        opened = name == "open" and any(isinstance(mode, str) and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in told)
        saved = name == "save" and isinstance(function, ast.Attribute)  # Pillow's
        replaced = name == "replace" and on == "os"
        if opened or saved or replaced or (name in WRITES and (name not in OF_OTHERS or on in FILES)):
            yield name, node.lineno


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_shipped_names_nothing_that_unpickles_evaluates_connects_or_starts(path):
    where = path.relative_to(ROOT).as_posix()
    found = {(name, line) for name, line in strange(parsed(path)) if not name.startswith(tuple(EXCEPTIONS.get(where, ["\0"])))}
    assert not found
    if where not in WRITERS:
        assert not list(writes(parsed(path)))


@pytest.mark.parametrize("code", [
    "import pickle", "from pickle import loads", "import torch as t\nt.load(x)", "from torch import load", "eval(x)", "f = exec", "import urllib.request as u",
    "from os import system", "import os\nos.execv(x, y)", "import numpy as np\nnp.load(x)", "from torch.hub import load", "import torch\ntorch.hub.load(x)",
    "def f():\n    from huggingface_hub import hf_hub_download", "__import__('pickle')", "import importlib\nimportlib.import_module(x)", "import os as o\no.umask(0)",
])  # fmt: skip
def test_the_reading_finds_what_it_looks_for(code):
    assert list(strange(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "open(x, 'w')",
        "open(x, mode='ab')",
        "p.open('r+')",
        "p.write_text(x)",
        "os.replace(a, b)",
        "os.remove(x)",
        "shutil.rmtree(x)",
        "picture.save(x)",
    ],
)
def test_the_reading_finds_what_writes(code):
    assert list(writes(ast.parse(code)))
    assert not list(writes(ast.parse("open(x); open(x, 'rb'); values.remove(x); text.replace(a, b); json.dumps(x); save(x)")))


DRIVE = """
import json, sys
from pathlib import Path
from deeds import Deeds
from glance_core.__main__ import main
from glance_core.tiny import LORA_FOLDER
folder, files = Path(sys.argv[1]), sys.argv[2:]
own = [str(LORA_FOLDER / f"glance_tiny_{phase}.safetensors") for phase in ("slow", "fast")]
train = ["train", "--steps", "2", "--batch", "2", "--judged", "2", "--held-out", "2", "--noises", "1", "--save-every", "1", "--prompts", str(folder / "prompts.txt")]
def everything(out):
    answers = [
        main(["inspect", *own]),
        main(["inspect", "--json", *own]),
        *(main(["inspect", file]) for file in files),
        main(["convert", own[0], f"{out}/a.safetensors"]),
        main(["convert", own[1], f"{out}/b.safetensors", "--layout", "diffusers", "--phase", "fast"]),
        main(["ladder", "--model", "flux"]),
        main([*train, "--objective", "aimed", "--out", f"{out}/aimed"]),
        main(["train", "--steps", "2", "--judged", "2", "--held-out", "0", "--objective", "flow_matching", "--image", str(folder / "picture.png"), "--caption",
              "a small red star", "--out", f"{out}/flow"]),
    ]
    return answers
deeds = Deeds([folder / "second"])
(folder / "second").mkdir()
first = everything(folder / "first")
deeds.watching = True
second = everything(folder / "second")
deeds.watching = False
print(json.dumps({"strange": deeds.strange, "seen": deeds.seen, "answers": [first, second]}))
"""


def test_reading_converting_training_and_painting_do_nothing_strange(tmp_path):
    """With a home and a current folder that must stay empty, on good files and on harmful ones."""
    import pickle

    import torch
    from PIL import Image

    work, home, here = (tmp_path / name for name in ("work", "home", "here"))
    for each in (work, work / "first", home, here):
        each.mkdir()
    (work / "prompts.txt").write_text(
        "a small red star left and a large blue ring on striped black\na large green heart\n", encoding="utf-8"
    )
    Image.new("RGB", (64, 64), "red").save(work / "picture.png")
    (work / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.zeros(1)}, work / "torch.safetensors")
    pack = state(ROOT / "glance_core", ROOT / "nodes")
    environment = os.environ | {
        "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/shared")]),
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    (tmp_path / "temp").mkdir()
    environment["TMPDIR"] = str(tmp_path / "temp")
    command = [sys.executable, "-c", DRIVE, work, work / "pickle.safetensors", work / "torch.safetensors", work / "none.safetensors"]
    done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["strange"] == []
    assert told["answers"][0] == told["answers"][1] == [0, 0, 2, 2, 2, 0, 0, 0, 0, 0]
    assert told["seen"] > 50  # the hook was at work
    print(f"{told['seen']} events")
    assert state(ROOT / "glance_core", ROOT / "nodes") == pack
    assert state(here) == state(home) == state(tmp_path / "temp") == {}  # torch makes an empty folder there
    assert {Path(path).relative_to(tmp_path).parts[0] for path in state(tmp_path)} == {"work"}
    assert {Path(path).relative_to(work).parts[0] for path in state(work)} == {
        "first",
        "second",
        "prompts.txt",
        "picture.png",
        "pickle.safetensors",
        "torch.safetensors",
    }


def test_the_hook_hears_what_it_is_to_hear(tmp_path):
    code = """
import os, pickle, socket, subprocess, sys
from pathlib import Path
from deeds import Deeds
folder = Path(sys.argv[1])
(folder / "in").mkdir()
deeds = Deeds([folder / "in"])
deeds.allowed = deeds.allowed[:1]
for deed in (
    lambda: eval("1"), lambda: pickle.loads(pickle.dumps(Path)), lambda: socket.socket().close(), lambda: subprocess.run(["true"]), lambda: open(folder / "a", "w").close(),
    lambda: os.mkdir(folder / "b"), lambda: os.rename(folder / "b", folder / "in" / "b"), lambda: (folder / "in" / "link").symlink_to(folder), lambda: (folder / "in" / "link" / "c").touch(),
    lambda: open(folder / "in" / "fine", "w").close(), lambda: open(folder / "a").close(), lambda: os.remove(folder / "in" / "fine"),
):
    deeds.strange = []
    deeds.watching = True
    deed()
    deeds.watching = False
    print(len(deeds.strange) > 0)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/shared")}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 7 + ["False", "True"] + ["False"] * 3  # a link is made inside, and written through outside
