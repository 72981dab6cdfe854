"""Turn a saved workflow into what the browser sends to a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .builder import BLOCK_INPUT, BLOCK_OUTPUT
from .schemas import FRONTEND_ONLY, widgets

# How a block names what a workflow lists.
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def to_api(workflow: Mapping[str, Any], classes: Mapping[str, type]) -> dict[str, Any]:
    """Return the workflow as the browser sends it to /prompt.

    Widgets are by name, links by node and slot. Blocks (subgraphs) are opened, notes are left out.
    """
    blocks = {block["id"]: block for block in workflow.get("definitions", {}).get("subgraphs", [])}
    opener = _Opener(blocks, classes)
    opener.open(workflow, "", {})
    return opener.graph


@dataclass
class _Opener:
    """Collects the nodes of a workflow and of the blocks inside it."""

    blocks: Mapping[str, Any]
    classes: Mapping[str, type]
    graph: dict[str, Any] = field(default_factory=dict)

    def open(self, scope: Mapping[str, Any], prefix: str, given: Mapping[int, Any]) -> dict[int, Any]:
        """Add the nodes of a workflow or a block. Return the source of each of the block's own outputs.

        given: the source of each of the block's own inputs.
        """
        nodes = {node["id"]: node for node in scope["nodes"]}
        links = [link if isinstance(link, list) else [link[key] for key in LINK] for link in scope["links"]]
        origins = {link: (node, slot) for link, node, slot, *_ in links}
        opened: dict[int, dict[int, Any]] = {}

        def source(link: int) -> Any:
            node, slot = origins[link]
            if node == BLOCK_INPUT:
                return given.get(slot)
            if nodes[node]["type"] not in self.blocks:
                return [f"{prefix}{node}", slot]
            return block(nodes[node])[slot]

        def block(node: Mapping[str, Any]) -> dict[int, Any]:
            if node["id"] not in opened:
                inputs = {i: source(slot["link"]) for i, slot in enumerate(node["inputs"]) if slot["link"] is not None}
                opened[node["id"]] = self.open(self.blocks[node["type"]], f"{prefix}{node['id']}:", inputs)
            return opened[node["id"]]

        for node in nodes.values():
            if node["type"] in self.blocks:
                block(node)
            elif node["type"] not in FRONTEND_ONLY:
                linked = {slot["name"]: source(slot["link"]) for slot in node["inputs"] if slot["link"] is not None}
                linked = {name: value for name, value in linked.items() if value is not None}
                inputs = {**self._widget_values(node), **linked}
                self.graph[f"{prefix}{node['id']}"] = {"class_type": node["type"], "inputs": inputs}
        return {slot: source(link) for link, _, _, target, slot, *_ in links if target == BLOCK_OUTPUT}

    def _widget_values(self, node: Mapping[str, Any]) -> dict[str, Any]:
        names = (each.name for each in widgets(self.classes[node["type"]]))
        saved = zip(names, node["widgets_values"], strict=True)
        return {name: value for name, value in saved if name not in ("control_after_generate", "upload")}
