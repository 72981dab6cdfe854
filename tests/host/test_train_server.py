"""Training through /prompt in a real server, on the embedded model and on tiny FLUX and Qwen-Image files; the files load everywhere."""

import io
import time
import urllib.request
from datetime import datetime

import comfyui
import pytest
import tiny
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from real_server import Server, folder
from safetensors.torch import load_file, save_file

from glance_core import tiny as embedded
from glance_core.flux_names import diffusers_slots
from glance_core.lora_file import check_pair, read_adapter

NODES = """
import torch
import comfy.model_detection as detection
inner = detection.detect_unet_config
def detect(state, prefix, *args, **kwargs):
    # the host does not read a Qwen-Image's width off its weights: every published one is as wide
    config = inner(state, prefix, *args, **kwargs)
    if config and config.get("image_model") == "qwen_image":
        width = state[prefix + "txt_in.weight"].shape
        config.update(num_attention_heads=width[0] // 128, joint_attention_dim=width[1])
    return config
detection.detect_unet_config = detect
class TestConditioning:
    RETURN_TYPES = ("CONDITIONING",); FUNCTION = "make"; CATEGORY = "test"
    @classmethod
    def INPUT_TYPES(cls): return {"required": {"seed": ("INT", {"default": 1}), "pooled": ("BOOLEAN", {"default": True})}}
    def make(self, seed, pooled):
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randn((1, 6, 48), generator=random)
        return ([[tokens, {"pooled_output": torch.randn((1, 32), generator=random), "guidance": 3.5} if pooled else {}]],)
NODE_CLASS_MAPPINGS = {"TestConditioning": TestConditioning}
"""
FILES = {"embedded": "glance_tiny_flux.safetensors", "flux": "tiny_flux.safetensors", "qwen-image": "tiny_qwen.safetensors"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("server")
    folder(base)
    (base / "custom_nodes" / "test_conditioning.py").write_text(NODES)
    with torch.inference_mode():
        for name in ("flux", "qwen-image"):
            weights = tiny.build(name).model.diffusion_model.state_dict()
            save_file({key: value.contiguous() for key, value in weights.items()}, base / "models/diffusion_models" / FILES[name])
    running = Server(base)
    yield running
    running.stop()


def graph(model, **inputs):
    if model == "embedded":
        texts = [
            {"class_type": "GlanceTinyText", "inputs": {"prompt": prompt}}
            for prompt in ("a small red star left and a large cyan heart", "")
        ]
        of_model = {"cfg": 4.0, "teacher_steps": "1,9|21,31,41", "batch_size": 2, "teacher_runs": 2, "checks": 1}
    else:
        texts = [{"class_type": "TestConditioning", "inputs": {"seed": seed, "pooled": model == "flux"}} for seed in (1, 2)]
        of_model = {"cfg": 1.0}
    train = {
        "model": ["1", 0], "latent": ["4", 0], "positive": ["2", 0], "negative": ["3", 0], "objective": "trajectory", "schedule": "auto",
        "slow_steps": 2, "fast_steps": 3, "steps": 10, "learning_rate": 2e-3, "rank": 4, "alpha": 8.0, "targets": "auto", "optimizer": "auto",
        "gradient_checkpointing": model != "embedded", "offload": "auto", "seed": 0, "save_every": 5, "resume": True, "name": model,
        "checks": 2, "teacher_runs": 4, "preview_every": 5, "keep": "everything",
    }  # fmt: skip
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": FILES[model], "weight_dtype": "default"}},
        "2": texts[0], "3": texts[1],
        "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {"class_type": "TrainGlanceAdapter", "inputs": train | of_model | inputs},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 4]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["5", 3]}},
        "8": {"class_type": "PhaseSplitSampler", "inputs": {
            "model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1, "cfg": 1.0, "sampler_name": "euler",
            "schedule": "auto", "slow_steps": 2, "fast_steps": 3, "denoise": 1.0}},
        "9": {"class_type": "SaveLatent", "inputs": {"samples": ["8", 0], "filename_prefix": "glance"}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(server):
    """Each model's (Slow file, Fast file), trained once; the graph's outputs."""
    made = {}
    for name in FILES:
        done = server.wait(server.queue(graph(name)), 300)
        assert done["status"]["status_str"] == "success", done["status"]
        made[name] = [server.base / "models/loras" / f"{name}_{phase}.safetensors" for phase in ("slow", "fast")], done["outputs"]
    return made


@pytest.fixture
def host_model(request, node_classes):
    name = request.param
    if name != "embedded":
        return tiny.build(name)
    import nodes

    return nodes.UNETLoader().load_unet(FILES["embedded"], "default")[0]


def test_training_reports_shows_its_losses_and_keeps_nothing_unfinished(server, trained):
    for files, outputs in trained.values():
        (report,) = outputs["6"]["text"]
        assert "PSNR to the teacher" in report and ", 0 unmatched" in report
        (image,) = outputs["7"]["images"]
        assert (server.base / "temp" / image["filename"]).stat().st_size > 5000
        assert check_pair(*map(read_adapter, files)) == ()
    assert list((server.base / "output/glance_training").iterdir()) == []


def test_the_servers_own_pages_show_title_base_and_picture_of_a_trained_pair(server, trained):
    architectures = {"embedded": "glance-tiny/lora", "flux": "flux-1-dev/lora", "qwen-image": "qwen-image/lora"}
    listed = {each["name"]: each["pathIndex"] for each in server.call("/experiment/models/loras")[1]}
    for name, (files, outputs) in trained.items():
        for file in files:
            status, told = server.call(f"/view_metadata/loras?filename={file.name}")
            assert status == 200
            assert (told["modelspec.title"], told["modelspec.architecture"]) == (file.stem, architectures[name])
            assert told["modelspec.resolution"] == "128x128" and datetime.fromisoformat(told["modelspec.date"].replace("Z", "+00:00"))
            address = f"http://127.0.0.1:{server.port}/experiment/models/preview/loras/{listed[file.name]}/{file.name}"
            with urllib.request.urlopen(address, timeout=30) as answer:
                given = answer.read()
            as_the_server_sends = io.BytesIO()
            Image.open(file.with_suffix(".preview.png")).save(as_the_server_sends, "WEBP")
            assert given == as_the_server_sends.getvalue()
            assert str(file.with_suffix(".preview.png")) in outputs["6"]["text"][0]


@pytest.mark.parametrize("host_model", FILES, indirect=True)
def test_every_key_is_found_by_the_packs_loader_and_the_hosts_own(host_model, request, trained, caplog):
    import comfy.sd

    files, _ = trained[request.node.callspec.params["host_model"]]
    _, report = comfyui.pack_module("nodes.loader").load_pair(host_model, *map(str, files))
    assert report.count(", 0 unmatched") == 2 and "assumed" not in report
    for file in files:
        caplog.clear()
        patched = comfy.sd.load_lora_for_models(host_model, None, load_file(file), 1.0, 0)[0]
        assert "not loaded" not in caplog.text
        slots = {key.removesuffix(".lora_A.weight") for key in load_file(file) if key.endswith(".lora_A.weight")}
        assert sum(len(patches) for patches in patched.patches.values()) == len(slots)


@pytest.mark.parametrize("name", FILES)
def test_diffusers_loads_every_key_with_its_alpha(name, trained):
    with torch.inference_mode(False):
        pipeline = diffusers_pipeline(name)
        for file, phase in zip(trained[name][0], ("slow", "fast"), strict=True):
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=phase)
        adapter = {phase: read_adapter(file) for file, phase in zip(trained[name][0], ("slow", "fast"), strict=True)}
        layers = {key: module for key, module in pipeline.transformer.named_modules() if hasattr(module, "lora_A")}
        assert layers.keys() == adapter["slow"].factors.keys()
        moved = {"slow": 0, "fast": 0}
        for key, layer in layers.items():
            for phase, read in adapter.items():
                factor = read.factors[key]
                moved[phase] += bool(factor.up.any())
                assert torch.allclose(layer.get_delta_weight(phase), 2.0 * factor.up @ factor.down, atol=1e-6)  # alpha 8 / rank 4

        unused = 3 if name == "qwen-image" else 0  # its last block's text stream reaches no picture, in the host and in diffusers alike
        assert set(moved.values()) == {len(layers) - unused}


def diffusers_pipeline(name):
    """The same architecture in diffusers, at the same sizes, in a pipeline without text encoders."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    if name == "qwen-image":
        transformer = QwenImageTransformer2DModel(num_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=48)
        vae = AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 1], num_res_blocks=1, attn_scales=[], temperal_downsample=[False])
        return QwenImagePipeline(scheduler, vae, None, None, transformer)
    depth, single, text = (2, 2, 48) if name == "flux" else (2, 6, embedded.TEXT_WIDTH)
    transformer = FluxTransformer2DModel(
        num_layers=depth, num_single_layers=single, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=text,
        pooled_projection_dim=32 if name == "flux" else text, axes_dims_rope=(16, 56, 56), in_channels=64, guidance_embeds=name == "flux",
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, latent_channels=16)
    return FluxPipeline(scheduler, vae, None, None, None, None, transformer)


def test_an_interrupt_keeps_a_checkpoint_and_the_next_run_goes_on(server):
    long = graph("flux", steps=2000, name="long", save_every=1)
    queued = server.queue(long)
    kept = server.base / "output/glance_training/long.run.safetensors"
    for _ in range(600):
        if kept.exists():
            break
        time.sleep(0.1)
    assert server.call("/interrupt", {})[0] == 200
    ended = server.wait(queued)
    assert "execution_interrupted" in [message[0] for message in ended["status"]["messages"]]
    done = len(load_file(kept)["history/losses"])
    assert done > 0
    assert not (server.base / "models/loras/long_slow.safetensors").exists()
    again = server.queue(long)
    for _ in range(300):
        if len(load_file(kept)["history/losses"]) > done:
            break
        time.sleep(0.1)
    server.call("/interrupt", {})
    server.wait(again)
    assert len(load_file(kept)["history/losses"]) > done


def test_a_picture_with_its_caption_is_trained_as_the_paper_has_it(server):
    picture = graph("embedded", name="picture", objective="flow_matching", steps=5)
    picture["10"] = {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 128, "batch_size": 1, "color": 0xC03020}}
    picture["11"] = {"class_type": "GlanceTinyVAE", "inputs": {}}
    picture["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["11", 0]}}
    done = server.wait(server.queue(picture), 300)
    assert done["status"]["status_str"] == "success", done["status"]
    slow = read_adapter(server.base / "models/loras/picture_slow.safetensors")
    assert slow.trained.objective == "flow_matching" and slow.trained.image_sha256 is not None


@pytest.mark.parametrize("wrong, shown", [
    ({"name": "../up"}, "is no file name"), ({"teacher_steps": "1,3"}, "exactly one '|'"), ({"rank": -1}, "-1"), ({"objective": "magic"}, "magic"),
])  # fmt: skip
def test_a_wrong_value_is_refused_before_anything_runs(server, wrong, shown):
    bad = {key: value for key, value in graph("flux", **wrong).items() if key in "12345"}
    status, answer = server.call("/prompt", {"prompt": bad, "client_id": "x"})
    assert status == 400 and shown in str(answer)


@pytest.mark.parametrize("name", ["flux", "embedded"])
def test_flux_names_are_those_of_the_hosts_own_map(name, node_classes):
    import comfy.utils

    import nodes

    model = (tiny.build("flux") if name == "flux" else nodes.UNETLoader().load_unet(FILES["embedded"], "default")[0]).model
    known = comfy.utils.flux_to_diffusers(model.model_config.unet_config, output_prefix="")
    ours = diffusers_slots(model.diffusion_model)
    for key, slot in ours.items():
        theirs = known[f"{key}.weight"]
        weight, rows = (theirs, (0, 0, slot.outside)) if isinstance(theirs, str) else theirs[:2]
        assert (weight, rows) == (f"{slot.module}.weight", (0, slot.start, slot.outside)), key
    covered = {}
    for slot in ours.values():
        covered[slot.module] = covered.get(slot.module, 0) + slot.outside
    linears = {key: module.out_features for key, module in model.diffusion_model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert covered == {key: width for key, width in linears.items() if "_blocks." in key}
