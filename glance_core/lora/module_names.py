"""Which names the layers of known models have, from module_names.txt, which ComfyUI's own models were asked for.

It answers what a name alone cannot: where a flattened name had its dots, and who named a layer.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from . import other_names

_FILE = Path(__file__).with_name("module_names.txt")
_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")


class _Names(NamedTuple):
    """Templates by owner, and each template by its flattened form."""

    host: frozenset[str]
    diffusers: frozenset[str]
    by_flat: dict[str, str]


def template(module: str) -> str:
    """Return the name with # for each number: `blocks.0.linear_1` becomes `blocks.#.linear_#`."""
    return _NUMBER.sub("#", module)


def unflattened(flat: str) -> str | None:
    """Return the known layer whose name is this if its dots become underscores; None if no model has it."""
    found = _names().by_flat.get(template(flat))
    if found is None:
        return None
    numbers = iter(_NUMBER.findall(flat))
    return re.sub("#", lambda _: next(numbers), found)


def is_hosts(module: str) -> bool:
    """Return whether a model of ComfyUI has a layer of this name."""
    return template(module) in _names().host


def is_diffusers(module: str) -> bool:
    """Return whether ComfyUI knows this as diffusers' name of a layer, with the prefix `transformer.`."""
    return template(module) in _names().diffusers


@cache
def _names() -> _Names:
    rows = [line.split(" ", 1) for line in _FILE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    host, diffusers = (frozenset(name for marks, name in rows if owner in marks) for owner in "hd")
    every = [*map(template, sorted(other_names.templates())), *(name for _, name in rows)]  # the last one counts
    return _Names(host, diffusers, {name.replace(".", "_"): name for name in every})
