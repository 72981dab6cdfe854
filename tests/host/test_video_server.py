"""Video with sound through /prompt of a real server: train a pair, load it, sample; both parts change."""

import json

import pytest
import tiny_models
import torch
from real_server import Server, folder
from safetensors.torch import save_file
from training_graphs import TRAINER, graph, node

NODES = """
import torch
class TestConditioning:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {}), "width": ("INT", {})}}
    def make(self, seed, width):
        return ([[torch.randn((1, 6, width), generator=torch.Generator().manual_seed(seed)), {}]],)
class TestSound:  # ComfyUI's own node needs the sound's VAE for the shape
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"frames": ("INT", {})}}
    def make(self, frames):
        return ({"samples": torch.zeros((1, 8, frames, 16))},)
NODE_CLASS_MAPPINGS = {"TestConditioning": TestConditioning, "TestSound": TestSound}
"""
LATENTS = {
    "ltxav": {
        "4": node("LTXVConcatAVLatent", {"video_latent": ["41", 0], "audio_latent": ["42", 0]}),
        "41": node("EmptyLTXVLatentVideo", {"width": 128, "height": 128, "length": 9, "batch_size": 1}),
        "42": node("TestSound", {"frames": 6}),
    },
    "minimax-h3": {"4": node("EmptyMiniMaxH3LatentAV", {"width": 64, "height": 64, "length": 5})},
}
SHAPES = {"ltxav": [(1, 128, 2, 4, 4), (1, 8, 6, 16)], "minimax-h3": [(1, 24, 2, 4, 4), (1, 32, 2, 8)]}


@pytest.fixture(scope="module")
def server(tmp_path_factory, node_classes):
    base = tmp_path_factory.mktemp("server")
    folder(base)
    (base / "custom_nodes" / "test_inputs.py").write_text(NODES)
    with torch.inference_mode():
        for name in LATENTS:
            weights = tiny_models.build(name).model.diffusion_model.state_dict()
            tensors = {key: value.contiguous() for key, value in weights.items()}
            config = json.dumps({"transformer": tiny_models.tiny(name).config})  # as the official files state theirs
            save_file(tensors, base / "models/diffusion_models" / f"{name}.safetensors", {"config": config})
    running = Server(base)
    yield running
    running.stop()


def inputs_of(name):
    """The nodes of model, prompts and latent."""
    texts = {at: {"seed": int(at), "width": tiny_models.tiny(name).context} for at in ("2", "3")}
    loader = node("UNETLoader", {"unet_name": f"{name}.safetensors", "weight_dtype": "default"})
    return {"1": loader} | {at: node("TestConditioning", text) for at, text in texts.items()} | LATENTS[name]


def training(name):
    options = {"objective": "on_policy", "learning_rate": 0.02, "gradient_checkpointing": True, "checks": 1}
    whole = graph("flux", name=name, slow_steps=2, fast_steps=2, steps=6, **options)
    return {at: whole[at] for at in (*TRAINER, "7")} | inputs_of(name)


def sampling(name, with_pair):
    """Sample on the pair's steps, and save both parts."""
    files = {f"{phase}_lora": f"{name}_{phase}.safetensors" for phase in ("slow", "fast")}
    strengths = {"slow_strength": float(with_pair), "fast_strength": float(with_pair)}
    sampler = graph("flux", slow_steps=2, fast_steps=2)["9"]
    sampler["inputs"]["model"] = ["5", 0]
    parts = {
        "5": node("LoadGlanceLoRA", {"model": ["1", 0]} | files | strengths),
        "9": sampler,
        "10": node("LTXVSeparateAVLatent", {"av_latent": ["9", 0]}),
    }
    saved = {at: node("SaveLatent", {"samples": ["10", i], "filename_prefix": at}) for i, at in ((0, "11"), (1, "12"))}
    return inputs_of(name) | parts | saved


@pytest.mark.parametrize("name", LATENTS)
def test_a_pair_trained_in_a_server_changes_video_and_sound(server, name):
    trained = server.wait(server.queue(training(name)), 300)
    assert trained["status"]["status_str"] == "success", trained["status"]
    assert ", 0 unmatched" in trained["outputs"]["7"]["text"][0]
    runs = [server.saved_latents(sampling(name, with_pair)) for with_pair in (False, True, False)]
    before, ours, after = ([run["11"], run["12"]] for run in runs)
    assert [part.shape for part in ours] == SHAPES[name]
    for base, with_it, again in zip(before, ours, after, strict=True):
        assert with_it.isfinite().all() and torch.equal(base, again)
        assert (with_it - base).norm() > 1e-3 * base.norm()
