"""Other names of a base model's layers, from other_names.txt: diffusers', and those of the model's own publisher.

It is asked only for layers whose names a host does not know by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

_FILE = Path(__file__).with_name("other_names.txt")
# Numbers of blocks; every other number belongs to the name.
_NUMBER = re.compile(r"((?:blocks|layers|refiner|face_adapter)\.)(\d+)(?=\.|$)")
EQUAL, GROUPED, WITH_MLP = "equal", "grouped", "with_mlp"


@dataclass(frozen=True)
class Part:
    """A layer by another name, or a part of its rows.

    name: the layer in the language that was asked for. index, count: which of how many parts. sizes: EQUAL; GROUPED
    (queries as wide as the input, keys and values share the rest); WITH_MLP (three as wide as the input, then the
    rest). swapped: the halves of its rows are the other way round.
    """

    name: str
    index: int = 0
    count: int = 1
    sizes: str = EQUAL
    swapped: bool = False

    def rows(self, inside: int, outside: int) -> tuple[int, int]:
        """Return (start, length) in a layer with these features."""
        lengths = [outside // self.count] * self.count
        if self.sizes == GROUPED:
            lengths = [inside] + [(outside - inside) // 2] * 2
        elif self.sizes == WITH_MLP:
            lengths = [inside] * 3 + [outside - 3 * inside]
        return sum(lengths[: self.index]), lengths[self.index]


def swapped_halves(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with the second half of its rows before the first."""
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def host_part(base: str, module: str) -> Part | None:
    """Return the layer of ComfyUI's model that this base's module is, or is a part of; None if that is not known."""
    return next(iter(_look_up(_names().hosts, base, module)), None)


def diffusers_parts(base: str, module: str) -> list[Part]:
    """Return diffusers' names for a layer of ComfyUI's model, one for each part; an empty list if none is certain.

    Versions of one base may name a layer differently.
    """
    parts = _look_up(_names().diffusers, base, module)
    return parts if len(parts) == 1 or all(part.count > 1 for part in parts) else []


def bases() -> tuple[str, ...]:
    """Return the base models of which diffusers' names are known."""
    return _names().bases


def template(module: str) -> str:
    """Return the name with # for the number of each block."""
    return _NUMBER.sub(r"\1#", module)


def templates() -> frozenset[str]:
    """Return all other names, as templates."""
    return frozenset(name for _, name in _names().hosts)


@dataclass(frozen=True)
class _Names:
    """Both directions, by (base, template)."""

    hosts: dict[tuple[str, str], list[Part]]
    diffusers: dict[tuple[str, str], list[Part]]
    bases: tuple[str, ...]


@cache
def _names() -> _Names:
    hosts: dict[tuple[str, str], list[Part]] = {}
    diffusers: dict[tuple[str, str], list[Part]] = {}
    bases: dict[str, None] = {}
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        base, owner, theirs, ours, *rest = line.split(" ")
        index, count, sizes = (*rest[0].split("/"), rest[1]) if len(rest) > 1 else ("0", "1", EQUAL)
        part = Part(ours, int(index), int(count), sizes, rest == ["swapped"])
        hosts.setdefault((base, theirs), []).append(part)
        if owner == "d":
            diffusers.setdefault((base, ours), []).append(replace(part, name=theirs))
            bases[base] = None
    return _Names(hosts, diffusers, tuple(bases))


def _look_up(names: dict[tuple[str, str], list[Part]], base: str, module: str) -> list[Part]:
    found = names.get((base, template(module)), [])
    numbers = [number for _, number in _NUMBER.findall(module)]
    return [replace(part, name=_numbered(part.name, numbers)) for part in found]


def _numbered(name: str, numbers: list[str]) -> str:
    for number in numbers:
        name = name.replace("#", number, 1)
    return name
