"""A real server: main.py --cpu, the pack in custom_nodes, and graphs over HTTP."""

import json
import subprocess
import sys
import time

import adapters
import pytest
import tiny_models
import torch
from PIL import Image
from real_server import Server, folder
from safetensors.torch import save_file
from scale_scripts import SCRIPTS

CONDITIONING_NODE = """
import torch
class TestConditioning:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 1})}}
    def make(self, seed):
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randn((1, 6, 48), generator=random)
        return ([[tokens, {"pooled_output": torch.randn((1, 32), generator=random), "guidance": 3.5}]],)
NODE_CLASS_MAPPINGS = {"TestConditioning": TestConditioning}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("server")
    folder(base)
    (base / "custom_nodes" / "test_conditioning.py").write_text(CONDITIONING_NODE)
    with torch.inference_mode():
        model = tiny_models.build("flux")
        weights = {key: value.contiguous() for key, value in model.model.diffusion_model.state_dict().items()}
        save_file(weights, base / "models/diffusion_models/tiny_flux.safetensors")
        adapters.save_pair(model, base / "models/loras")
        (base / "models/loras/other").mkdir()
        adapters.save_pair(tiny_models.build("wan"), base / "models/loras/other")
        save_file(weights, base / "models/loras/whole.safetensors")
        torch.save({"a": torch.ones(1)}, base / "models/loras/old.ckpt")
    (base / "models/loras/broken.safetensors").write_bytes(b"\x00\x01\x02")
    page = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
    (base / "models/loras/page.safetensors").write_bytes(page)
    running = Server(base)
    yield running
    running.stop()


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def graph(size=128, slow="slow.safetensors", fast="fast.safetensors", **sampler):
    """Load, sample, save. sampler: other inputs of PhaseSplitSampler."""
    inputs = {
        "model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 1, "cfg": 1.0,
        "sampler_name": "euler", "schedule": "auto", "slow_steps": 5, "fast_steps": 5, "denoise": 1.0,
    }  # fmt: skip
    pair = {"slow_lora": slow, "fast_lora": fast, "slow_strength": 1.0, "fast_strength": 1.0}
    return {
        "1": node("UNETLoader", unet_name="tiny_flux.safetensors", weight_dtype="default"),
        "2": node("LoadGlanceLoRA", model=["1", 0], **pair),
        "3": node("TestConditioning", seed=1),
        "4": node("TestConditioning", seed=2),
        "5": node("EmptySD3LatentImage", width=size, height=size, batch_size=1),
        "7": node("PhaseSplitSampler", **(inputs | sampler)),
        "6": node("SaveLatent", samples=["7", 0], filename_prefix="glance"),
        "8": node("PreviewAny", source=["2", 1]),
    }


def test_graph_runs_and_gives_the_same_latents_again(server):
    first = server.run(graph())
    assert torch.isfinite(first).all()
    assert torch.equal(server.run(graph()), first)
    base = graph()
    base["7"]["inputs"]["model"] = ["1", 0]
    assert not torch.equal(server.run(base), first)
    assert torch.equal(server.run(graph()), first)


def test_scheduler_with_comfyuis_sampler_gives_the_same_latents(server):
    other = graph()
    inputs = other["7"]["inputs"]
    scheduling = ("model", "latent_image", "schedule", "slow_steps", "fast_steps", "denoise")
    sampling = ("model", "positive", "negative", "latent_image", "cfg")
    other["9"] = node("GlanceScheduler", **{key: inputs[key] for key in scheduling})
    other["10"] = node("KSamplerSelect", sampler_name="euler")
    custom = {"add_noise": True, "noise_seed": 1, "sampler": ["10", 0], "sigmas": ["9", 0]}
    other["7"] = node("SamplerCustom", **{key: inputs[key] for key in sampling}, **custom)
    assert torch.equal(server.run(other), server.run(graph()))


def test_interrupt_in_mid_run_leaves_the_next_run_as_it_was(server):
    first = server.run(graph())
    long = server.queue(graph(size=1024, slow_steps=10, fast_steps=27))
    for _ in range(1000):
        if b" 2/37 " in (server.base / "server.log").read_bytes():  # ComfyUI's own progress bar
            break
        time.sleep(0.02)
    assert server.call("/interrupt", {})[0] == 200
    ended = server.wait(long)
    assert "execution_interrupted" in [message[0] for message in ended["status"]["messages"]]
    assert torch.equal(server.run(graph()), first)


@pytest.mark.parametrize(
    "wrong, shown",
    [
        ({"teacher_steps": "1,3"}, "exactly one '|'"),
        ({"denoise": 0.0}, "0.01"),
        ({"slow_steps": 0}, "min of 1"),
        ({"schedule": "sdxl"}, "sdxl"),
        ({"slow": "no_such.safetensors"}, "no_such"),
    ],
)
def test_wrong_value_is_rejected_before_anything_runs(server, wrong, shown):
    only_sampling = graph(**wrong)
    del only_sampling["8"]  # an output that is right would run anyway
    status, answer = server.call("/prompt", {"prompt": only_sampling, "client_id": "x"})
    assert status == 400
    assert shown in json.dumps(answer)
    assert "Traceback" not in json.dumps(answer)


OF_WAN = {"slow": "other/slow.safetensors", "fast": "other/fast.safetensors"}


@pytest.mark.parametrize(
    "wrong, shown",
    [
        (OF_WAN, "is a wan adapter but the model is a Flux (flux)"),
        ({"slow": "broken.safetensors"}, "broken.safetensors: the header claims"),
        ({"slow": "page.safetensors"}, 'page.safetensors: this is a web page ("Sign in"), not a model'),
        (
            {"fast": "whole.safetensors"},
            "it looks like a whole chroma/flux/flux2/hunyuan-video model; put it into models/diffusion_models",
        ),
        (
            {"fast": "old.ckpt"},
            "old.ckpt: this is a pickled checkpoint, which could run any code, so it is not opened",
        ),
        ({"slow_steps": 20}, "slow_steps is 20, but only 10 teacher steps come before Fast"),
        ({"teacher_steps": "1|999"}, "999"),
    ],
)
def test_error_that_only_files_or_model_show_is_one_sentence(server, wrong, shown):
    ended = server.wait(server.queue(graph(**wrong)))
    (error,) = [message[1] for message in ended["status"]["messages"] if message[0] == "execution_error"]
    assert shown in error["exception_message"]
    assert "\n" not in error["exception_message"].strip()


@pytest.mark.parametrize(
    "prompts, printed, code",
    [
        ("a large red star\na small blue ring\na large green heart\n", "3 of 3 graphs done", 0),
        ("a purple cow\n", "cow", 2),
    ],
)
def test_script_spreads_a_file_of_prompts_over_the_servers_that_answer(server, prompts, printed, code, tmp_path):
    (tmp_path / "prompts.txt").write_text(prompts)
    addresses = [f"http://127.0.0.1:{port}" for port in (9, server.port)]  # nothing listens on the first
    command = [
        *(sys.executable, SCRIPTS / "pictures_on_servers.py", SCRIPTS / "glance_tiny_api.json"),
        *(tmp_path / "prompts.txt", "--into", "6.prompt", "--seed", "3.seed", "--out", tmp_path / "out"),
        *(word for address in addresses for word in ("--server", address)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code and printed in done.stdout + done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert f"gone: {addresses[0]}" in done.stderr
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert [path.name[:6] for path in pictures] == [f"{number:05d}_" for number in range(3 if code == 0 else 0)]
    assert len({Image.open(path).tobytes() for path in pictures}) == len(pictures)
