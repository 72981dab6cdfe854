"""One real server, driven over HTTP for a while with everything at once: sampling, training, interrupts, bad input. `make soak SECONDS=3600`.

The load is bounded: at most three prompts wait. Afterwards base bits, memory and answers are as at the start.
"""

import os
import random
import time
from collections import Counter

import psutil
import pytest
import torch
from real_server import Server, folder
from safetensors.torch import load_file

SECONDS = float(os.environ.get("GLANCE_SOAK", "120"))
PATIENCE = 300  # seconds for one answer
GROWTH = 100  # MB
PAIRS = {
    "pair": ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors"),
    "broken": ("rubbish.safetensors", "glance_tiny_fast.safetensors"),
}


def sampling(seed, pair=None, size=128, **inputs):
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "glance_tiny_flux.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "GlanceTinyText", "inputs": {"prompt": "a small red star left and a large cyan heart"}},
        "3": {"class_type": "GlanceTinyText", "inputs": {"prompt": ""}},
        "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": size, "height": size, "batch_size": 1}},
        "6": {"class_type": "PhaseSplitSampler", "inputs": {
            "model": ["5", 0] if pair else ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": seed, "cfg": 1.0,
            "sampler_name": "euler", "schedule": "auto", "slow_steps": 3, "fast_steps": 3, "denoise": 1.0} | inputs},
        "7": {"class_type": "SaveLatent", "inputs": {"samples": ["6", 0], "filename_prefix": "soak"}},
    }  # fmt: skip
    if pair:
        strengths = {"slow_strength": 1.0, "fast_strength": 1.0}
        graph["5"] = {"class_type": "LoadGlanceLoRA", "inputs": {"model": ["1", 0], "slow_lora": pair[0], "fast_lora": pair[1]} | strengths}
    return graph


def training(name, steps, seed=0):
    graph = {key: node for key, node in sampling(0).items() if key in "1234"}
    graph["5"] = {"class_type": "TrainGlanceAdapter", "inputs": {
        "model": ["1", 0], "latent": ["4", 0], "positive": ["2", 0], "negative": ["3", 0], "objective": "trajectory", "schedule": "auto",
        "slow_steps": 2, "fast_steps": 3, "steps": steps, "learning_rate": 2e-3, "rank": 4, "alpha": 8.0, "targets": "auto", "optimizer": "auto",
        "gradient_checkpointing": False, "offload": "auto", "cfg": 4.0, "seed": seed, "save_every": 1, "resume": True, "name": name,
        "teacher_steps": "1,9|21,31,41", "batch_size": 2, "teacher_runs": 2, "checks": 1, "preview_every": 0, "keep": "everything"}}  # fmt: skip
    graph["6"] = {"class_type": "PreviewAny", "inputs": {"source": ["5", 4]}}
    return graph


