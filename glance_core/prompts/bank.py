"""A bank of varied prompts to train a pair from, for people without prompts of their own."""

from __future__ import annotations

from pathlib import Path

from ..errors import GlanceError

PROMPTS = Path(__file__).parent / "prompts.txt"
SIZE = 256  # so that a node knows its range without reading the file


def bank(count: int | None = None) -> list[str]:
    """Return the first `count` prompts, or all. They are in mixed order, so the first few are varied too.

    Raises:
        GlanceError: if `count` is below 1 or more than the bank holds.
    """
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    if count is not None and not 1 <= count <= len(prompts):
        raise GlanceError(f"the bank cannot give {count} prompts; choose 1 to {len(prompts)}")
    return prompts[:count]
