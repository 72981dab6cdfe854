"""The tiny model's language: 27 words in nine slots, and a parser from free prompts to slots.

A prompt describes up to two objects and the background: "a small red star left and a large blue ring on striped black".
What it leaves out is free ("any"). A prompt with one object rules out a second one. The empty prompt is the
unconditional one.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import Embedding

from ..errors import PromptError

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
POSITIONS = ("left", "right", "top", "bottom", "center")
TEXTURES = ("plain", "striped", "checkered", "dotted")
GROUNDS = ("black", "white", "grey", "pink")

ANY, NONE = 0, 1
WORDS = ("any", "none", *SIZES, *COLOURS, *SHAPES, *POSITIONS, *TEXTURES, *GROUNDS)
INDEX = {word: i for i, word in enumerate(WORDS)}
# Slots of a prompt: the first object, the second, the background. The second lies opposite the first.
SLOTS = ("size", "colour", "shape", "position", "size", "colour", "shape", "texture", "ground")
FIRST, SECOND, BACKGROUND = range(0, 4), range(4, 7), range(7, 9)
JOINTS = frozenset({"and", "with"})
FILLERS = frozenset({"a", "an", "the", "on", "in", "at", "of", "to", "background", "side", "picture", "image"})
SYNONYMS = {
    "centre": "center", "middle": "center", "gray": "grey", "big": "large", "little": "small", "tiny": "small",
    "above": "top", "below": "bottom", "disc": "circle", "violet": "purple", "turquoise": "cyan",
    "stripes": "striped", "dots": "dotted", "checks": "checkered",
}  # fmt: skip


def parse(prompt: str) -> tuple[int, ...]:
    """Return the nine word indices of a prompt.

    A slot is ANY if the prompt does not mention it. The second object's slots are NONE if the prompt names one object.
    Size and colour stand before their shape. A place belongs to the last shape before it, or else to the first.

    Raises:
        PromptError: for an unknown word, a third shape, two values for one slot, or what cannot be painted.
    """
    slots = [ANY] * len(SLOTS)
    words = _words(prompt)
    shapes = [i for i, word in enumerate(words) if word in SHAPES]
    if len(shapes) > 2:
        raise PromptError(f"prompt {prompt[:80]!r} names {len(shapes)} shapes; the tiny model draws at most two")
    two = len(shapes) == 2
    begins = _second_begins(words, shapes) if two else len(words)
    for i, word in enumerate(words):
        kind = next((k for k, known in KINDS.items() if word in known), None)
        if kind in ("size", "colour") and shapes and i > shapes[0] and not (two and begins <= i < shapes[1]):
            raise PromptError(
                f"in prompt {prompt[:80]!r} the word {word} stands after its shape; put size and colour before the "
                "shape"
            )
        if kind in ("size", "colour", "shape"):
            _fill(slots, SECOND if i >= begins else FIRST, kind, word, prompt)
        elif kind == "position":
            if two and word == "center":
                raise PromptError(
                    f"prompt {prompt[:80]!r} puts one of two shapes in the center; two shapes lie opposite each other: "
                    "left, right, top, bottom"
                )
            _fill(slots, FIRST, kind, OPPOSITE[word] if two and i > shapes[1] else word, prompt)
        elif kind is not None:
            _fill(slots, BACKGROUND, kind, word, prompt)
    if any(slots) and not two:
        for slot in SECOND:
            slots[slot] = NONE
    return tuple(slots)


def _second_begins(words: list[str], shapes: list[int]) -> int:
    """Return where the second object begins: after the "and" or "with" between the shapes, or the first shape."""
    joints = [i for i in range(shapes[0] + 1, shapes[1]) if words[i] in JOINTS]
    return joints[0] + 1 if joints else shapes[0] + 1


def _words(prompt: str) -> list[str]:
    """Return the prompt's words without synonyms and fillers; words that join two objects stay."""
    words = [SYNONYMS.get(word, word) for word in re.findall(r"[^\W_]+", prompt.lower())]
    words = [word for word in words if word not in FILLERS]
    known = {*WORDS[2:], *JOINTS}
    for word in words:
        if word not in known:
            raise PromptError(f"the tiny model does not know the word {word[:40]!r}; it knows {', '.join(WORDS[2:])}")
    return words


def _fill(slots: list[int], allowed: range, kind: str, word: str, prompt: str) -> None:
    slot = next(s for s in allowed if SLOTS[s] == kind)
    if slots[slot] not in (ANY, INDEX[word]):
        raise PromptError(
            f"prompt {prompt[:80]!r} gives one {kind} twice: {WORDS[slots[slot]]} and {word}; leave one out"
        )
    slots[slot] = INDEX[word]


OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}  # where a second object lies
KINDS = {
    "size": SIZES,
    "colour": COLOURS,
    "shape": SHAPES,
    "position": POSITIONS,
    "texture": TEXTURES,
    "ground": GROUNDS,
}


def caption(slots: tuple[int, ...]) -> str:
    """Return the prompt for nine word indices; `parse` reads it back."""
    word = [WORDS[i] if i > NONE else "" for i in slots]
    first, second, ground = (" ".join(word[i] for i in part if word[i]) for part in (FIRST, SECOND, BACKGROUND))
    objects = " and ".join(f"a {part}" for part in (first, second) if part)
    return f"{objects} on {ground}" if objects and ground else objects or ground


class TextTable(nn.Module):
    """The text encoder: a learned vector per word and per slot.

    A token is the sum of the two, and the pooled vector is the mean token.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.word = Embedding(len(WORDS), width)
        self.slot = Embedding(len(SLOTS), width)

    def forward(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map slots (B, 9), integers, to tokens (B, 9, width) and pooled (B, width)."""
        tokens: torch.Tensor = self.word(slots) + self.slot.weight
        return tokens, tokens.mean(1)
