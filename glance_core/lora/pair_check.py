"""Whether two adapters can be one pair."""

from __future__ import annotations

import re

import torch

from ..errors import AdapterError
from ..schedule.split import FAST, SLOW
from .reader import Adapter

_COMMON_FIELDS = ("sigma_rule", "shift", "teacher_sigmas", "teacher_steps", "steps", "fingerprint")


def _contains(name: str, word: str) -> bool:
    return word in name.lower()


def _has_noise(name: str, level: str) -> bool:
    """Return whether the name says `high_noise` or `HIGH`, as those of models in two parts do."""
    return bool(re.search(rf"(?<![a-z]){level}(?![a-z])", name.lower()))


# (what names the early phase, what names the late one, how to find it in a file's name)
_PHASE_MARKS = ((SLOW, FAST, _contains), ("high", "low", _has_noise))


def check_pair(slow: Adapter, fast: Adapter, same_strength: bool = True) -> tuple[str, ...]:
    """Raise AdapterError for two files that cannot belong together; return sentences about what is odd but possible.

    Args:
        same_strength: whether both are used at one strength; if not, even one file for both switches something.
    """
    for adapter, wanted, other in ((slow, SLOW, FAST), (fast, FAST, SLOW)):
        if adapter.pair.phase == other:
            twice = slow.pair.phase == fast.pair.phase
            partner = _partner(adapter) or f"the {wanted.title()} file of the pair"
            way_out = f"choose {partner} there" if twice else "swap the two files"
            raise AdapterError(
                f"{adapter.name} is a {other.title()} adapter but was chosen as {wanted}_lora; {way_out}"
            )
    if slow.bases and fast.bases and not slow.bases & fast.bases:
        one, two = ("/".join(sorted(a.bases)) for a in (slow, fast))
        raise AdapterError(f"{slow.name} is for {one} and {fast.name} for {two}; choose two files of one pair")
    for name in _COMMON_FIELDS:
        x, y = getattr(slow.pair, name), getattr(fast.pair, name)
        if x is not None and y is not None and x != y:
            raise AdapterError(
                f"{slow.name} was trained with glance.{name} {x} and {fast.name} with {y}; choose two files of one pair"
            )
    return tuple(_notes(slow, fast, same_strength))


def _notes(slow: Adapter, fast: Adapter, same_strength: bool) -> list[str]:
    notes = []
    if slow.pair.pair and fast.pair.pair and slow.pair.pair != fast.pair.pair:
        whose = f"; {slow.name} belongs to {_partner(slow)}" if slow.pair.partner else ""
        notes.append(f"{slow.name} and {fast.name} come from different training runs{whose}")
    unstated = slow.pair.phase is None and fast.pair.phase is None
    if unstated and any(mark(slow.name, late) and mark(fast.name, early) for early, late, mark in _PHASE_MARKS):
        notes.append(
            f"the file names look swapped: {slow.name} is used as Slow, at high noise, and {fast.name} as Fast, at low "
            "noise"
        )
    what = "nothing switches" if same_strength else "only the strength switches"
    if slow.path == fast.path:
        notes.append(f"{slow.name} is used for both phases, so {what}; choose the pair's other file for one of them")
    elif _same_numbers(slow, fast):
        notes.append(f"{slow.name} and {fast.name} hold the same numbers, so {what}; get the pair's other file again")
    if slow.factors.keys() != fast.factors.keys():
        notes.append(f"the two files target different modules ({len(slow.factors)} and {len(fast.factors)})")
    return notes


def _partner(adapter: Adapter) -> str:
    """Return the name of the other file, fit for a sentence."""
    return " ".join((adapter.pair.partner or "").split())[:100]


def _same_numbers(slow: Adapter, fast: Adapter) -> bool:
    """Return whether both do the same, and anything at all."""
    if slow.factors.keys() != fast.factors.keys() or not any(f.up.any() for f in slow.factors.values()):
        return False
    pairs = ((slow.factors[module], fast.factors[module]) for module in slow.factors)
    biases = slow.biases.keys() == fast.biases.keys() and all(
        b.scale == fast.biases[module].scale and torch.equal(b.vector, fast.biases[module].vector)
        for module, b in slow.biases.items()
    )
    return biases and all(
        x.scale == y.scale and torch.equal(x.up, y.up) and torch.equal(x.down, y.down) for x, y in pairs
    )
