"""Both nodes with two models through /prompt of a real server: one run, the same samples, and each model matters."""

import pack
import pytest
import test_video_server
import tiny_models
import torch
import two_models
from real_server import Server, folder
from safetensors.torch import save_file
from training_graphs import node

STEPS = {"slow_steps": 2, "fast_steps": 2}


@pytest.fixture(scope="module")
def models(node_classes):
    with torch.inference_mode():
        return two_models.both()


@pytest.fixture(scope="module")
def server(tmp_path_factory, models):
    base = tmp_path_factory.mktemp("server")
    folder(base)
    (base / "custom_nodes" / "test_inputs.py").write_text(test_video_server.NODES)
    for each, model in zip(("high", "low"), models, strict=True):
        weights = model.model.diffusion_model.state_dict()
        tensors = {key: value.contiguous() for key, value in weights.items()}
        save_file(tensors, base / "models/diffusion_models" / f"{each}.safetensors")
    running = Server(base)
    yield running
    running.stop()


def inputs():
    """The nodes of models, prompts and latent."""
    found = {
        at: node("UNETLoader", {"unet_name": f"{name}.safetensors", "weight_dtype": "default"})
        for at, name in (("1", "high"), ("2", "low"))
    }
    width = tiny_models.tiny("wan").context
    found |= {at: node("TestConditioning", {"seed": int(at), "width": width}) for at in ("3", "4")}
    latent = {"width": 64, "height": 64, "length": 5, "batch_size": 1}
    return found | {"5": node("EmptyHunyuanLatentVideo", latent)}


SCENE = {"model": ["1", 0], "late_model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0]}


def phase_split(**changed):
    options = SCENE | {"latent_image": ["5", 0], "seed": 3, "cfg": 3.0, "late_cfg": 1.0, "denoise": 1.0}
    options |= STEPS | {"sampler_name": "res_multistep", "schedule": "auto"} | changed
    saved = node("SaveLatent", {"samples": ["10", 0], "filename_prefix": "two"})
    return inputs() | {"10": node("PhaseSplitSampler", options), "20": saved}


def guided():
    steps = {"model": ["1", 0], "latent_image": ["5", 0], "schedule": "auto", "denoise": 1.0} | STEPS
    guider = SCENE | {"cfg": 3.0, "late_cfg": 1.0, "boundary": 2.0, "unit": "steps"}
    sampled = {"noise": ["7", 0], "guider": ["8", 0], "sampler": ["9", 0], "sigmas": ["6", 0], "latent_image": ["5", 0]}
    return inputs() | {
        "6": node("GlanceScheduler", steps),
        "7": node("RandomNoise", {"noise_seed": 3}),
        "8": node("GlanceTwoModelGuider", guider),
        "9": node("KSamplerSelect", {"sampler_name": "res_multistep"}),
        "10": node("SamplerCustomAdvanced", sampled),
        "20": node("SaveLatent", {"samples": ["10", 0], "filename_prefix": "two"}),
    }


def test_both_nodes_sample_with_two_models_in_a_real_server(server, models):
    ours, with_guider = server.run(phase_split()), server.run(guided())
    assert ours.isfinite().all() and torch.equal(ours, with_guider)
    swapped = server.run(phase_split(model=["2", 0], late_model=["1", 0]))
    one = server.run(phase_split(late_model=["1", 0]))
    assert min(pack.relative(swapped, ours), pack.relative(one, ours)) > 1e-2
    log = (server.base / "server.log").read_text()
    assert log.count("Glance: 2 model calls of model, 2 of late_model from sigma") == 4
