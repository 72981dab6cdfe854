"""What a Glance adapter says about itself in its safetensors metadata: read, checked, written. See FORMAT.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .. import __version__
from ..errors import AdapterError, ScheduleError, printable
from ..models import base_model
from ..sampling.solver import Solver
from ..schedule.sigmas import FIXED_SHIFT, HOST, LISTED, MOST_TEACHER_STEPS, SIGMA_RULES, teacher_sigmas
from ..schedule.split import FAST, SLOW, Split, parse_steps
from .safetensors_io import HASH

FORMAT = 2
_READ_FORMATS = ("1", "2")
_LONGEST = 500_000  # characters of a value: a solver of a hundred steps has ten thousand numbers
_METHOD = "https://arxiv.org/abs/2512.02899"
_MODELSPEC_TIMESTEPS = 1000
_ROLES = {SLOW: "at high noise, where the layout forms", FAST: "at lower noise, down to the finished picture"}

# Format 1 had other names for these fields and objectives.
_NAMES_IN_FORMAT_1 = {"sigma_rule": "ladder", "comparison": "verdict"}
_OBJECTIVES_IN_FORMAT_1 = {"trajectory": "teacher_forced", "aimed": "on_policy", "end to end": "end_to_end"}
_FOLDED_IN_FORMAT_1 = ", fold guidance"


@dataclass(frozen=True)
class PairMetadata:
    """How an adapter was trained; None where the file does not say.

    phase: `slow` or `fast`. base: the base model's name in models.py; fingerprint: a hash of its weights' names and
    shapes. sigma_rule, teacher_steps: the teacher's sigmas; shift: if the rule is `shift`; teacher_sigmas: all of them,
    if the rule is `list`. steps: the split, 1-based (`1,3|11,50`). sigmas: those of this phase. partner: the other
    file's name. pair: an identifier that both share. objective, fold_guidance, guidance, rank, alpha, seed: the
    training; guidance is what to sample with. solver: `Solver.dumps()` of the solver for these steps. resolution:
    trained size, `1024x1024`. psnr_pair, psnr_base: how close pair and base came to the teacher, dB. kept: the trained
    components that helped, the others have no effect; comparison: what the ablation found, as text.
    """

    phase: str | None = None
    base: str | None = None
    fingerprint: str | None = None
    sigma_rule: str | None = None
    teacher_steps: int | None = None
    shift: float | None = None
    teacher_sigmas: tuple[float, ...] | None = None
    steps: str | None = None
    sigmas: tuple[float, ...] | None = None
    partner: str | None = None
    pair: str | None = None
    objective: str | None = None
    fold_guidance: bool | None = None
    guidance: float | None = None
    rank: int | None = None
    alpha: float | None = None
    seed: int | None = None
    image_sha256: str | None = None
    psnr_pair: float | None = None
    psnr_base: float | None = None
    solver: str | None = None
    kept: str | None = None
    comparison: str | None = None
    resolution: str | None = None

    @property
    def split(self) -> Split | None:
        """The teacher steps of both phases, if the file states them."""
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


def _boolean(text: str) -> bool:
    return {"True": True, "False": False}[text]


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
    "teacher_sigmas": _sigmas,
    "fold_guidance": _boolean,
}


def read_metadata(name: str, metadata: Mapping[str, str]) -> PairMetadata:
    """Read the `glance.*` fields of a file's metadata, of format 1 too.

    Args:
        name: the file's, for errors.

    Raises:
        AdapterError: for a value that no writer of the format writes.
    """
    version = metadata.get("glance.format")
    if version is None:
        return PairMetadata()
    if version not in _READ_FORMATS:
        raise AdapterError(
            f"{name}: glance.format is {version[:20]!r}, but this version reads {' and '.join(_READ_FORMATS)}; update "
            "the pack"
        )
    names = _NAMES_IN_FORMAT_1 if version == "1" else {}
    values: dict[str, Any] = {}
    for item in fields(PairMetadata):
        key = f"glance.{names.get(item.name, item.name)}"
        text = metadata.get(key)
        if text is None:
            continue
        try:
            if len(text) > _LONGEST:
                raise ValueError("too long")
            values[item.name] = _READERS.get(item.name, printable)(text)
        except (ValueError, TypeError, RecursionError, KeyError) as error:
            raise AdapterError(
                f"{name}: {key} is {text[:40]!r}, which is not valid; the file was edited or damaged"
            ) from error
    if version == "1" and "objective" in values:
        values |= _objective_of_format_1(values["objective"])
    found = PairMetadata(**values)
    _check(name, found, names)
    if version == "1" and found.solver is not None:
        found = replace(found, solver=Solver.loads(found.solver).dumps())  # format 1 had other names inside
    return found


def _objective_of_format_1(text: str) -> dict[str, Any]:
    """Return objective and fold_guidance of a name like `aimed, fold guidance`."""
    plain = text.removesuffix(_FOLDED_IN_FORMAT_1)
    return {"objective": _OBJECTIVES_IN_FORMAT_1.get(plain, plain), "fold_guidance": plain != text}


def _check(name: str, found: PairMetadata, names: Mapping[str, str]) -> None:
    rule_key = f"glance.{names.get('sigma_rule', 'sigma_rule')}"
    if found.phase is not None and found.phase not in (SLOW, FAST):
        raise AdapterError(f"{name}: glance.phase is {found.phase[:20]!r}; it must be slow or fast")
    if found.sigma_rule is not None and found.sigma_rule not in SIGMA_RULES:
        raise AdapterError(
            f"{name}: {rule_key} is {found.sigma_rule[:20]!r}; this version knows {', '.join(SIGMA_RULES)}"
        )
    if found.sigma_rule == FIXED_SHIFT and found.shift is None:
        raise AdapterError(f"{name}: {rule_key} is shift but glance.shift is missing; the file was edited or damaged")
    if found.sigma_rule == LISTED:
        try:
            teacher_sigmas(LISTED, found.teacher_steps or 0, sigmas=found.teacher_sigmas)
        except ScheduleError as error:
            raise AdapterError(f"{name}: {rule_key} is list, and glance.teacher_sigmas: {error}") from error
    if found.teacher_steps is not None and not 2 <= found.teacher_steps <= MOST_TEACHER_STEPS:
        raise AdapterError(
            f"{name}: glance.teacher_steps is {found.teacher_steps}; it must lie between 2 and {MOST_TEACHER_STEPS}"
        )
    try:
        split = found.split
    except ScheduleError as error:
        raise AdapterError(f"{name}: glance.steps cannot be used: {error}") from error
    if found.solver is not None:
        try:
            solver = Solver.loads(found.solver)
        except ScheduleError as error:
            raise AdapterError(f"{name}: glance.solver: {error}") from error
        if split is None or len(split.steps) != solver.steps:
            raise AdapterError(
                f"{name}: glance.solver has {solver.steps} steps but glance.steps is {found.steps}; the file was "
                "edited or damaged"
            )


def written_metadata(
    pair: PairMetadata, title: str, implementation: str | None = None, date: str | None = None
) -> dict[str, str]:
    """Return the metadata to store: `glance.*`, and what other tools show of a LoRA.

    Args:
        implementation: whose names the modules have.
        date: in ISO 8601.
    """
    metadata = {"glance.format": str(FORMAT), "glance.tool": f"glance-comfyui {__version__}"}
    for item in fields(PairMetadata):
        value = getattr(pair, item.name)
        if value is not None:
            metadata[f"glance.{item.name}"] = json.dumps(value) if isinstance(value, tuple) else str(value)
    others: dict[str, str | None] = {
        "modelspec.title": title,
        "modelspec.description": _description(pair),
        "modelspec.usage_hint": _usage(pair),
        "modelspec.date": date,
        "modelspec.resolution": pair.resolution,
        "modelspec.timestep_range": _timestep_range(pair),
        "modelspec.hash_sha256": f"0x{HASH}",
        "sshs_model_hash": HASH,
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": None if pair.rank is None else str(pair.rank),
        "ss_network_alpha": None if pair.alpha is None else f"{pair.alpha:g}",
        "ss_seed": None if pair.seed is None else str(pair.seed),
    }
    if pair.base:
        row = base_model(pair.base)
        others |= {
            "ss_base_model_version": row.kohya or row.name,
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{row.modelspec or row.name}/lora",
            "modelspec.implementation": implementation,
        }
    return metadata | {key: value for key, value in others.items() if value is not None}


def _description(pair: PairMetadata) -> str | None:
    if pair.phase is None:
        return None
    of = f" for {pair.base}" if pair.base else ""
    sentences = [
        f"The {pair.phase.title()} half of a Glance pair{of}: it answers {_ROLES[pair.phase]}",
        f"Teacher steps {pair.steps} of {pair.teacher_steps}" if pair.split else None,
        pair.comparison,
        f"Method: {_METHOD}",
    ]
    return ". ".join(sentence for sentence in sentences if sentence)


def _usage(pair: PairMetadata) -> str | None:
    if pair.phase is None:
        return None
    beside = f", beside {pair.partner}" if pair.partner else ""
    return f"Load Glance LoRA, as {pair.phase}_lora{beside}; not alone in Load LoRA"


def _timestep_range(pair: PairMetadata) -> str | None:
    """Return the noise levels trained on, out of ModelSpec's 1000; for flow models only."""
    if not pair.sigmas or pair.sigma_rule in (None, HOST) or max(pair.sigmas) > 1:
        return None
    ends = (min(pair.sigmas), max(pair.sigmas))
    return ",".join(str(min(_MODELSPEC_TIMESTEPS - 1, round(_MODELSPEC_TIMESTEPS * sigma))) for sigma in ends)
