"""What a file's metadata, or PEFT's configuration beside it, says of the scale of modules whose tensors state none. Nothing of it is trusted."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import AdapterError

_LONGEST = 4_000_000  # characters of a configuration; PEFT's for every layer of a large model has a twentieth of it
_LONGEST_PATTERN = 200
_PIECES = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|.", re.DOTALL)  # of a regular expression: escapes and classes are one piece
_SLOW = re.compile(r"\)[*+{]|\(\?[^:]")  # a repeated group or a look-around: no bound is known for what those take
_WAYS = 100_000_000  # that all patterns together may find to match all modules; a few seconds' worth at the very worst
_COMPILED = 20_000  # such ways as long as one pattern takes to compile


class StatedScale:
    """The scale of a module: its alpha tensor, else what the file's own metadata or PEFT configuration says, else 1."""

    def __init__(self, path: Path, metadata: Mapping[str, str]):
        self._config, self._where = _peft_config(path, metadata)
        self._kohya = _number(metadata.get("ss_network_alpha"))
        self._path = path
        self._counts: Counter[str] = Counter()
        self._ways = 0

    def of(self, module: str, rank: int, alpha: float | None) -> tuple[float | None, float]:
        """(alpha, scale) of one module."""
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
        if self._kohya is not None:
            self._counts[f"no alpha in the tensors: alpha {self._kohya:g} from ss_network_alpha"] += 1
            return self._kohya, self._kohya / rank
        self._counts["no alpha in the file: scale 1 assumed (alpha = rank); set the strength if it was trained at another"] += 1
        return None, 1.0

    def assumed(self) -> list[str]:
        return [f"{text} ({count} modules)" for text, count in self._counts.items()]

    def _by_pattern(self, module: str) -> Any:
        """PEFT's rule for alpha_pattern: the key, a regular expression, matches the end of the name from its start or from a dot on."""
        for pattern, (choices, repeats), compiled, value in self._patterns:
            self._spend(pattern, choices * (len(module) + 1) ** repeats * (module.count(".") + 1))
            if compiled.fullmatch(module):
                return value
        return None

    @cached_property
    def _patterns(self) -> list[tuple[str, tuple[int, int], re.Pattern[str], Any]]:
        found = self._config.get("alpha_pattern")
        patterns = []
        for pattern, value in found.items() if isinstance(found, dict) else ():
            self._spend(pattern, _COMPILED)
            try:
                if len(pattern) > _LONGEST_PATTERN or _SLOW.search(f"({pattern})"):
                    raise re.error("it could take for ever")
                patterns.append((pattern, _ways(pattern), re.compile(rf"(.*\.)?({pattern})"), value))
            except (re.error, OverflowError, RecursionError) as error:
                raise self._unread(pattern, str(error)) from error
        return patterns

    def _spend(self, pattern: str, ways: int) -> None:
        self._ways += ways
        if self._ways > _WAYS:
            raise self._unread(pattern, "it could take for ever")

    def _unread(self, pattern: str, why: str) -> AdapterError:
        return AdapterError(
            f"{self._path.name}: {pattern[:60]!r} in PEFT's alpha_pattern cannot be read ({why}); write the modules' names in its place"
        )


def _ways(pattern: str) -> tuple[int, int]:
    """(choices, repeats): Python's matcher, which tries one way after the other, has at most choices * (n + 1)^repeats of them for a
    text of n characters. Of what stands in a row they multiply, of alternatives they add up."""
    waiting: list[tuple[tuple[int, int], tuple[int, int]]] = []
    others, row = (0, 0), (1, 0)
    for piece in _PIECES.findall(pattern):
        if piece in "*+{":
            row = row[0], row[1] + 1
        elif piece == "?":
            row = 2 * row[0], row[1]
        elif piece == "|":
            others, row = _either(others, row), (1, 0)
        elif piece in ("(", "(?:"):
            waiting.append((others, row))
            others, row = (0, 0), (1, 0)
        elif piece == ")":
            if not waiting:
                raise re.error("unbalanced parenthesis")
            inner, (others, row) = _either(others, row), waiting.pop()
            row = row[0] * inner[0], row[1] + inner[1]
    return _either(others, row)


def _either(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], max(one[1], other[1])


def _peft_config(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """PEFT's settings, from diffusers' metadata or from the configuration PEFT saves beside its adapter_model.safetensors."""
    text = metadata.get("lora_adapter_metadata")
    if text:
        loaded = _json_object(text, f"{path.name}: its lora_adapter_metadata")
        prefixed = {k.removeprefix("transformer."): v for k, v in loaded.items() if k.startswith("transformer.")}
        return prefixed or {k.removeprefix("unet."): v for k, v in loaded.items()}, "lora_adapter_metadata"
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        try:
            with open(beside, encoding="utf-8") as file:
                text = file.read(_LONGEST + 1)
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{path.name}: {beside.name} beside it cannot be read ({error}); it holds the alpha, get it again"
            ) from error
        return _json_object(text, f"{path.name}: {beside.name} beside it"), beside.name
    return {}, ""


def _json_object(text: str, what: str) -> dict[str, Any]:
    if len(text) > _LONGEST:
        raise AdapterError(f"{what} has over {_LONGEST} characters; it holds the alpha, get the file again")
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{what} is no JSON; it holds the alpha, get the file again") from error
    return loaded if isinstance(loaded, dict) else {}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
