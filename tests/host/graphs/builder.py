"""Builds a graph as ComfyUI's web interface saves it (version 0.4): order, defaults and types come from the host's schemas."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import schemas

HOST_VERSION = "0.33.0"  # whose nodes the graphs are made of
BLUE, GREEN, RED, BLACK = ("#223", "#335"), ("#232", "#353"), ("#322", "#533"), ("#222", "#000")
GROUP = "#3f789e"
MARGIN, TITLE = 15, 75  # pixels from a group's frame to its nodes: at the sides and below, and above with both titles
BETWEEN, NOTES_BETWEEN = 60, 45  # from a node, a note to the next one's top, whose title of 30 lies above it
GROWING = {"PreviewImage", "SaveImage", "PreviewAny", "SaveAnimatedWEBP", "CLIPTextEncode", "TextEncodeQwenImageEditPlus", "GlanceTinyText"}
NOTE_GROWS = 120  # pixels at most, so that none is mostly empty
FILE_ENDS = (".safetensors", ".gguf", ".sft", ".png", ".jpg")


class BuildError(Exception):
    """A graph asks for what the host's schemas do not have."""


@dataclass(frozen=True)
class File:
    """A model file that a user downloads: its page, its folder below models/, and 10^9 bytes where they are known."""

    name: str
    url: str
    folder: str
    gb: float | None = None


@dataclass(eq=False)
class Node:
    """A node of the graph; as the value of an input it stands for its first output, and node["name"] for another."""

    saved: dict[str, Any]

    def __getitem__(self, output: str) -> Slot:
        names = [slot["name"] for slot in self.saved["outputs"]]
        if output not in names:
            raise BuildError(f"{self.saved['type']} has no output {output!r}; it has {', '.join(names)}")
        return Slot(self, names.index(output))

    @property
    def bottom(self) -> int:
        return self.saved["pos"][1] + self.saved["size"][1]


@dataclass(frozen=True)
class Slot:
    node: Node
    index: int

    @property
    def kind(self) -> str:
        return self.node.saved["outputs"][self.index]["type"]


@dataclass(frozen=True)
class Outside:
    """As the value of an input: the block's own input of this name, and what a widget holds while nothing is wired to it."""

    name: str
    value: Any = None


