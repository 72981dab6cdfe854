"""Builds a graph as ComfyUI's web interface saves it (version 0.4). Order, defaults and types come from the schemas."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import schemas

HOST_VERSION = "0.33.0"  # of ComfyUI, whose nodes the graphs use
BLUE, GREEN, RED, BLACK = ("#223", "#335"), ("#232", "#353"), ("#322", "#533"), ("#222", "#000")
GROUP = "#3f789e"
MARGIN, TITLE = 15, 75  # pixels from a group's frame to its nodes: at the sides and below, and above with both titles
BLOCK_INPUT, BLOCK_OUTPUT = -10, -20  # node numbers that stand for a block's own inputs and outputs
FILE_ENDS = (".safetensors", ".gguf", ".sft", ".png", ".jpg")
_OWN_LINE = re.compile(r"(- |\||#|\d+\. )")  # what a line of a note begins with if it does not continue a paragraph


class BuildError(Exception):
    """A graph asks for something that ComfyUI's schemas do not have."""


@dataclass(frozen=True)
class File:
    """A model file that a user downloads. folder: below models/. gb: its size in 10^9 bytes, if known."""

    name: str
    url: str
    folder: str
    gb: float | None = None


@dataclass(eq=False)
class Node:
    """A node of the graph. As the value of an input it means its first output; node["name"] means another one."""

    saved: dict[str, Any]

    def __getitem__(self, output: str) -> Slot:
        names = [slot["name"] for slot in self.saved["outputs"]]
        if output not in names:
            raise BuildError(f"{self.saved['type']} has no output {output!r}; it has {', '.join(names)}")
        return Slot(self, names.index(output))

    @property
    def bottom(self) -> int:
        """The pixel row at which the node ends."""
        return self.saved["pos"][1] + self.saved["size"][1]


@dataclass(frozen=True)
class Slot:
    """One output of a node."""

    node: Node
    index: int

    @property
    def kind(self) -> str:
        """The type that it carries."""
        return self.node.saved["outputs"][self.index]["type"]


@dataclass(frozen=True)
class Outside:
    """As the value of an input: the block's own input of this name. value: what a widget holds if nothing is wired."""

    name: str
    value: Any = None


