"""Load one LoRA file of any method onto a MODEL, for all noise levels or some, and report what was found."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import comfy.lora_convert

from ...glance_core.lora.reader import Adapter, read_adapter
from .adapter_timing import LoraTiming
from .base_model import compute_dtype, describe
from .log import log
from .lora_match import Matched, key_map, match
from .patcher import CarriedAdapter, attach

_MOST_NAMED = 5  # modules that a report names
_last_read: dict[tuple[str, int, int], Adapter] = {}  # one file, so that another strength needs no disk


def load_lora(model: Any, path: str, timing: LoraTiming) -> tuple[Any, str]:
    """Return (MODEL that carries the LoRA, report). Raises AdapterError."""
    adapter = _read(path)
    matched = match(adapter, model, key_map(model))
    carrying = attach(model, [CarriedAdapter(adapter.name, matched.updates if timing.acts else {}, timing)])
    if matched.unmatched:
        count, first = len(matched.unmatched), matched.unmatched[0]
        log.warning("Glance: %d modules of %s are not in the model; the first is %s", count, adapter.name, first)
    return carrying, _report(model, adapter, matched, timing)


def _read(path: str) -> Adapter:
    found = os.stat(path)
    key = (os.path.realpath(path), found.st_mtime_ns, found.st_size)
    if key not in _last_read:
        adapter = read_adapter(path, rename=comfy.lora_convert.convert_lora, every_method=True)
        _last_read.clear()
        _last_read[key] = adapter
    return _last_read[key]


def _report(model: Any, adapter: Adapter, matched: Matched, timing: LoraTiming) -> str:
    kinds = Counter(other.method for other in adapter.others.values())
    if adapter.factors:
        kinds["LoRA"] = len(adapter.factors)
    lines = [
        f"model: {describe(model)}, computes in {str(compute_dtype(model)).removeprefix('torch.')}",
        f"file: {adapter.name}, {', '.join(f'{count} x {method}' for method, count in sorted(kinds.items()))}",
        f"modules: {matched.modules} matched on {len(matched.updates)} layers, {len(matched.unmatched)} unmatched",
        f"acts: {timing.told(model)}",
    ]
    lines += [f"unmatched: {name}" for name in matched.unmatched[:_MOST_NAMED]]
    if len(matched.unmatched) > _MOST_NAMED:
        lines.append(f"unmatched: and {len(matched.unmatched) - _MOST_NAMED} more")
    lines += [f"assumed: {text}" for text in adapter.assumed if not text.startswith("phase not stated")]
    return "\n".join(lines)
