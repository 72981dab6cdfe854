"""Layers that ComfyUI computes without calling them, by a kernel that reads their weight.

In the down projections of some MLPs the activation is folded into the INT8 quantiser. A branch on such a layer needs
the activation itself, so while a branch answers there, the layer is called as ComfyUI calls it in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ops

from ...glance_core.switch import has_active_branch

_FUSED = "linear_input_act"


@contextmanager
def layers_with_branches_are_called() -> Iterator[None]:
    """Let ComfyUI call the layers on which a branch answers. Undone at the end."""
    fused = getattr(comfy.ops, _FUSED, None)
    if fused is None:
        yield
        return

    def linear_input_act(linear: Any, x: Any, input_act: str) -> Any:
        if has_active_branch(linear):
            return linear(comfy.ops.INPUT_ACT_EAGER[input_act](x))
        return fused(linear, x, input_act)

    setattr(comfy.ops, _FUSED, linear_input_act)
    try:
        yield
    finally:
        setattr(comfy.ops, _FUSED, fused)
