"""The scale of modules without an alpha tensor, from a file's metadata or PEFT's configuration beside it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import AdapterError

_LONGEST = 4_000_000  # characters of a configuration; PEFT's for every layer of a large model has a twentieth of it
_COMPONENTS = ("transformer.", "transformer_2.", "unet.")  # of models with two transformers a file belongs to one
# Where trainers state one alpha for all modules. kohya's own key first; the others are seen in published files.
_ALPHA_KEYS = ("ss_network_alpha", "network_alpha", "lora_alpha", "transformer.lora_alpha", "alpha")
# What PEFT's own saver writes: a module's name, perhaps with anchors or escaped dots.
_PATTERN = re.compile(r"(\^?)((?:[\w-]|\\?\.){1,500})(\$?)")


class StatedScale:
    """The scale of each module: from its alpha tensor, else from metadata or PEFT's configuration, else 1."""

    def __init__(self, path: Path, metadata: Mapping[str, str]):
        self._config, self._where = _peft_config(path, metadata)
        self._name = path.name
        self._header_alpha, self._header_key = _alpha_in_header(metadata)
        self._counts: Counter[str] = Counter()

    def of(self, module: str, rank: int, alpha: float | None) -> tuple[float | None, float]:
        """Return (alpha, scale) of one module.

        Args:
            alpha: the module's alpha tensor, None if it has none.
        """
        if alpha is not None:
            return alpha, alpha / rank
        if self._config:
            alpha = _number(self._by_pattern(module)) or _number(self._config.get("lora_alpha"))
            if alpha is not None:
                if self._config.get("use_rslora"):
                    self._counts[f"no alpha in the tensors: rank-stabilised alpha / sqrt(rank) from {self._where}"] += 1
                    return alpha * math.sqrt(rank), alpha / math.sqrt(rank)
                self._counts[f"no alpha in the tensors: alpha {alpha:g} from {self._where}"] += 1
                return alpha, alpha / rank
        if self._header_alpha is not None:
            self._counts[f"no alpha in the tensors: alpha {self._header_alpha:g} from {self._header_key}"] += 1
            return self._header_alpha, self._header_alpha / rank
        self._counts[
            "no alpha in the file: scale 1 assumed (alpha = rank); change the strength if it was trained at another"
        ] += 1
        return None, 1.0

    def assumed(self) -> list[str]:
        """Return what was assumed, one line per assumption."""
        return [f"{text} ({count} modules)" for text, count in self._counts.items()]

    @cached_property
    def _patterns(self) -> dict[tuple[bool, str], tuple[int, Any]]:
        """Read only if a module has no alpha of its own, as only then a pattern counts."""
        patterns = self._config.get("alpha_pattern")
        return _alpha_patterns(self._name, patterns if isinstance(patterns, dict) else {})

    def _by_pattern(self, module: str) -> Any:
        """Apply PEFT's rule: the first key wins that names the module's end, from its start or from a dot."""
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", module))] if self._patterns else []
        names = [(False, module[start:]) for start in starts]
        found = [self._patterns[name] for name in [(True, module), *names] if name in self._patterns]
        return min(found, key=lambda entry: entry[0])[1] if found else None


def _alpha_in_header(metadata: Mapping[str, str]) -> tuple[float | None, str]:
    """Return the alpha that the metadata states for all modules, and where; the first key counts if several differ."""
    stated = [(alpha, key) for key in _ALPHA_KEYS if (alpha := _number(metadata.get(key))) is not None]
    if not stated:
        return None, ""
    (alpha, where), *others = stated
    differing = [f"{key} {other:g}" for other, key in others if other != alpha]
    return alpha, f"{where} (it also states {' and '.join(differing)})" if differing else where


def _alpha_patterns(name: str, patterns: Mapping[str, Any]) -> dict[tuple[bool, str], tuple[int, Any]]:
    """Return {(anchored at the start, module name): (place in the file, alpha)}."""
    read: dict[tuple[bool, str], tuple[int, Any]] = {}
    for place, (pattern, alpha) in enumerate(patterns.items()):
        found = _PATTERN.fullmatch(pattern)
        if not found:
            raise AdapterError(
                f"{name}: {pattern[:60]!r} in PEFT's alpha_pattern cannot be read, as it is not a plain module name; "
                f"write module names instead"
            )
        read.setdefault((bool(found[1]), found[2].replace("\\.", ".")), (place, alpha))
    return read


def _peft_config(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Return PEFT's settings and where they stand: diffusers' metadata, or PEFT's configuration beside the file."""
    text = metadata.get("lora_adapter_metadata")
    if text:
        loaded = _json_object(text, f"{path.name}: its lora_adapter_metadata")
        return _of_denoiser(loaded), "lora_adapter_metadata"
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        try:
            with open(beside, encoding="utf-8") as file:
                text = file.read(_LONGEST + 1)
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{path.name}: {beside.name} beside it cannot be read ({error}); it holds the alpha, so get it again"
            ) from error
        return _json_object(text, f"{path.name}: {beside.name} beside it"), beside.name
    return {}, ""


def _of_denoiser(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the diffusion model: diffusers writes each component's under its own prefix."""
    for prefix in _COMPONENTS:
        found = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
        if found:
            return found
    return dict(config)


def _json_object(text: str, what: str) -> dict[str, Any]:
    if len(text) > _LONGEST:
        raise AdapterError(f"{what} has over {_LONGEST} characters; it holds the alpha, so get the file again")
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{what} is not JSON; it holds the alpha, so get the file again") from error
    return loaded if isinstance(loaded, dict) else {}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
