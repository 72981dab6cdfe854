"""A real server accepts every workflow as the browser sends it, and runs those of the embedded model."""

import json
import time

import comfyui
import graphs
import numpy as np
import pytest
import torch
from graphs.api import to_api
from PIL import Image
from real_server import Server, folder
from safetensors.torch import save_file

EMBEDDED = "glance_tiny"


def workflow(name):
    return json.loads((comfyui.PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def stand_ins(models):
    """Write an empty file under each name that a workflow asks for. The server's own checks look only at names."""
    for name in graphs.WORKFLOWS:
        for node in workflow(name)["nodes"]:
            wanted = [(each["directory"], each["name"]) for each in node["properties"].get("models", [])]
            if node["type"] == "LoadGlanceLoRA" and not name.startswith(EMBEDDED):
                wanted += [("loras", file) for file in node["widgets_values"][:2]]
            if node["type"] == "LoadPhaseLoRA":
                wanted.append(("loras", node["widgets_values"][0]))
            for directory, file in wanted:
                (models / directory).mkdir(exist_ok=True)
                save_file({"nothing": torch.zeros(1)}, models / directory / file)


@pytest.fixture(scope="module")
def classes():
    return comfyui.all_nodes()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("server")
    folder(base)
    stand_ins(base / "models")
    Image.new("RGB", (64, 64), "teal").save(base / "input/example.png")
    running = Server(base)
    yield running
    running.stop()


def posted(server, graph):
    """Return (status, answer) of the server's checks. A graph that they accept is stopped at once."""
    answer = server.call("/prompt", {"prompt": graph})
    server.call("/queue", {"clear": True})
    for _ in range(300):
        if not server.call("/queue")[1]["queue_running"]:
            return answer
        server.call("/interrupt", {})  # again: an interrupt before the run has begun is lost
        time.sleep(0.1)
    raise TimeoutError("the server does not stop")


def finished(server, graph):
    """Return the outputs of a run by node."""
    done = server.wait(server.queue(graph))
    assert done["status"]["status_str"] == "success", done["status"]
    return done["outputs"]


def of_kind(graph, kind):
    return {name: node["inputs"] for name, node in graph.items() if node["class_type"] == kind}


@pytest.mark.parametrize("name", graphs.WORKFLOWS)
def test_the_server_accepts_the_workflow(name, server, classes):
    status, answer = posted(server, to_api(workflow(name), classes))
    assert status == 200 and not answer["node_errors"], answer


def test_the_server_rejects_a_workflow_with_a_missing_file(server, classes):
    graph = to_api(workflow("glance_qwen_image_text_to_image"), classes)
    (inputs,) = of_kind(graph, "LoadGlanceLoRA").values()
    inputs["slow_lora"] = "nobody_has_this.safetensors"
    status, answer = posted(server, graph)
    assert status == 400 and "nobody_has_this.safetensors" in json.dumps(answer)


def test_the_embedded_comparison_runs_and_gives_a_result(server, classes):
    graph = to_api(workflow("glance_tiny_compare"), classes)
    (latent,) = of_kind(graph, "EmptySD3LatentImage").values()
    (plot,) = of_kind(graph, "GlancePhasePlot").values()
    latent["batch_size"], plot["teacher_runs"] = 2, 1
    outputs = finished(server, graph)
    (table,) = [shown["text"][0] for shown in outputs.values() if "text" in shown]
    assert table.splitlines()[2].startswith("| teacher | 50 | 100 |") and "than the best base row" in table
    assert sum(len(shown.get("images", [])) for shown in outputs.values()) == 2  # the grid and the plot


def test_the_embedded_training_saves_a_pair_and_samples_with_it(server, classes):
    graph = to_api(workflow("glance_tiny_train"), classes)
    (training,) = of_kind(graph, "TrainGlanceAdapter").values()
    (options,) = of_kind(graph, "GlanceTrainingOptions").values()
    (search,) = of_kind(graph, "CalibrateGlance").values()
    training |= {"steps": 2, "teacher_runs": 4}
    options |= {"checks": 2, "preview_every": 0}
    search |= {"seconds": 3.0, "teacher_runs": 4, "model_calls": 4}
    outputs = finished(server, graph)
    texts = [shown["text"][0] for shown in outputs.values() if "text" in shown]
    assert any("trained in" in text and "sample with cfg" in text for text in texts)
    files = sorted(file.name for file in (server.base / "models/loras").glob("my_glance_tiny_*"))
    assert files == ["my_glance_tiny_fast.safetensors", "my_glance_tiny_slow.safetensors"]
    pictures = sum(len(shown.get("images", [])) for shown in outputs.values())
    assert pictures == 10  # four with the pair, four without, and two plots


def on_the_embedded_model(graph, picture):
    """Return the graph with the embedded model instead of the large one, at 128 x 128."""
    for name, node in list(graph.items()):
        inputs = node["inputs"]
        if node["class_type"] == "UNETLoader":
            inputs["unet_name"] = "glance_tiny_flux.safetensors"
        elif node["class_type"] == "LoadGlanceLoRA":
            inputs |= {"slow_lora": "glance_tiny_slow.safetensors", "fast_lora": "glance_tiny_fast.safetensors"}
        elif node["class_type"] == "LoadPhaseLoRA":
            inputs["lora_name"] = "glance_tiny_fast.safetensors"
        elif node["class_type"] in ("ModelSamplingAuraFlow", "ModelSamplingSD3"):
            inputs["shift"] = 1.0
        elif node["class_type"] in ("EmptySD3LatentImage", "EmptyHunyuanLatentVideo"):
            size = {"width": 128, "height": 128, "batch_size": 1}
            graph[name] = {"class_type": "EmptySD3LatentImage", "inputs": size}
        elif node["class_type"] == "CreateVideo":
            graph[name] = {"class_type": "SaveImage", "inputs": {"images": inputs["images"], "filename_prefix": "two"}}
        elif node["class_type"] == "SaveVideo":
            del graph[name]
        elif node["class_type"] == "VAELoader":
            graph[name] = {"class_type": "GlanceTinyVAE", "inputs": {}}
        elif node["class_type"] == "CLIPLoader":
            del graph[name]
        elif node["class_type"] == "CLIPTextEncode":
            graph[name] = {
                "class_type": "GlanceTinyText",
                "inputs": {"prompt": "a large red circle on plain white" if inputs["text"].strip() else ""},
            }
        elif node["class_type"] == "LoadImage":
            inputs["image"] = picture
        elif node["class_type"] == "ImageScaleToTotalPixels":
            inputs["megapixels"] = 1 / 64
    return graph


@pytest.mark.parametrize("name", [
    "glance_lora_fades_out", "glance_lora_first_steps_z_image", "glance_lora_change_without_reload",
    "glance_wan22_14b_text_to_video",
])  # fmt: skip
def test_graphs_of_loras_by_noise_level_run_and_the_lora_acts(server, classes, name):
    found = []
    for strength in (0.0, 1.0):
        graph = on_the_embedded_model(to_api(workflow(name), classes), "example.png")
        for inputs in of_kind(graph, "LoadPhaseLoRA").values():
            inputs["strength"] = strength
        (saved,) = [picture for shown in finished(server, graph).values() for picture in shown.get("images", [])]
        found.append(np.asarray(Image.open(server.base / "output" / saved["filename"]).convert("RGB")).astype(int))
    assert np.abs(found[0] - found[1]).mean() > 0.5


def test_the_inpainting_graph_changes_the_picture_only_inside_the_mask(server, classes):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    kept = np.full((128, 128, 1), 255, dtype=np.uint8)
    kept[32:96, 64:112] = 0  # the mask editor saves the mask as transparency
    Image.fromarray(np.concatenate([noise, kept], axis=2)).save(server.base / "input/masked.png")
    outputs = finished(
        server, on_the_embedded_model(to_api(workflow("glance_qwen_image_inpaint"), classes), "masked.png")
    )
    (saved,) = [picture for shown in outputs.values() for picture in shown.get("images", [])]
    painted = np.asarray(Image.open(server.base / "output" / saved["filename"]).convert("RGB"))
    changed = np.abs(painted.astype(int) - noise).max(axis=2) > 1
    beyond = np.zeros((128, 128), dtype=bool)
    beyond[32 - 8 : 96 + 8, 64 - 8 : 112 + 8] = True  # the graph grows the mask by 8 pixels
    assert changed[36:92, 68:108].mean() > 0.9 and not changed[~beyond].any()


def test_the_image_to_image_graph_keeps_more_of_the_picture_at_a_lower_denoise(server, classes):
    Image.new("RGB", (128, 128), "blue").save(server.base / "input/blue.png")
    distances = []
    for denoise in (0.2, 1.0):
        graph = on_the_embedded_model(to_api(workflow("glance_qwen_image_image_to_image"), classes), "blue.png")
        (sampler,) = of_kind(graph, "PhaseSplitSampler").values()
        sampler["denoise"] = denoise
        (saved,) = [picture for shown in finished(server, graph).values() for picture in shown.get("images", [])]
        painted = np.asarray(Image.open(server.base / "output" / saved["filename"]).convert("RGB")).astype(int)
        distances.append(np.abs(painted - (0, 0, 255)).mean())
    assert distances[0] < 0.5 * distances[1]


def with_neighbours(name, before=(), after=()):
    """Return the block's workflow with nodes wired to its inputs and outputs.

    before: (input of the block, type of node, widgets). after: (output of the block, type of node, socket, widgets).
    """
    saved = json.loads((comfyui.PACK / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    (block,) = saved["nodes"]
    for slot, kind, values in before:
        link, number = len(saved["links"]) + 1, len(saved["nodes"]) + 1
        (at,) = [i for i, each in enumerate(block["inputs"]) if each["name"] == slot]
        block["inputs"][at]["link"] = link
        saved["links"].append([link, number, 0, 1, at, block["inputs"][at]["type"]])
        saved["nodes"].append({"id": number, "type": kind, "inputs": [], "widgets_values": values})
    for slot, kind, socket, values in after:
        link, number = len(saved["links"]) + 1, len(saved["nodes"]) + 1
        (at,) = [i for i, each in enumerate(block["outputs"]) if each["name"] == slot]
        saved["links"].append([link, 1, at, number, 0, block["outputs"][at]["type"]])
        saved["nodes"].append(
            {"id": number, "type": kind, "inputs": [{"name": socket, "link": link}], "widgets_values": values}
        )
    return saved


UNET, CLIP = "qwen_image_fp8_e4m3fn.safetensors", "qwen_2.5_vl_7b_fp8_scaled.safetensors"
BLOCKS = {
    "Glance text to image": ([], [("image", "SaveImage", "images", ["block"]), ("report", "PreviewAny", "source", [])]),
    "Train a Glance pair": (
        [("model", "UNETLoader", [UNET, "default"]), ("clip", "CLIPLoader", [CLIP, "qwen_image", "default"])],
        [("losses", "PreviewImage", "images", []), ("report", "PreviewAny", "source", [])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_the_server_offers_the_block_and_accepts_it_in_a_graph(name, server, classes):
    listed = server.call("/global_subgraphs")[1]
    (number,) = [
        number
        for number, each in listed.items()
        if each["name"] == name and each["info"]["node_pack"] == "custom_nodes.glance"
    ]
    assert server.call(f"/global_subgraphs/{number}")[1]["data"] == (
        comfyui.PACK / "subgraphs" / f"{name}.json"
    ).read_text(encoding="utf-8")
    graph = to_api(with_neighbours(name, *BLOCKS[name]), classes)
    status, answer = posted(server, graph)
    assert status == 200 and not answer["node_errors"], answer
    incomplete = to_api(with_neighbours(name, BLOCKS[name][0][1:], BLOCKS[name][1]), classes)
    if BLOCKS[name][0]:  # without its model the server rejects it
        assert posted(server, incomplete)[0] == 400


def test_every_block_is_tested():
    assert graphs.blocks.DESCRIPTIONS.keys() == BLOCKS.keys()
