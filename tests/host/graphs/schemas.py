"""What ComfyUI's schemas say about a node, read as its web interface reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}
FRONTEND_ONLY = {"MarkdownNote", "Note"}  # drawn by the browser, unknown to the server
SEEDS = ["fixed", "increment", "decrement", "randomize"]
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings inputs of its own
SLOT, WIDGET, TEXT, LINE = 20, 24, 64, 60  # pixels of a socket, a widget, a field of text, and a line of progress


class Input(NamedTuple):
    """An input of a node, as its schema states it. kind: the type, or several with commas between them."""

    name: str
    kind: str
    options: dict[str, Any]
    required: bool

    @property
    def widget_kind(self) -> str:
        """The type of the value that its widget holds, if it has one."""
        return str(self.options.get("widgetType", self.kind))

    @property
    def is_widget(self) -> bool:
        """Whether the browser draws a widget for it."""
        return self.widget_kind in WIDGETS and not self.options.get("forceInput")

    def takes(self, kind: str) -> bool:
        """Return whether an output of this type can be wired to it."""
        return self.kind == "*" or kind in self.kind.split(",")


def inputs(node_class: type) -> Iterator[Input]:
    """Return the inputs in schema order, of a choice with inputs of its own those of the first one."""
    return _inputs(node_class.INPUT_TYPES(), "")


def _inputs(schema: Mapping[str, Any], prefix: str) -> Iterator[Input]:
    """Yield the inputs. A list of choices instead of a type is the old way to say COMBO."""
    for part in ("required", "optional"):
        for name, (kind, *rest) in schema.get(part, {}).items():
            options = rest[0] if rest else {}
            if options.get("hidden"):
                continue
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            if kind == DYNAMIC:
                choices = options["options"]
                own = {"options": [choice["key"] for choice in choices]}
                yield Input(prefix + name, "COMBO", own, part == "required")
                yield from _inputs(choices[0]["inputs"], f"{prefix}{name}.")
            else:
                yield Input(prefix + name, kind, options, part == "required")


def widgets(node_class: type) -> Iterator[Input]:
    """Return each value that the browser saves for a node, in its order, with those that it adds by itself."""
    for each in inputs(node_class):
        if each.is_widget:
            yield each
            if each.options.get("control_after_generate"):
                yield Input("control_after_generate", "COMBO", {"options": SEEDS}, False)
            if each.options.get("image_upload"):
                yield Input("upload", "COMBO", {"options": ["image"]}, False)


def sockets(node_class: type) -> dict[str, Input]:
    """Return the inputs without a widget, by name."""
    return {each.name: each for each in inputs(node_class) if not each.is_widget}


def outputs(node_class: type) -> list[tuple[str, str]]:
    """Return name and type of each output."""
    types = node_class.RETURN_TYPES
    return list(zip(getattr(node_class, "RETURN_NAMES", None) or types, types, strict=True))


def least_height(node_class: type) -> int:
    """Return the pixels that a node needs below its title, with the line that some nodes write while they run."""
    rows = max(len(sockets(node_class)), len(outputs(node_class)))
    fields = [TEXT if each.options.get("multiline") else WIDGET for each in widgets(node_class)]
    progress = LINE if "unique_id" in node_class.INPUT_TYPES().get("hidden", {}) else 0
    return SLOT * rows + sum(fields) + (14 if fields else 6) + progress
