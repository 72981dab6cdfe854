"""What the pack costs before anybody uses it: the time to load it into a running ComfyUI, and what that imports."""

import json
import os
import subprocess
import sys

import comfyui
import pytest

RUNS = 3
# An empty pack loads first: the first pack pays for ComfyUI's reader of pyproject.toml.
LOAD = """
import asyncio, json, socket, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import comfyui
comfyui.boot(comfyui.find())
import nodes, server
empty = Path(sys.argv[2])
empty.mkdir(exist_ok=True)
project = '[project]\\nname = "empty"\\nversion = "1.0.0"\\n[tool.comfy]\\nPublisherId = "empty"\\n'
(empty / "pyproject.toml").write_text(project)
(empty / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\\n")
asyncio.run(nodes.load_custom_node(str(empty)))
def refuse(*arguments, **named):
    raise RuntimeError("the pack used the network or another program while it was loaded")
known, socket.socket.connect, socket.getaddrinfo = set(sys.modules), refuse, refuse
import subprocess, os
subprocess.Popen.__init__, os.system = refuse, refuse
began = time.process_time()
loaded = asyncio.run(nodes.load_custom_node(str(comfyui.PACK)))
seconds = time.process_time() - began
print(json.dumps({"loaded": loaded, "seconds": seconds, "imported": sorted(set(sys.modules) - known)}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Load the pack in fresh processes. Seconds are of the processor, so that other work beside it does not count."""
    empty = tmp_path_factory.mktemp("packs") / "empty"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("bytecode"))
    command = [sys.executable, "-c", LOAD, str(comfyui.PACK / "tests/host"), str(empty)]
    printed = [
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout for _ in range(RUNS)
    ]
    return [json.loads(each.splitlines()[-1]) for each in printed]


def test_pack_loads_in_under_three_tenths_of_a_second_without_network_or_other_programs(runs):
    assert all(run["loaded"] for run in runs)
    assert min(run["seconds"] for run in runs) < 0.3, [run["seconds"] for run in runs]


def test_loading_the_pack_imports_only_its_own_modules(runs):
    own = str(comfyui.PACK).replace(".", "_x_")
    foreign = [name for name in runs[0]["imported"] if not name.startswith(own)]
    assert foreign == []