@dataclass
class Graph:
    """One workflow in the making.

    classes: ComfyUI's node classes by name. outside: a block's inputs by name, with the node and input that each feeds.
    """

    name: str
    classes: Mapping[str, type]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    outside: dict[str, tuple[dict[str, Any], schemas.Input]] = field(default_factory=dict)

    def node(self, kind: str, at: tuple[int, int], size: tuple[int, int | None], /, **given: Any) -> Node:
        """Add a node.

        Args:
            size: a height of None means as much as the node needs.
            given: `title`, `colour`, and inputs by name: each a Node or Slot to link, a File, or a value. Inputs that
                are not given have their defaults.

        Raises:
            BuildError: if ComfyUI has no such node or input.
        """
        if kind not in self.classes:
            raise BuildError(f"{self.name}: the host has no node {kind}")
        cls, title, colour = self.classes[kind], given.pop("title", None), given.pop("colour", None)
        made = self._add(kind, at, (size[0], size[1] or schemas.least_height(cls)))
        made["outputs"] = [{"name": name, "type": carried, "links": None} for name, carried in schemas.outputs(cls)]
        values, files = self._fill(made, cls, given)
        if title:
            made["title"] = title
        made["properties"] = {"Node name for S&R": kind} | (
            {} if _is_own(cls) else {"cnr_id": "comfy-core", "ver": HOST_VERSION}
        )
        if files:
            made["properties"]["models"] = [
                {"name": each.name, "url": each.url, "directory": each.folder} for each in files
            ]
        made["widgets_values"] = values
        if colour:
            made["color"], made["bgcolor"] = colour
        return Node(made)

    def note(self, title: str, text: str, at: tuple[int, int], size: tuple[int, int]) -> Node:
        """Add a note in Markdown. Its text may be wrapped at any width."""
        made = self._add("MarkdownNote", at, size)
        made |= {"title": title, "properties": {}, "widgets_values": [unwrap(text)]}
        made["color"], made["bgcolor"] = BLACK
        return Node(made)

    def group(self, title: str, *nodes: Node) -> None:
        """Put a frame around these nodes."""
        corners = [(*each.saved["pos"], each.saved["pos"][0] + each.saved["size"][0], each.bottom) for each in nodes]
        left, top = (min(corner[side] for corner in corners) for side in (0, 1))
        right, bottom = (max(corner[side] for corner in corners) for side in (2, 3))
        frame = [left - MARGIN, top - TITLE, right - left + 2 * MARGIN, bottom - top + TITLE + MARGIN]
        number = len(self.groups) + 1
        self.groups.append(
            {"id": number, "title": title, "bounding": frame, "color": GROUP, "font_size": 24, "flags": {}}
        )

    def saved(self) -> dict[str, Any]:
        """Return the workflow's JSON."""
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"glance/workflows/{self.name}")), "revision": 0,
            "last_node_id": len(self.nodes), "last_link_id": len(self.links),
            "nodes": self.nodes, "links": self.links, "groups": self.groups, "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [150, 210]}, "workflowRendererVersion": "LG"}, "version": 0.4,
        }  # fmt: skip

    def _add(self, kind: str, at: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
        made = {
            "id": len(self.nodes) + 1, "type": kind, "pos": list(at), "size": list(size), "flags": {},
            "order": len(self.nodes), "mode": 0, "inputs": [], "outputs": [],
        }  # fmt: skip
        self.nodes.append(made)
        return made

    def _fill(self, made: dict[str, Any], node_class: type, given: dict[str, Any]) -> tuple[list[Any], list[File]]:
        """Wire what is given to sockets. Return the values of the widgets, and the files among them."""
        values: list[Any] = []
        files: list[File] = []
        for each in schemas.inputs(node_class):
            value = given.pop(each.name, None)
            if isinstance(value, Outside):
                self._link_outside(value.name, made, each)
                value = value.value
            elif isinstance(value, (Node, Slot)):
                self._link(value if isinstance(value, Slot) else Slot(value, 0), made, each)
                value = None
            elif not each.is_widget and value is not None:
                raise BuildError(f"{self.name}: {made['type']}.{each.name} is a socket, and {value!r} is not a node")
            if isinstance(value, File):
                files.append(value)
                value = value.name
            if each.is_widget:
                values += self._widget_values(made["type"], each, value)
        if given:
            raise BuildError(f"{self.name}: {made['type']} has no input {', '.join(given)}")
        return values, files

    def _link(self, source: Slot, target: dict[str, Any], into: schemas.Input) -> None:
        if not into.takes(source.kind):
            raise BuildError(f"{self.name}: {target['type']}.{into.name} takes {into.kind}, not {source.kind}")
        number = self._add_link(target, into, (source.node.saved["id"], source.index), source.kind)
        output = source.node.saved["outputs"][source.index]
        output["links"] = [*(output["links"] or []), number]

    def _link_outside(self, name: str, target: dict[str, Any], into: schemas.Input) -> None:
        """Wire an input to the block's input of this name, which is new or feeds other inputs already."""
        self.outside.setdefault(name, (target, into))
        self._add_link(target, into, (BLOCK_INPUT, list(self.outside).index(name)), into.kind)

    def _add_link(self, target: dict[str, Any], into: schemas.Input, source: tuple[int, int], kind: str) -> int:
        """Return the new link's number. source: node and slot."""
        number = len(self.links) + 1
        self.links.append([number, *source, target["id"], len(target["inputs"]), kind])
        widget = {"widget": {"name": into.name}} if into.is_widget else {}
        target["inputs"].append({"name": into.name, "type": into.kind, **widget, "link": number})
        return number

    def _widget_values(self, kind: str, widget: schemas.Input, value: Any) -> list[Any]:
        """Return the widget's value, and those of the widgets that the browser adds to it."""
        options = widget.options.get("options", [])
        if value is None:
            if widget.widget_kind == "COMBO" and (
                not options or any(str(each).lower().endswith(FILE_ENDS) for each in options)
            ):
                raise BuildError(
                    f"{self.name}: {kind}.{widget.name} depends on the files that a user has; give it a value"
                )
            value = widget.options.get(
                "default", options[0] if options else "" if widget.widget_kind == "STRING" else 0
            )
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # as JavaScript writes it
        more = ["fixed"] if widget.options.get("control_after_generate") else []
        return [value, *more, *(["image"] if widget.options.get("image_upload") else [])]


def unwrap(text: str) -> str:
    """Return Markdown with each paragraph and list item on one line; a browser shows each line break."""
    lines: list[str] = []
    for line in map(str.strip, text.strip().splitlines()):
        if line and lines and lines[-1] and not _OWN_LINE.match(line) and not lines[-1].endswith("|"):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _is_own(node_class: type) -> bool:
    """Return whether the node is this pack's."""
    return "Glance" in node_class.__name__ or node_class.__name__ in ("PhaseSplitSampler", "LoadPhaseLoRA")
