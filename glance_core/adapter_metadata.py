"""What a Glance adapter says of itself in its safetensors metadata: read, checked, written.

Keys: `glance.*` (ours), `modelspec.*` (Stability's model metadata standard) and `ss_*` (kohya's trainers), so that managers show them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from . import __version__
from .errors import AdapterError, ScheduleError
from .schedule import FAST, LADDERS, SLOW, Split, parse_steps
from .solver import Solver

FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """How an adapter was trained; None where the file does not say.

    phase `slow` or `fast`; base the architecture (`flux`, `qwen-image`, ...) and fingerprint a hash of its module names and shapes;
    ladder and teacher_steps the teacher's walk, shift where the ladder is `shift`; steps the split (1-based, `1,3|11,50`);
    sigmas those trained on; solver the coefficients fitted for these steps (`solver.Solver.dumps`); psnr_pair and psnr_base how near the
    pair and the bare base came to the teacher (dB) when it was trained; kept the parts of the training that helped (`parts.Choice`), the
    others being without effect, and verdict what was found of them; partner the other file's name, pair an identifier both share.
    """

    phase: str | None = None
    base: str | None = None
    fingerprint: str | None = None
    ladder: str | None = None
    teacher_steps: int | None = None
    shift: float | None = None
    steps: str | None = None
    sigmas: tuple[float, ...] | None = None
    partner: str | None = None
    pair: str | None = None
    objective: str | None = None
    guidance: float | None = None
    rank: int | None = None
    alpha: float | None = None
    seed: int | None = None
    image_sha256: str | None = None
    psnr_pair: float | None = None
    psnr_base: float | None = None
    solver: str | None = None
    kept: str | None = None
    verdict: str | None = None

    @property
    def split(self) -> Split | None:
        """The teacher steps of both phases, where the file states them."""
        return parse_steps(self.steps, self.teacher_steps) if self.steps and self.teacher_steps else None


def _integer(text: str) -> int:
    return int(text, 10)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _sigmas(text: str) -> tuple[float, ...]:
    return tuple(_finite(str(value)) for value in json.loads(text))


_READERS: dict[str, Any] = {
    "teacher_steps": _integer,
    "rank": _integer,
    "seed": _integer,
    "shift": _finite,
    "guidance": _finite,
    "alpha": _finite,
    "psnr_pair": _finite,
    "psnr_base": _finite,
    "sigmas": _sigmas,
}


def read_trained(name: str, metadata: Mapping[str, str]) -> Trained:
    """The `glance.*` fields of a file's metadata. Raises AdapterError for a value that cannot be meant."""
    version = metadata.get("glance.format")
    if version is None:
        return Trained()
    if version != str(FORMAT):
        raise AdapterError(f"{name}: glance.format is {version[:20]!r}, this version reads {FORMAT}; update the pack")
    values: dict[str, Any] = {}
    for item in fields(Trained):
        text = metadata.get(f"glance.{item.name}")
        if text is None:
            continue
        try:
            values[item.name] = _READERS.get(item.name, str)(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise AdapterError(
                f"{name}: glance.{item.name} is {text[:40]!r}, which is no valid value; the file was edited or damaged"
            ) from error
    trained = Trained(**values)
    if trained.phase is not None and trained.phase not in (SLOW, FAST):
        raise AdapterError(f"{name}: glance.phase is {trained.phase[:20]!r}; it must be slow or fast")
    if trained.ladder is not None and trained.ladder not in LADDERS:
        raise AdapterError(f"{name}: glance.ladder is {trained.ladder[:20]!r}; this version knows {', '.join(LADDERS)}")
    if trained.ladder == "shift" and trained.shift is None:
        raise AdapterError(f"{name}: glance.ladder is shift but glance.shift is missing; the file was edited or damaged")
    if trained.teacher_steps is not None and not 2 <= trained.teacher_steps <= 10_000:
        raise AdapterError(f"{name}: glance.teacher_steps is {trained.teacher_steps}; it must lie between 2 and 10000")
    try:
        split = trained.split
    except ScheduleError as error:
        raise AdapterError(f"{name}: glance.steps cannot be walked: {error}") from error
    if trained.solver is not None:
        try:
            solver = Solver.loads(trained.solver)
        except ScheduleError as error:
            raise AdapterError(f"{name}: glance.solver: {error}") from error
        if split is None or len(split.steps) != solver.steps:
            raise AdapterError(
                f"{name}: glance.solver has {solver.steps} steps, glance.steps is {trained.steps}; the file was edited or damaged"
            )
    return trained


def written_metadata(trained: Trained, title: str) -> dict[str, str]:
    """The metadata to store: `glance.*`, and what the ecosystem's tools show of a LoRA."""
    metadata = {"glance.format": str(FORMAT), "glance.tool": f"glance-comfyui {__version__}"}
    for item in fields(Trained):
        value = getattr(trained, item.name)
        if value is not None:
            metadata[f"glance.{item.name}"] = json.dumps(value) if isinstance(value, tuple) else str(value)
    metadata |= {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.implementation": "https://arxiv.org/abs/2512.02899",
    }
    metadata["ss_network_module"] = "networks.lora"
    if trained.base:
        metadata["modelspec.architecture"] = f"{trained.base}/lora"
        metadata["ss_base_model_version"] = trained.base
    if trained.rank is not None:
        metadata["ss_network_dim"] = str(trained.rank)
    if trained.alpha is not None:
        metadata["ss_network_alpha"] = f"{trained.alpha:g}"
    return metadata
