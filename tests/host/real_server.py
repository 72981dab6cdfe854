"""A real ComfyUI server in a process of its own, with this pack among its custom nodes."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

import comfyui
import conftest
from safetensors.torch import load_file

SAMPLERS = ("PhaseSplitSampler", "SamplerCustom")


def folder(base):
    """Make the folders of a server's --base-directory, with a link to the pack."""
    for name in ("custom_nodes", "models/diffusion_models", "models/loras", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "glance").symlink_to(comfyui.PACK, target_is_directory=True)


class Server:
    """ComfyUI in a process of its own on a free port, with its files below `base`.

    Args:
        options: more options of its command line.
    """

    def __init__(self, base, *options):
        self.base = base
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            *(sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(base), "--disable-auto-launch", "--disable-api-nodes"),
            *("--database-url", "sqlite:///:memory:", *options),
        ]
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
        self.log = open(base / "server.log", "wb")  # noqa: SIM115  closed in stop()
        self.process = subprocess.Popen(
            command, cwd=conftest.FOUND, env=os.environ | environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                self.call("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((base / "server.log").read_text()[-3000:])

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def call(self, path, data=None):
        """Return (status, JSON or text) of a request."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text[:1] in b"{[" and text else text.decode(errors="replace")

    def queue(self, graph):
        status, answer = self.call("/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, prompt_id, seconds=120):
        """Return the history of a prompt when it has ended."""
        for _ in range(int(seconds / 0.1)):
            history = self.call(f"/history/{prompt_id}")[1]
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise TimeoutError(prompt_id)

    def run(self, graph):
        """Return the latents that a fresh run saves."""
        (latents,) = self.saved_latents(graph).values()
        return latents

    def saved_latents(self, graph):
        """Return what each SaveLatent of a fresh run saves, by its name. Nothing may come from ComfyUI's cache."""
        self.call("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1.5)
        done = self.wait(self.queue(graph))
        assert done["status"]["status_str"] == "success", done["status"]
        (cached,) = [message[1]["nodes"] for message in done["status"]["messages"] if message[0] == "execution_cached"]
        sampling = {name for name, node in graph.items() if node["class_type"].startswith(SAMPLERS)}
        assert not set(cached) & sampling, "the answer came from the cache"
        found = {at: shown["latents"][0] for at, shown in done["outputs"].items() if "latents" in shown}
        output = self.base / "output"
        paths = {at: output / saved["subfolder"] / saved["filename"] for at, saved in found.items()}
        return {at: load_file(path)["latent_tensor"] for at, path in paths.items()}
