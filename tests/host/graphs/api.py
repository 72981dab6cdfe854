"""A workflow as the browser sends it to a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .builder import BLOCK_INPUT, BLOCK_OUTPUT
from .schemas import FRONTEND_ONLY, widgets

LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")  # how a block names what a workflow lists


def to_api(workflow: Mapping[str, Any], classes: Mapping[str, type]) -> dict[str, Any]:
    """The workflow as the browser sends it to /prompt: widgets by name, links by node and slot, blocks (subgraphs) opened, notes left out."""
    blocks = {block["id"]: block for block in workflow.get("definitions", {}).get("subgraphs", [])}
    graph: dict[str, Any] = {}
    _open(workflow, "", {}, blocks, classes, graph)
    return graph


def _open(
    scope: Mapping[str, Any],
    prefix: str,
    given: Mapping[int, Any],
    blocks: Mapping[str, Any],
    classes: Mapping[str, type],
    graph: dict[str, Any],
) -> dict[int, Any]:
    """Adds the nodes of a workflow or a block to `graph`; what comes out of each of the block's own outputs. given: what its inputs are fed."""
    nodes = {node["id"]: node for node in scope["nodes"]}
    links = [link if isinstance(link, list) else [link[key] for key in LINK] for link in scope["links"]]
    origins = {link: (node, slot) for link, node, slot, *_ in links}
    opened: dict[int, dict[int, Any]] = {}

    def source(link: int) -> Any:
        node, slot = origins[link]
        if node == BLOCK_INPUT:
            return given.get(slot)
        if nodes[node]["type"] not in blocks:
            return [f"{prefix}{node}", slot]
        return block(nodes[node])[slot]

    def block(node: Mapping[str, Any]) -> dict[int, Any]:
        if node["id"] not in opened:
            fed = {i: source(slot["link"]) for i, slot in enumerate(node["inputs"]) if slot["link"] is not None}
            opened[node["id"]] = _open(blocks[node["type"]], f"{prefix}{node['id']}:", fed, blocks, classes, graph)
        return opened[node["id"]]

    for node in nodes.values():
        if node["type"] in blocks:
            block(node)
        elif node["type"] not in FRONTEND_ONLY:
            saved = zip((each.name for each in widgets(classes[node["type"]])), node["widgets_values"], strict=True)
            values = {name: value for name, value in saved if name not in ("control_after_generate", "upload")}
            fed = {slot["name"]: source(slot["link"]) for slot in node["inputs"] if slot["link"] is not None}
            values |= {name: value for name, value in fed.items() if value is not None}
            graph[f"{prefix}{node['id']}"] = {"class_type": node["type"], "inputs": values}
    return {slot: source(link) for link, _, _, target, slot, *_ in links if target == BLOCK_OUTPUT}