@dataclass
class Graph:
    """One workflow in the making. classes: the host's node classes by name."""

    name: str
    classes: Mapping[str, type]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    outside: dict[str, tuple[dict[str, Any], schemas.Input]] = field(default_factory=dict)  # a block's inputs: the node and input fed

    def node(
        self, kind: str, at: tuple[int, int], size: tuple[int, int | None], title: str | None = None, colour: tuple[str, str] | None = None, **given: Any
    ) -> Node:  # fmt: skip
        """given: inputs by name, each a Node or Slot to be linked, a File, or a value; what is not given has its default.
        size's height None: as much as the node needs. Raises BuildError."""
        if kind not in self.classes:
            raise BuildError(f"{self.name}: the host has no node {kind}")
        cls = self.classes[kind]
        made = self._add(kind, at, (size[0], size[1] or schemas.least_height(cls)))
        made["outputs"] = [{"name": name, "type": kind_of, "links": None} for name, kind_of in schemas.outputs(cls)]
        files = [
            each for each in (value.value if isinstance(value, Outside) else value for value in given.values()) if isinstance(each, File)
        ]
        values = []
        for each in schemas.inputs(cls):
            value = given.pop(each.name, None)
            if isinstance(value, Outside):
                self._take(value.name, made, each)
                value = value.value
            elif isinstance(value, (Node, Slot)):
                self._link(value if isinstance(value, Slot) else Slot(value, 0), made, each)
                value = None
            elif not each.is_widget and value is not None:
                raise BuildError(f"{self.name}: {kind}.{each.name} is a socket, and {value!r} is no node")
            if each.is_widget:
                values += self._saved(kind, each, value.name if isinstance(value, File) else value)
        if given:
            raise BuildError(f"{self.name}: {kind} has no input {', '.join(given)}")
        if title:
            made["title"] = title
        made["properties"] = {"Node name for S&R": kind} | ({} if _is_own(cls) else {"cnr_id": "comfy-core", "ver": HOST_VERSION})
        if files:
            made["properties"]["models"] = [{"name": each.name, "url": each.url, "directory": each.folder} for each in files]
        made["widgets_values"] = values
        if colour:
            made["color"], made["bgcolor"] = colour
        return Node(made)

    def note(self, title: str, text: str, at: tuple[int, int], size: tuple[int, int]) -> Node:
        made = self._add("MarkdownNote", at, size)
        made |= {"title": title, "properties": {}, "widgets_values": [text], "color": BLACK[0], "bgcolor": BLACK[1]}
        return Node(made)

    def group(self, title: str, *nodes: Node) -> None:
        """A frame around these nodes."""
        corners = [(*each.saved["pos"], each.saved["pos"][0] + each.saved["size"][0], each.bottom) for each in nodes]
        left, top = (min(corner[side] for corner in corners) for side in (0, 1))
        right, bottom = (max(corner[side] for corner in corners) for side in (2, 3))
        frame = [left - MARGIN, top - TITLE, right - left + 2 * MARGIN, bottom - top + TITLE + MARGIN]
        self.groups.append({"id": len(self.groups) + 1, "title": title, "bounding": frame, "color": GROUP, "font_size": 24, "flags": {}})

    def level(self) -> None:
        """Let frames and notes end at one height: the lowest nodes of a column grow where they can."""
        bottom = max(frame[1] + frame[3] for frame in (group["bounding"] for group in self.groups))
        for group in self.groups:
            frame = group["bounding"]
            inside = [Node(each) for each in self.nodes if _holds(frame, each)]
            last = [node for node in inside if node.bottom == frame[1] + frame[3] - MARGIN]
            below = any(_beside(frame, other["bounding"]) and other["bounding"][1] > frame[1] for other in self.groups)
            if not below and all(node.saved["type"] in GROWING for node in last):
                for node in last:
                    node.saved["size"][1] += bottom - frame[1] - frame[3]
                frame[3] = bottom - frame[1]
        lowest = max((Node(each) for each in self.nodes if each["type"] == "MarkdownNote"), key=lambda note: note.bottom)
        lowest.saved["size"][1] += max(0, min(bottom - lowest.bottom, NOTE_GROWS))

    def saved(self) -> dict[str, Any]:
        """The workflow's JSON."""
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"glance/workflows/{self.name}")), "revision": 0,
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": self.groups,
            "config": {}, "extra": {"ds": {"scale": 0.6, "offset": [150, 210]}, "workflowRendererVersion": "LG"}, "version": 0.4,
        }  # fmt: skip

    def _add(self, kind: str, at: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
        made = {
            "id": len(self.nodes) + 1,
            "type": kind,
            "pos": list(at),
            "size": list(size),
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
        }
        self.nodes.append(made | {"inputs": [], "outputs": []})
        return self.nodes[-1]

    def _link(self, source: Slot, target: dict[str, Any], into: schemas.Input) -> None:
        if into.kind not in ("*", source.kind):
            raise BuildError(f"{self.name}: {target['type']}.{into.name} takes {into.kind}, not {source.kind}")
        number = self._socket(target, into, source.node.saved["id"], source.index, source.kind)
        output = source.node.saved["outputs"][source.index]
        output["links"] = [*(output["links"] or []), number]

    def _take(self, name: str, target: dict[str, Any], into: schemas.Input) -> None:
        """Wire an input to the block's input of this name, which is new or already feeds others."""
        self.outside.setdefault(name, (target, into))
        self._socket(target, into, schemas.BLOCK_INPUT, list(self.outside).index(name), into.kind)

    def _socket(self, target: dict[str, Any], into: schemas.Input, source: int, slot: int, kind: str) -> int:
        number = len(self.links) + 1
        self.links.append([number, source, slot, target["id"], len(target["inputs"]), kind])
        widget = {"widget": {"name": into.name}} if into.is_widget else {}
        target["inputs"].append({"name": into.name, "type": into.kind, **widget, "link": number})
        return number

    def _saved(self, kind: str, widget: schemas.Input, value: Any) -> list[Any]:
        """The widget's value, and those of the widgets that the browser adds to it."""
        options = widget.options.get("options", [])
        if value is None:
            if widget.kind == "COMBO" and (not options or any(str(each).lower().endswith(FILE_ENDS) for each in options)):
                raise BuildError(f"{self.name}: {kind}.{widget.name} depends on the files that somebody has; give it a value")
            value = widget.options.get("default", options[0] if options else "" if widget.kind == "STRING" else 0)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # as JavaScript writes it
        more = ["fixed"] if widget.options.get("control_after_generate") else []
        return [value, *more, *(["image"] if widget.options.get("image_upload") else [])]


def _holds(frame: list[int], node: Mapping[str, Any]) -> bool:
    (x, y), (left, top, width, height) = node["pos"], frame
    return left < x < left + width and top < y < top + height


def _beside(one: list[int], other: list[int]) -> bool:
    """Whether two frames share a part of the width."""
    return one is not other and one[0] < other[0] + other[2] and other[0] < one[0] + one[2]


def _is_own(node_class: type) -> bool:
    """Whether the node is this pack's."""
    return "Glance" in node_class.__name__ or node_class.__name__ == "PhaseSplitSampler"


class Column:
    """Nodes of one width below one another; group() frames those since the last frame."""

    def __init__(self, graph: Graph, x: int, width: int, y: int = 0):
        self.graph, self.x, self.width, self.y = graph, x, width, y
        self.open: list[Node] = []

    def node(self, kind: str, height: int | None = None, /, **given: Any) -> Node:
        made = self.graph.node(kind, (self.x, self.y), (self.width, height), **given)
        self.y = made.bottom + BETWEEN
        self.open.append(made)
        return made

    def group(self, title: str) -> None:
        self.graph.group(title, *self.open)
        self.y += MARGIN + TITLE + MARGIN - BETWEEN
        self.open = []


class Notes:
    """Notes below one another, level with the frames beside them."""

    def __init__(self, graph: Graph, x: int = 0, width: int = 450, y: int = -45):
        self.graph, self.x, self.width, self.y = graph, x, width, y

    def note(self, title: str, text: str, height: int) -> Node:
        made = self.graph.note(title, text, (self.x, self.y), (self.width, height))
        self.y = made.bottom + NOTES_BETWEEN
        return made
