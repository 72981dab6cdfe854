"""Blocks (subgraph blueprints) that ComfyUI offers among its nodes: a graph as one node."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from . import schemas
from .api import LINK
from .builder import BLOCK_INPUT, BLOCK_OUTPUT, BLUE, GREEN, RED, Graph, Outside, Slot
from .layout import Column
from .models import QWEN_IMAGE
from .pieces import FOX

ROW = 20  # pixels between the dots of a block's own inputs, seen from inside
CATEGORY = "Glance"


def text_to_image(graph: Graph) -> Mapping[str, Slot]:
    model = QWEN_IMAGE
    left = Column(graph, 0, 380)
    unet = left.node("UNETLoader", unet_name=Outside("unet_name", model.unet))
    clip_name, clip_type = Outside("clip_name", model.encoders[0]), Outside("clip_type", model.encoder_type)
    clip = left.node("CLIPLoader", clip_name=clip_name, type=clip_type)
    vae = left.node("VAELoader", vae_name=Outside("vae_name", model.vae))
    sizes = {name: Outside(name, value) for name, value in (("width", 1024), ("height", 1024), ("batch_size", 1))}
    size = left.node("EmptySD3LatentImage", **sizes)
    middle = Column(graph, 440, 400)
    files = {"slow_lora": Outside("slow_lora", model.slow), "fast_lora": Outside("fast_lora", model.fast)}
    pair = middle.node("LoadGlanceLoRA", colour=BLUE, model=unet, **files)
    text = Outside("prompt", FOX)
    positive = middle.node("CLIPTextEncode", 130, title="Positive prompt", colour=GREEN, clip=clip, text=text)
    text = Outside("negative_prompt", " ")
    negative = middle.node("CLIPTextEncode", 100, title="Negative prompt", colour=RED, clip=clip, text=text)
    right = Column(graph, 900, 380)
    sampler = right.node(
        "PhaseSplitSampler",
        colour=BLUE,
        model=pair,
        positive=positive,
        negative=negative,
        latent_image=size,
        seed=Outside("seed", 0),
        cfg=Outside("cfg", 4),
        slow_steps=Outside("slow_steps", 5),
        fast_steps=Outside("fast_steps", 5),
    )
    decoded = right.node("VAEDecode", samples=sampler, vae=vae)
    return {"image": decoded["IMAGE"], "report": pair["report"]}


def train_a_pair(graph: Graph) -> Mapping[str, Slot]:
    left = Column(graph, 0, 380)
    clip = Outside("clip")
    bank = left.node("GlancePromptBank", clip=clip, count=Outside("prompts", 16))
    text = Outside("negative_prompt", " ")
    negative = left.node("CLIPTextEncode", 100, title="Negative prompt", colour=RED, clip=clip, text=text)
    size = left.node("EmptySD3LatentImage", width=Outside("width", 1024), height=Outside("height", 1024))
    right = Column(graph, 440, 440)
    trained = right.node(
        "TrainGlanceAdapter",
        colour=BLUE,
        model=Outside("model"),
        latent=size,
        positive=bank,
        negative=negative,
        objective=Outside("objective", "on_policy"),
        steps=Outside("steps", 0),
        cfg=Outside("cfg", 4),
        seed=Outside("seed", 0),
        name=Outside("name", "my_glance"),
        options=left.node("GlanceTrainingOptions", colour=BLUE, offload=Outside("offload", "auto")),
    )
    return {name: trained[name] for name in ("model", "losses", "report", "slow_file", "fast_file")}


DESCRIPTIONS = {
    "Glance text to image": (
        text_to_image,
        "A picture in 10 steps instead of 50 with a Glance pair. Starts with Qwen-Image and its published pair.",
    ),
    "Train a Glance pair": (
        train_a_pair,
        "Trains a Slow and a Fast LoRA for the wired model, from prompts only. Compares them with the base, and saves "
        "them in models/loras.",
    ),
}


def block(name: str, classes: Mapping[str, type]) -> dict[str, Any]:
    """Return the block's JSON: a workflow of this one node, with its definition."""
    build, description = DESCRIPTIONS[name]
    graph = Graph(name, classes)
    outputs = build(graph)
    inside = _definition(graph, outputs, description)
    height = ROW * max(len(graph.outside), len(outputs)) + 200
    fed = graph.outside.values()
    widgets = [[str(node["id"]), into.name] for node, into in fed if into.is_widget]
    node = {
        "id": 1, "type": inside["id"], "pos": [0, 0], "size": [400, height], "flags": {}, "order": 0, "mode": 0,
        "inputs": [{**_socket(name, into), "link": None} for name, (_, into) in graph.outside.items()],
        "outputs": [{"name": name, "type": slot.kind, "links": []} for name, slot in outputs.items()],
        "title": graph.name, "properties": {"proxyWidgets": widgets}, "widgets_values": [],
    }  # fmt: skip
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [inside]}, "extra": {},
    }  # fmt: skip


def _definition(graph: Graph, block_outputs: Mapping[str, Slot], description: str) -> dict[str, Any]:
    links = [dict(zip(LINK, link, strict=True)) for link in graph.links]
    outputs = [_output(graph, links, name, slot, i) for i, (name, slot) in enumerate(block_outputs.items())]
    inputs = [
        {
            "id": _uuid(graph, "input", name),
            "name": name,
            "type": into.kind,
            "pos": [-160, 20 + ROW * i],
            "linkIds": [link["id"] for link in links if (link["origin_id"], link["origin_slot"]) == (BLOCK_INPUT, i)],
        }
        for i, (name, (_, into)) in enumerate(graph.outside.items())
    ]
    state = {"lastGroupId": 0, "lastNodeId": len(graph.nodes), "lastLinkId": len(links), "lastRerouteId": 0}
    return {
        "id": _uuid(graph), "version": 1, "state": state, "revision": 0, "config": {}, "name": graph.name,
        "inputNode": {"id": BLOCK_INPUT, "bounding": [-300, 0, 160, 40 + ROW * len(inputs)]},
        "outputNode": {"id": BLOCK_OUTPUT, "bounding": [1460, 0, 120, 40 + ROW * len(outputs)]},
        "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": graph.nodes, "groups": [], "links": links,
        "extra": {"workflowRendererVersion": "LG"}, "category": CATEGORY, "description": description,
    }  # fmt: skip


def _output(graph: Graph, links: list[dict[str, Any]], name: str, slot: Slot, at: int) -> dict[str, Any]:
    """Return the block's output number `at`, and add its link to `links`."""
    number = len(links) + 1
    links.append(
        {
            "id": number,
            "origin_id": slot.node.saved["id"],
            "origin_slot": slot.index,
            "target_id": BLOCK_OUTPUT,
            "target_slot": at,
            "type": slot.kind,
        }
    )
    inner = slot.node.saved["outputs"][slot.index]
    inner["links"] = [*(inner["links"] or []), number]
    key, place = _uuid(graph, "output", name), [1480, 20 + ROW * at]
    return {"id": key, "name": name, "type": slot.kind, "linkIds": [number], "pos": place}


def _socket(name: str, into: schemas.Input) -> dict[str, Any]:
    return {"name": name, "type": into.kind} | ({"widget": {"name": name}} if into.is_widget else {})


def _uuid(graph: Graph, *parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("glance/subgraphs", graph.name, *parts))))
