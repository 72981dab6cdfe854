"""One real server, driven over HTTP with everything at once: sampling, training, interrupts, bad input.

The load is bounded: at most three prompts wait. Afterwards the bits of the base, memory and answers are as at the
start. `make soak SECONDS=3600` runs it for an hour.
"""

import os
import random
import time
from collections import Counter

import psutil
import pytest
import torch
import training_graphs
from real_server import Server, folder
from safetensors.torch import load_file
from training_graphs import TRAINER, node

SECONDS = float(os.environ.get("GLANCE_SOAK", "60"))
PATIENCE = 300  # seconds for one answer
GROWTH = 100  # MB
PAIR = ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")
BROKEN_PAIR = ("rubbish.safetensors", "glance_tiny_fast.safetensors")
FADING = {"lora_name": PAIR[1], "strength": 0.8, "when": "custom", "strengths": "1, 0.5, 0"}
REFERENCES = {
    "pair": {"pair": PAIR},
    "base": {},
    "by step": {"lora": FADING},
    "pair by step": {"pair": PAIR, "lora": FADING},
    "two models": {"pair": PAIR, "lora": FADING, "late": True},
}
TRAINING = {"save_every": 1, "preview_every": 0}


def sampling(seed, pair=None, size=128, lora=None, late=False, **inputs):
    """A graph that samples and saves.

    lora: inputs of LoadPhaseLoRA. late: whether a second model, with that LoRA alone, takes the Fast steps.
    inputs: other inputs of PhaseSplitSampler.
    """
    with_pair, loaded = ["5", 0] if pair else ["1", 0], {}
    if lora:
        loaded["8"] = node("LoadPhaseLoRA", {"start": 0.0, "end": 2.0, "unit": "steps"} | lora)
        loaded["8"]["inputs"]["model"] = ["9", 0] if late else with_pair
    if late:
        loaded["9"] = node("UNETLoader", {"unet_name": "glance_tiny_flux.safetensors", "weight_dtype": "default"})
        inputs["late_model"] = ["8", 0]
    sampler = {
        "model": ["8", 0] if lora and not late else with_pair,
        "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
        "seed": seed, "cfg": 1.0, "sampler_name": "euler", "schedule": "auto", "slow_steps": 3, "fast_steps": 3,
        "denoise": 1.0,
    }  # fmt: skip
    graph = {
        "1": node("UNETLoader", {"unet_name": "glance_tiny_flux.safetensors", "weight_dtype": "default"}),
        "2": node("GlanceTinyText", {"prompt": "a small red star left and a large cyan heart"}),
        "3": node("GlanceTinyText", {"prompt": ""}),
        "4": node("EmptySD3LatentImage", {"width": size, "height": size, "batch_size": 1}),
        "6": node("PhaseSplitSampler", sampler | inputs),
        "7": node("SaveLatent", {"samples": ["6", 0], "filename_prefix": "soak"}),
    }
    if pair:
        files = {"slow_lora": pair[0], "fast_lora": pair[1]}
        strengths = {"slow_strength": 1.0, "fast_strength": 1.0}
        graph["5"] = node("LoadGlanceLoRA", {"model": ["1", 0]} | files | strengths)
    return graph | loaded


def training(name, steps, seed=0):
    """A graph that trains a pair and shows its report."""
    graph = training_graphs.graph("embedded", name=name, steps=steps, seed=seed, **TRAINING)
    return {key: graph[key] for key in (*TRAINER, "7")}


class Soak:
    """The requests of each kind, each with the answer that it must get."""

    def __init__(self, server):
        self.server, self.rng = server, random.Random(0)
        self.loras, self.runs = server.base / "models/loras", server.base / "output/glance_training"
        self.asked, self.answered = Counter(), Counter()
        (self.loras / "rubbish.safetensors").write_bytes(b"\0" * 5000)
        self.kinds = [
            self.queued,
            self.trained,
            self.interrupted_training,
            self.interrupted_sampling,
            self.rubbish,
            self.rejected,
        ]
        self.references = {name: self.latents(sampling(7, **given)) for name, given in REFERENCES.items()}
        for kind in self.kinds:  # the first request of a kind takes memory that is kept
            self.ask(kind)

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
        """Three prompts in a row on one base, with a pair and without. The bits of the last one are known."""
        name, given = self.rng.choice(list(REFERENCES.items()))
        unknown = [sampling(self.rng.randrange(2**32), PAIR), sampling(self.rng.randrange(2**32))]
        *others, known = [self.server.queue(graph) for graph in (*unknown, sampling(7, **given))]
        for each in others:
            assert torch.isfinite(self.saved(self.server.wait(each, PATIENCE))).all()
        assert torch.equal(self.saved(self.server.wait(known, PATIENCE)), self.references[name])

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
        given = self.rng.choice([each for each in REFERENCES.values() if "pair" in each])
        queued = self.server.queue(sampling(1, size=512, slow_steps=10, fast_steps=20, **given))
        self.until(lambda: self.server.call("/queue")[1]["queue_running"])
        time.sleep(self.rng.uniform(0, 0.3))
        self.interrupt(queued)

    def interrupt(self, queued):
        assert self.server.call("/interrupt", {})[0] == 200
        messages = self.server.wait(queued, PATIENCE)["status"]["messages"]
        assert "execution_interrupted" in [message[0] for message in messages]

    def rubbish(self):
        """A broken file is named in one sentence, and the queue continues."""
        ended = self.done(sampling(1, BROKEN_PAIR))
        (error,) = [message[1] for message in ended["status"]["messages"] if message[0] == "execution_error"]
        assert "rubbish.safetensors" in error["exception_message"] and "\n" not in error["exception_message"].strip()

    def rejected(self):
        bad = [
            sampling(1, PAIR, denoise=7.0),
            sampling(1, ("no_such.safetensors",) * 2),
            training("../up", 2),
            {"1": {}},
            "rubbish",
            None,
        ]
        for graph in bad:
            assert self.server.call("/prompt", {"prompt": graph, "client_id": "soak"})[0] in (400, 500)

    def until(self, condition):
        ends = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < ends
            time.sleep(0.05)


@pytest.fixture
def server(tmp_path):
    folder(tmp_path)
    running = Server(tmp_path, "--cache-classic")  # the default cache keeps every result, which would look like a leak
    yield running
    running.stop()


def resident(server):
    """MB that the server holds after it unloaded its models."""
    server.call("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)
    return psutil.Process(server.process.pid).memory_info().rss / 1e6


def test_server_under_mixed_load_ends_as_it_started(server):
    soak = Soak(server)
    start, began = resident(server), time.monotonic()
    while time.monotonic() - began < SECONDS:
        soak.ask(soak.rng.choice(soak.kinds))
    seconds, end = time.monotonic() - began, resident(server)
    for name, given in REFERENCES.items():
        assert torch.equal(soak.latents(sampling(7, **given)), soak.references[name])
    for kind, asked in soak.asked.items():
        print(f"{kind}: {asked} asked, {soak.answered[kind]} answered")
    lost = soak.asked.total() - soak.answered.total()
    print(f"{seconds:.0f} s, lost {lost}, {start:.0f} MB at the start, {end:.0f} MB at the end")
    assert soak.asked == soak.answered
    assert end - start < GROWTH
    assert sorted(path.name for path in soak.loras.iterdir()) == ["rubbish.safetensors"]
    assert list(soak.runs.iterdir()) == [] and not list((server.base / "output").glob("*.latent"))
    assert server.call("/queue")[1] == {"queue_running": [], "queue_pending": []}
