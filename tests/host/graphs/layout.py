"""Where the nodes of a workflow are: columns of framed nodes with notes beside them, all ending at one height."""

from __future__ import annotations

from typing import Any

from .builder import MARGIN, TITLE, Graph, Node

BETWEEN = 60  # pixels from a node to the next one below it
NOTES_BETWEEN = 45  # pixels from a note to the next one's top, with its title of 30
GROWING = {
    "PreviewImage", "SaveImage", "PreviewAny", "SaveAnimatedWEBP", "CLIPTextEncode", "TextEncodeQwenImageEditPlus",
    "GlanceTinyText", "TrainGlanceAdapter", "SaveVideo",
}  # fmt: skip
SHORTEST, TALLEST = 0.7, 1.3  # share of the height that a note asked for


class Column:
    """Nodes of one width below one another. group() frames the nodes since the last frame."""

    def __init__(self, graph: Graph, x: int, width: int, y: int = 0):
        self.graph, self.x, self.width, self.y = graph, x, width, y
        self.unframed: list[Node] = []

    def node(self, kind: str, height: int | None = None, /, **given: Any) -> Node:
        """Add a node below the last one."""
        made = self.graph.node(kind, (self.x, self.y), (self.width, height), **given)
        self.y = made.bottom + BETWEEN
        self.unframed.append(made)
        return made

    def group(self, title: str) -> None:
        """Frame the nodes that have no frame yet."""
        self.graph.group(title, *self.unframed)
        self.y += MARGIN + TITLE + MARGIN - BETWEEN
        self.unframed = []


class Notes:
    """Notes below one another, level with the frames beside them."""

    def __init__(self, graph: Graph, x: int = 0, width: int = 450, y: int = -45):
        self.graph, self.x, self.width, self.y = graph, x, width, y

    def note(self, title: str, text: str, height: int) -> Node:
        """Add a note below the last one. `level` may change its height."""
        made = self.graph.note(title, text, (self.x, self.y), (self.width, height))
        self.y = made.bottom + NOTES_BETWEEN
        return made


def level(graph: Graph) -> None:
    """Let frames and notes end at one height: the lowest nodes of a column grow if they can."""
    frames = [group["bounding"] for group in graph.groups]
    bottom = max(frame[1] + frame[3] for frame in frames)
    for frame in frames:
        missing = bottom - frame[1] - frame[3]
        last = [
            node
            for node in map(Node, graph.nodes)
            if _holds(frame, node) and node.bottom == frame[1] + frame[3] - MARGIN
        ]
        has_frame_below = any(_share_width(frame, other) and other[1] > frame[1] for other in frames)
        if not has_frame_below and all(node.saved["type"] in GROWING for node in last):
            for node in last:
                node.saved["size"][1] += missing
            frame[3] += missing
    _spread([node for node in map(Node, graph.nodes) if node.saved["type"] == "MarkdownNote"], bottom)


def _spread(notes: list[Node], bottom: int) -> None:
    """Let the notes share the height down to `bottom`, each a little taller or shorter than it asked for."""
    top, between = notes[0].saved["pos"][1], NOTES_BETWEEN * (len(notes) - 1)
    asked = sum(note.saved["size"][1] for note in notes)
    share = min(max((bottom - top - between) / asked, SHORTEST), TALLEST)
    for note in notes:
        note.saved["pos"][1], note.saved["size"][1] = top, round(share * note.saved["size"][1])
        top = note.bottom + NOTES_BETWEEN
    if 0 < abs(bottom - notes[-1].bottom) < len(notes):  # the rest from rounding
        notes[-1].saved["size"][1] += bottom - notes[-1].bottom


def _holds(frame: list[int], node: Node) -> bool:
    (x, y), (left, top, width, height) = node.saved["pos"], frame
    return left < x < left + width and top < y < top + height


def _share_width(one: list[int], other: list[int]) -> bool:
    """Return whether two frames share a part of the width."""
    return one is not other and one[0] < other[0] + other[2] and other[0] < one[0] + one[2]
