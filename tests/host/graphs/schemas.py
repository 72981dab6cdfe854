"""What the host's schemas say of a node, read as its web interface reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}
FRONTEND_ONLY = {"MarkdownNote", "Note"}  # drawn by the browser, unknown to the server
SEEDS = ["fixed", "increment", "decrement", "randomize"]
BLOCK_INPUT, BLOCK_OUTPUT = -10, -20  # the nodes that stand for a block's own inputs and outputs
SLOT, WIDGET, TEXT = 20, 24, 64  # pixels that a socket, a widget and a field of text take


class Input(NamedTuple):
    name: str
    kind: str
    options: dict[str, Any]
    required: bool

    @property
    def is_widget(self) -> bool:
        return self.kind in WIDGETS and not self.options.get("forceInput")


def inputs(node_class: type) -> Iterator[Input]:
    """In schema order; a list of choices in place of a type, the old way to say COMBO, is made one."""
    schema = node_class.INPUT_TYPES()
    for part in ("required", "optional"):
        for name, (kind, *rest) in schema.get(part, {}).items():
            options = rest[0] if rest else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            yield Input(name, kind, options, part == "required")


def widgets(node_class: type) -> Iterator[Input]:
    """Each value that the browser saves for a node, in its order, with those that it adds by itself."""
    for each in inputs(node_class):
        if each.is_widget:
            yield each
            if each.options.get("control_after_generate"):
                yield Input("control_after_generate", "COMBO", {"options": SEEDS}, False)
            if each.options.get("image_upload"):
                yield Input("upload", "COMBO", {"options": ["image"]}, False)


def sockets(node_class: type) -> dict[str, Input]:
    return {each.name: each for each in inputs(node_class) if not each.is_widget}


def outputs(node_class: type) -> list[tuple[str, str]]:
    """Name and type of each."""
    types = node_class.RETURN_TYPES
    return list(zip(getattr(node_class, "RETURN_NAMES", None) or types, types, strict=True))


def least_height(node_class: type) -> int:
    """The pixels that a node needs below its title."""
    rows = max(len(sockets(node_class)), len(outputs(node_class)))
    fields = [TEXT if each.options.get("multiline") else WIDGET for each in widgets(node_class)]
    return SLOT * rows + sum(fields) + (14 if fields else 6)


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
    links = [(link["id"], link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"]) if isinstance(link, dict) else link for link in scope["links"]]  # fmt: skip
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
