"""Training through /prompt of a real server, on the embedded model and on tiny FLUX and Qwen-Image files."""

import io
import time
import urllib.request
from datetime import datetime

import comfyui
import diffusers_pipelines
import pytest
import tiny_flux
import tiny_models
import torch
from PIL import Image
from real_server import Server, folder
from safetensors.torch import load_file, save_file
from training_graphs import FILES, NODES, TRAINER, graph, node

from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter

PHASES = ("slow", "fast")
MODELSPEC = {"embedded": "glance-tiny/lora", "flux": "flux-1-dev/lora", "qwen-image": "qwen-image/lora"}


@pytest.fixture(scope="module")
def server(tmp_path_factory, node_classes):
    base = tmp_path_factory.mktemp("server")
    folder(base)
    (base / "custom_nodes" / "test_conditioning.py").write_text(NODES)
    with torch.inference_mode():
        for name in ("flux", "qwen-image"):
            weights = tiny_models.build(name).model.diffusion_model.state_dict()
            tensors = {key: value.contiguous() for key, value in weights.items()}
            save_file(tensors, base / "models/diffusion_models" / FILES[name])
    running = Server(base)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def trained(server):
    """Each model's (Slow file, Fast file), trained once, and the outputs of the graph."""
    made = {}
    for name in FILES:
        done = server.wait(server.queue(graph(name)), 300)
        assert done["status"]["status_str"] == "success", done["status"]
        files = [server.base / "models/loras" / f"{name}_{phase}.safetensors" for phase in PHASES]
        made[name] = (files, done["outputs"])
    return made


@pytest.fixture
def host_model(request, node_classes):
    name = request.param
    return tiny_flux.load() if name == "embedded" else tiny_models.build(name)


def test_training_reports_and_shows_its_losses_and_leaves_no_unfinished_run(server, trained):
    for files, outputs in trained.values():
        (report,) = outputs["7"]["text"]
        assert "PSNR to the teacher" in report and ", 0 unmatched" in report
        (image,) = outputs["8"]["images"]
        assert (server.base / "temp" / image["filename"]).stat().st_size > 5000
        assert check_pair(*map(read_adapter, files)) == ()
    assert list((server.base / "output/glance_training").iterdir()) == []


def test_the_servers_pages_show_title_base_model_and_picture_of_a_trained_pair(server, trained):
    listed = {each["name"]: each["pathIndex"] for each in server.call("/experiment/models/loras")[1]}
    for name, (files, outputs) in trained.items():
        for file in files:
            status, shown = server.call(f"/view_metadata/loras?filename={file.name}")
            assert status == 200
            assert (shown["modelspec.title"], shown["modelspec.architecture"]) == (file.stem, MODELSPEC[name])
            assert shown["modelspec.resolution"] == "128x128"
            assert datetime.fromisoformat(shown["modelspec.date"].replace("Z", "+00:00"))
            address = f"http://127.0.0.1:{server.port}/experiment/models/preview/loras/{listed[file.name]}/{file.name}"
            with urllib.request.urlopen(address, timeout=30) as answer:
                preview = answer.read()
            as_the_server_sends = io.BytesIO()
            Image.open(file.with_suffix(".preview.png")).save(as_the_server_sends, "WEBP")
            assert preview == as_the_server_sends.getvalue()
            assert str(file.with_suffix(".preview.png")) in outputs["7"]["text"][0]


@pytest.mark.parametrize("host_model", FILES, indirect=True)
def test_the_packs_loader_and_comfyuis_own_find_every_key(host_model, request, trained, caplog):
    import comfy.sd

    files, _ = trained[request.node.callspec.params["host_model"]]
    _, report = comfyui.pack_module("nodes.host.pair_loading").load_pair(host_model, *map(str, files))
    assert report.count(", 0 unmatched") == 2 and "assumed" not in report
    for file in files:
        caplog.clear()
        patched = comfy.sd.load_lora_for_models(host_model, None, load_file(file), 1.0, 0)[0]
        assert "not loaded" not in caplog.text
        slots = {key.removesuffix(".lora_A.weight") for key in load_file(file) if key.endswith(".lora_A.weight")}
        assert sum(len(patches) for patches in patched.patches.values()) == len(slots)


@pytest.mark.parametrize("name", FILES)
def test_diffusers_loads_every_key_with_its_alpha(name, trained):
    files = dict(zip(PHASES, trained[name][0], strict=True))
    with torch.inference_mode(False):
        pipeline = diffusers_pipelines.build(name)
        for phase, file in files.items():
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=phase)
        adapters = {phase: read_adapter(file) for phase, file in files.items()}
        layers = {key: module for key, module in pipeline.transformer.named_modules() if hasattr(module, "lora_A")}
        assert layers.keys() == adapters["slow"].factors.keys()
        trained_layers = dict.fromkeys(PHASES, 0)
        for key, layer in layers.items():
            for phase, adapter in adapters.items():
                factor = adapter.factors[key]
                trained_layers[phase] += bool(factor.up.any())
                expected = 2.0 * factor.up @ factor.down  # alpha 8 / rank 4
                assert torch.allclose(layer.get_delta_weight(phase), expected, atol=1e-6)
        assert set(trained_layers.values()) == {len(layers)}


def wait_for(condition, seconds):
    for _ in range(int(seconds / 0.1)):
        if condition():
            break
        time.sleep(0.1)


def test_an_interrupt_keeps_a_checkpoint_and_the_next_run_resumes_it(server):
    long = graph("flux", steps=2000, name="long", save_every=1)
    queued = server.queue(long)
    kept = server.base / "output/glance_training/long.run.safetensors"
    wait_for(kept.exists, 60)
    assert server.call("/interrupt", {})[0] == 200
    ended = server.wait(queued)
    assert "execution_interrupted" in [message[0] for message in ended["status"]["messages"]]
    done = len(load_file(kept)["history/losses"])
    assert done > 0
    assert not (server.base / "models/loras/long_slow.safetensors").exists()
    again = server.queue(long)
    wait_for(lambda: len(load_file(kept)["history/losses"]) > done, 30)
    server.call("/interrupt", {})
    server.wait(again)
    assert len(load_file(kept)["history/losses"]) > done


def test_a_picture_with_its_caption_is_trained_with_the_papers_loss(server):
    picture = graph("embedded", name="picture", objective="flow_matching", steps=5)
    size = {"width": 128, "height": 128, "batch_size": 1}
    picture["11"] = node("EmptyImage", {**size, "color": 0xC03020})
    picture["12"] = node("GlanceTinyVAE", {})
    picture["4"] = node("VAEEncode", {"pixels": ["11", 0], "vae": ["12", 0]})
    done = server.wait(server.queue(picture), 300)
    assert done["status"]["status_str"] == "success", done["status"]
    slow = read_adapter(server.base / "models/loras/picture_slow.safetensors")
    assert slow.pair.objective == "flow_matching" and slow.pair.image_sha256 is not None


@pytest.mark.parametrize("wrong, shown", [
    ({"name": "../up"}, "is not a file name"),
    ({"teacher_steps": "1,3"}, "exactly one '|'"),
    ({"rank": -1}, "-1"),
    ({"objective": "magic"}, "magic"),
])  # fmt: skip
def test_a_wrong_value_is_rejected_before_anything_runs(server, wrong, shown):
    bad = {key: value for key, value in graph("flux", **wrong).items() if key in TRAINER}
    status, answer = server.call("/prompt", {"prompt": bad, "client_id": "x"})
    assert status == 400 and shown in str(answer)
