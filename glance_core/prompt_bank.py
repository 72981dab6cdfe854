"""A bank of varied prompts that a pair can be trained from where nobody has prompts of their own."""

from __future__ import annotations

from pathlib import Path

from .errors import GlanceError

PROMPTS = Path(__file__).parent / "prompts.txt"
SIZE = 256  # so that a node knows its range without the file


def bank(count: int | None = None) -> list[str]:
    """The first `count` prompts of the bank, all of them without it. The order is mixed, so that the first few are varied too.

    Raises GlanceError if `count` is below 1 or more than the bank holds.
    """
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    if count is not None and not 1 <= count <= len(prompts):
        raise GlanceError(f"{count} prompts were asked for; the bank holds {len(prompts)}, so ask for 1 to {len(prompts)}")
    return prompts[:count]
