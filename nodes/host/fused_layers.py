"""Layers that ComfyUI computes without calling them, by a kernel that reads their weight.

In the down projections of some MLPs the activation is folded into the INT8 quantiser. A branch on such a layer needs
the activation itself, so while a branch answers there, the layer is called as ComfyUI calls it in training. Norms of
queries and keys are folded into the rotary embedding, for which their weights are read: changed ones, while a change
answers there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops

from ...glance_core.change import BoundNormDifference
from ...glance_core.switch import changes_read_now, has_active_branch

_FUSED, _READ = "linear_input_act", "cast_bias_weight"


@contextmanager
def layers_with_branches_are_called() -> Iterator[None]:
    """Let branches and changes act on layers that ComfyUI does not call. Undone at the end."""
    with ExitStack() as afterwards:
        for name, replacement in ((_FUSED, _called), (_READ, _changed)):
            own = getattr(comfy.ops, name, None)
            if own is not None:
                afterwards.callback(setattr, comfy.ops, name, own)
                setattr(comfy.ops, name, replacement(own))
        yield


def _called(fused: Any) -> Any:
    def linear_input_act(linear: Any, x: Any, input_act: str) -> Any:
        if has_active_branch(linear):
            return linear(comfy.ops.INPUT_ACT_EAGER[input_act](x))
        return fused(linear, x, input_act)

    return linear_input_act


def _changed(read: Any) -> Any:
    def cast_bias_weight(layer: Any, *args: Any, **kwargs: Any) -> Any:
        weight, bias, *rest = read(layer, *args, **kwargs)
        for change in changes_read_now(layer):
            if isinstance(change, BoundNormDifference):
                weight, bias = change.changed(weight, bias)
        return (weight, bias, *rest)

    return cast_bias_weight