class Soak:
    """The requests of each kind; every one of them has to be answered as it deserves."""

    def __init__(self, server):
        self.server, self.rng = server, random.Random(0)
        self.loras, self.runs = server.base / "models/loras", server.base / "output/glance_training"
        self.asked, self.answered = Counter(), Counter()
        (self.loras / "rubbish.safetensors").write_bytes(b"\0" * 5000)
        self.kinds = [self.queued, self.trained, self.interrupted_training, self.interrupted_sampling, self.rubbish, self.refused]
        self.reference = {name: self.latents(sampling(7, pair)) for name, pair in self.both()}
        for kind in self.kinds:  # what each takes for good, it has taken then
            self.ask(kind)

    def both(self):
        return ("pair", PAIRS["pair"]), ("bare", None)

    def ask(self, kind):
        self.asked[kind.__name__] += 1
        kind()
        self.answered[kind.__name__] += 1
        self.server.call("/history", {"clear": True})

    def done(self, graph):
        return self.server.wait(self.server.queue(graph), PATIENCE)

    def latents(self, graph):
        return self.saved(self.done(graph))

    def saved(self, ended):
        assert ended["status"]["status_str"] == "success", ended["status"]
        (shown,) = ended["outputs"]["7"]["latents"]
        path = self.server.base / "output" / shown["subfolder"] / shown["filename"]
        found = load_file(path)["latent_tensor"]
        path.unlink()
        return found

    def queued(self):
        """Three prompts one behind the other, with a pair and without, on one base; one of them is the reference, whose bits are known."""
        name, pair = self.rng.choice(self.both())
        asked = [sampling(self.rng.randrange(2**32), PAIRS["pair"]), sampling(self.rng.randrange(2**32)), sampling(7, pair)]
        *others, known = [self.server.queue(graph) for graph in asked]
        for each in others:
            assert torch.isfinite(self.saved(self.server.wait(each, PATIENCE))).all()
        assert torch.equal(self.saved(self.server.wait(known, PATIENCE)), self.reference[name])

    def trained(self):
        ended = self.done(training("soak", 2, self.rng.randrange(2**32)))
        assert ended["status"]["status_str"] == "success", ended["status"]
        made = sorted(path.name for path in self.loras.iterdir() if path.name.startswith("soak"))
        assert made == ["soak_fast.safetensors", "soak_slow.safetensors"]
        for name in made:
            (self.loras / name).unlink()

    def interrupted_training(self):
        queued = self.server.queue(training("long", 50_000))
        self.until(lambda: (self.runs / "long.run.safetensors").exists())
        self.interrupt(queued)
        assert sorted(path.name for path in self.runs.iterdir()) == ["long.run.safetensors", "long.teacher.safetensors"]
        for path in self.runs.iterdir():
            path.unlink()

    def interrupted_sampling(self):
        queued = self.server.queue(sampling(1, PAIRS["pair"], 512, slow_steps=10, fast_steps=20))
        self.until(lambda: self.server.call("/queue")[1]["queue_running"])
        time.sleep(self.rng.uniform(0, 0.3))
        self.interrupt(queued)

    def interrupt(self, queued):
        assert self.server.call("/interrupt", {})[0] == 200
        told = [message[0] for message in self.server.wait(queued, PATIENCE)["status"]["messages"]]
        assert "execution_interrupted" in told

    def rubbish(self):
        """A file that is none is told in one sentence, and the queue goes on."""
        ended = self.done(sampling(1, PAIRS["broken"]))
        (error,) = [message[1] for message in ended["status"]["messages"] if message[0] == "execution_error"]
        assert "rubbish.safetensors" in error["exception_message"] and "\n" not in error["exception_message"].strip()

    def refused(self):
        bad = [
            sampling(1, PAIRS["pair"], denoise=7.0),
            sampling(1, ("no_such.safetensors",) * 2),
            training("../up", 2),
            {"1": {}},
            "rubbish",
            None,
        ]
        for graph in bad:
            assert self.server.call("/prompt", {"prompt": graph, "client_id": "soak"})[0] in (400, 500)

    def until(self, true):
        ends = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < ends
            time.sleep(0.05)


@pytest.fixture
def server(tmp_path):
    folder(tmp_path)
    running = Server(tmp_path, "--cache-classic")  # the default keeps every result while there is memory: no growth could be told from it
    yield running
    running.stop()


def resident(server):
    """MB that the server holds when it has let go of its models."""
    server.call("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)
    return psutil.Process(server.process.pid).memory_info().rss / 1e6


def test_a_server_under_mixed_load_is_afterwards_as_at_the_start(server):
    soak = Soak(server)
    start, began = resident(server), time.monotonic()
    while time.monotonic() - began < SECONDS:
        soak.ask(soak.rng.choice(soak.kinds))
    seconds, end = time.monotonic() - began, resident(server)
    for name, pair in soak.both():
        assert torch.equal(soak.latents(sampling(7, pair)), soak.reference[name])
    for kind, asked in soak.asked.items():
        print(f"{kind}: {asked} asked, {soak.answered[kind]} answered")
    print(f"{seconds:.0f} s, lost {soak.asked.total() - soak.answered.total()}, {start:.0f} MB at the start, {end:.0f} MB at the end")
    assert soak.asked == soak.answered
    assert end - start < GROWTH
    assert sorted(path.name for path in soak.loras.iterdir()) == ["rubbish.safetensors"]
    assert list(soak.runs.iterdir()) == [] and not list((server.base / "output").glob("*.latent"))
    assert server.call("/queue")[1] == {"queue_running": [], "queue_pending": []}
