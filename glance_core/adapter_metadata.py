"""What a Glance adapter says of itself in its safetensors metadata: read, checked, written.

`glance.*` is ours. So that managers show the file, it also has what they read:
- `modelspec.*`, Stability AI's ModelSpec 1.0.0: title, description, usage_hint, date, resolution, timestep_range (the noise levels trained on, of
  1000), hash_sha256; architecture and implementation by the names that kohya's trainers write and SwarmUI knows.
- `ss_*`, kohya's: output_name, base_model_version (ComfyUI's assets and LoRA managers show it), network_module, dim, alpha, seed; and
  `sshs_model_hash`, the SHA-256 of the tensors, by which Civitai (AutoV3) and A1111 know a file whose metadata was edited.
A preview picture lies beside the file (`lora_write.write_preview`), not in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from . import __version__
from .errors import AdapterError, ScheduleError, printable
from .schedule import FAST, LADDERS, MOST_TEACHER_STEPS, SLOW, Split, parse_steps
from .solver import Solver
from .tensor_file import HASH

FORMAT = 1
_LONGEST = 500_000  # characters of a value: a solver of a hundred steps has ten thousand numbers
_METHOD = "https://arxiv.org/abs/2512.02899"
# By base: the architecture as ModelSpec files state it, and ss_base_model_version. Others are stated under our own names.
_ELSEWHERE = {
    "flux": ("flux-1-dev", "flux1"), "flux-schnell": ("flux-1-schnell", "flux1"), "qwen-image": ("qwen-image", "qwen_image"),
    "sd1": ("stable-diffusion-v1", "sd_v1"), "sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"), "lumina2": ("lumina-2", "lumina2"),
    "hunyuan-video": ("hunyuan-video", "hunyuan_video"),
}  # fmt: skip
_ANSWERS = {SLOW: "at high noise, where the picture is laid out", FAST: "at lower noise, down to the finished picture"}


@dataclass(frozen=True)
class Trained:
    """How an adapter was trained; None where the file does not say.

    phase `slow` or `fast`; base the architecture (`flux`, `qwen-image`, ...) and fingerprint a hash of its module names and shapes;
    ladder and teacher_steps the teacher's walk, shift where the ladder is `shift`; steps the split (1-based, `1,3|11,50`);
    sigmas those trained on; solver the coefficients fitted for these steps (`solver.Solver.dumps`); psnr_pair and psnr_base how near the
    pair and the bare base came to the teacher (dB) when it was trained; kept the parts of the training that helped (`parts.Choice`), the
    others being without effect, and verdict what was found of them; partner the other file's name, pair an identifier both share;
    resolution the size trained at, `1024x1024`.
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
    resolution: str | None = None

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
            if len(text) > _LONGEST:
                raise ValueError("too long")
            values[item.name] = _READERS.get(item.name, printable)(text)
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
    if trained.teacher_steps is not None and not 2 <= trained.teacher_steps <= MOST_TEACHER_STEPS:
        raise AdapterError(f"{name}: glance.teacher_steps is {trained.teacher_steps}; it must lie between 2 and {MOST_TEACHER_STEPS}")
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


def written_metadata(trained: Trained, title: str, implementation: str | None = None, date: str | None = None) -> dict[str, str]:
    """The metadata to store: `glance.*`, and what the ecosystem's tools show of a LoRA. implementation: whose names the modules have; date:
    in ISO 8601."""
    metadata = {"glance.format": str(FORMAT), "glance.tool": f"glance-comfyui {__version__}"}
    for item in fields(Trained):
        value = getattr(trained, item.name)
        if value is not None:
            metadata[f"glance.{item.name}"] = json.dumps(value) if isinstance(value, tuple) else str(value)
    told: dict[str, str | None] = {
        "modelspec.title": title,
        "modelspec.description": _description(trained),
        "modelspec.usage_hint": _usage(trained),
        "modelspec.date": date,
        "modelspec.resolution": trained.resolution,
        "modelspec.timestep_range": _range(trained),
        "modelspec.hash_sha256": f"0x{HASH}",
        "sshs_model_hash": HASH,
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": None if trained.rank is None else str(trained.rank),
        "ss_network_alpha": None if trained.alpha is None else f"{trained.alpha:g}",
        "ss_seed": None if trained.seed is None else str(trained.seed),
    }
    if trained.base:
        architecture, told["ss_base_model_version"] = _ELSEWHERE.get(trained.base, (trained.base, trained.base))
        told |= {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.implementation": implementation,
        }
    return metadata | {key: value for key, value in told.items() if value is not None}


def _description(trained: Trained) -> str | None:
    if trained.phase is None:
        return None
    sentences = [
        f"The {trained.phase.title()} half of a Glance pair{f' for {trained.base}' if trained.base else ''}: it answers {_ANSWERS[trained.phase]}",
        f"Teacher steps {trained.steps} of {trained.teacher_steps}" if trained.split else None,
        trained.verdict,
        f"Method: {_METHOD}",
    ]
    return ". ".join(sentence for sentence in sentences if sentence)


def _usage(trained: Trained) -> str | None:
    if trained.phase is None:
        return None
    beside = f", beside {trained.partner}" if trained.partner else ""
    return f"Load Glance LoRA, as {trained.phase}_lora{beside}; not alone in Load LoRA"


def _range(trained: Trained) -> str | None:
    """The noise levels trained on, of the 1000 that the standard counts; for flows alone."""
    if not trained.sigmas or trained.ladder in (None, "model"):
        return None
    return ",".join(str(min(999, round(1000 * sigma))) for sigma in (min(trained.sigmas), max(trained.sigmas)))
