"""Changes of a layer that ComfyUI's adapter classes compute while the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.weight_adapter.bypass import get_module_type_info

from ...glance_core.change import Before, BoundChange, Change, add_rows
from ...glance_core.low_rank import features, is_convolution

Tensor = torch.Tensor


@dataclass(frozen=True)
class Place:
    """Where an update acts. name: for errors. layer: the module. start, rows: of its weight's first dimension."""

    name: str
    layer: torch.nn.Module
    start: int
    rows: int
    dtype: torch.dtype

    @property
    def whole(self) -> bool:
        """Whether it is all of the layer."""
        return self.start == 0 and self.rows == self.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer's weight: (out, in, *kernel)."""
        inside, outside = features(self.layer) or (0, 0)
        groups = getattr(self.layer, "groups", 1)
        return (outside, inside // groups, *getattr(self.layer, "kernel_size", ()))


class _HostAdapter(Change):
    """ComfyUI's adapter with its tensors as parameters."""

    def __init__(self, adapter: Any, place: Place, dtype: torch.dtype):
        super().__init__()
        self.adapter, self.place = adapter, place
        for number, value in enumerate(adapter.weights):
            if isinstance(value, Tensor):
                self.keep(f"weight{number}", value, dtype)

    def on_device(self, tensors: dict[str, Tensor]) -> Any:
        """Return another of the same kind, with these tensors."""
        values = [tensors.get(f"weight{number}", value) for number, value in enumerate(self.adapter.weights)]
        return type(self.adapter)(set(), tuple(values))


class AddedByHost(_HostAdapter):
    """What ComfyUI's adapter adds to a Linear's output, by its own function for that."""

    def __init__(self, adapter: Any, place: Place):
        super().__init__(adapter, place, place.dtype)

    def bind(self, tensors: dict[str, Tensor], strength: float) -> BoundChange:
        adapter = self.on_device(tensors)
        for name, value in get_module_type_info(self.place.layer).items():
            setattr(adapter, name, value)
        adapter.kw_dict, adapter.multiplier = {}, 1.0
        return _AddedByHost(adapter, self.place.start, strength)


@dataclass(frozen=True)
class _AddedByHost:
    adapter: Any
    start: int
    strength: float

    def answer(self, module: Any, x: Tensor, before: Before) -> Tensor:
        return add_rows(before(x), self.adapter.h(x, x), self.start, self.strength)


class RotatedByHost(_HostAdapter):
    """An orthogonal map of the output, without the bias, as ComfyUI's adapter maps the weight, in float32."""

    def __init__(self, adapter: Any, place: Place):
        super().__init__(adapter, place, torch.float32)

    def bind(self, tensors: dict[str, Tensor], strength: float) -> BoundChange:
        return _RotatedByHost(self.on_device(tensors), self.place, strength)


@dataclass(frozen=True)
class _RotatedByHost:
    adapter: Any
    place: Place
    strength: float

    def answer(self, module: Any, x: Tensor, before: Before) -> Tensor:
        dim = 1 if is_convolution(module) else -1
        y = before(x)
        nothing = x.new_zeros(1, *x.shape[1:]) if dim == 1 else x.new_zeros(1, x.shape[-1])
        product = y - before(nothing)  # without the bias, which a merge leaves alone
        rows = product.narrow(dim, self.place.start, self.place.rows).movedim(dim, 0)
        flat = rows.float().flatten(1)
        merged = self.adapter.calculate_weight(flat.clone(), self.place.name, self.strength, 1.0, None, lambda a: a)
        added = (merged - flat).reshape(rows.shape).movedim(0, dim)
        return add_rows(y, added, self.place.start, 1.0, dim)
