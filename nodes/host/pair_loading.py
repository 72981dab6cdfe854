"""Load two adapter files onto a MODEL, and report what was found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import comfy.lora_convert

from ...glance_core.lora.metadata import PairMetadata
from ...glance_core.lora.pair_check import check_pair
from ...glance_core.lora.reader import Adapter, read_adapter
from ...glance_core.schedule.sigmas import LISTED
from ...glance_core.schedule.split import FAST, SLOW
from ...glance_core.training.objectives import OBJECTIVES, Objective
from .adapter_timing import GlancePair, PairPhase
from .base_model import compute_dtype, describe
from .log import log
from .lora_match import Matched, check_base, key_map, match
from .model_sigmas import rule_of
from .patcher import CarriedAdapter, attach

_MOST_NAMED = 5  # modules that a report names


@dataclass(frozen=True)
class LoadedHalf:
    """One file of a pair on a model."""

    phase: str
    adapter: Adapter
    strength: float
    matched: Matched

    def on_model(self, pair: GlancePair) -> CarriedAdapter:
        """Return it as a MODEL carries it; without tensors if its strength is 0."""
        updates = self.matched.updates if self.strength else {}
        return CarriedAdapter(self.adapter.name, updates, PairPhase(pair, self.phase, self.strength))


def load_pair(
    model: Any, slow_path: str, fast_path: str, slow_strength: float = 1.0, fast_strength: float = 1.0
) -> tuple[Any, str]:
    """Return (MODEL that carries the pair, report). Raises AdapterError."""
    slow, fast = (read_adapter(path, rename=comfy.lora_convert.convert_lora) for path in (slow_path, fast_path))
    for adapter in (slow, fast):  # first, because only the model tells which of two differing files is wrong
        check_base(adapter, model)
    notes = check_pair(slow, fast, slow_strength == fast_strength)
    keys = key_map(model)
    of_slow = match(slow, model, keys)
    one_file = os.path.samefile(slow_path, fast_path)  # both phases then share its tensors
    halves = [
        LoadedHalf(SLOW, slow, slow_strength, of_slow),
        LoadedHalf(FAST, fast, fast_strength, of_slow if one_file else match(fast, model, keys)),
    ]
    metadata = _combined(slow, fast)
    pair = GlancePair(metadata)
    carrying = attach(model, [half.on_model(pair) for half in halves])
    for half in halves:
        if half.matched.unmatched:
            count, first = len(half.matched.unmatched), half.matched.unmatched[0]
            log.warning(
                "Glance: %d modules of %s are not in the model; the first is %s", count, half.adapter.name, first
            )
    return carrying, _report(model, halves, metadata, notes)


def _combined(slow: Adapter, fast: Adapter) -> PairMetadata:
    """Return what both files say together. One may state what the other leaves out; `check_pair` compared them."""
    stated = {item.name: getattr(slow.pair, item.name) for item in fields(PairMetadata)}
    stated = {name: value for name, value in stated.items() if value is not None}
    both = replace(fast.pair, **stated | {"sigmas": slow.pair.sigmas})  # each file states those of its own phase
    return both if slow.pair.solver == fast.pair.solver else replace(both, solver=None)


def _report(model: Any, halves: Sequence[LoadedHalf], metadata: PairMetadata, notes: Sequence[str]) -> str:
    lines = [f"model: {describe(model)}, computes in {str(compute_dtype(model)).removeprefix('torch.')}"]
    for half in halves:
        lines += _half_lines(half)
    lines += [f"note: {note}" for note in notes]
    lines += _training_lines(metadata)
    if metadata.solver is not None:
        lines.append(
            "solver: fitted for these teacher steps, with its own guidance; Phase Split Sampler uses it with sampler "
            "auto"
        )
    elif any(half.adapter.pair.solver for half in halves):
        lines.append("solver: not used, because the two files state different ones")
    if metadata.sigma_rule or metadata.steps:
        levels = metadata.sigma_rule or "sigmas not stated"
        if metadata.sigma_rule == LISTED:
            made = f", made at {metadata.resolution}" if metadata.resolution else ""
            levels = f"a list in the file{made}"
        steps, total = metadata.steps or "not stated", metadata.teacher_steps or 50
        lines.append(f"schedule: {levels}, teacher steps {steps} of {total}, from the file")
    else:
        lines.append(
            f"schedule: not stated in the files; {rule_of(model)} assumed, switching at teacher step 11 of 50 as in "
            "the paper"
        )
    return "\n".join(lines)


def _half_lines(half: LoadedHalf) -> list[str]:
    adapter, matched, described = half.adapter, half.matched, half.adapter.describe()
    ranks, scales = (", ".join(f"{value:g}" for value in described[name]) for name in ("rank", "scale"))
    lines = [
        f"{half.phase}: {adapter.name}, strength {half.strength:g}",
        f"  modules: {matched.modules} matched on {len(matched.updates)} layers, {len(matched.unmatched)} unmatched",
        f"  rank {ranks}, scale {scales}, {', '.join(described['dtype'])}, written as "
        f"{' + '.join(described['styles'])}",
    ]
    if adapter.pair.base is not None:
        lines.append(f"  base: {adapter.pair.base}")
    if adapter.pair.guidance is not None:
        lines.append(f"  trained for guidance {adapter.pair.guidance:g}")
    lines += [f"  unmatched: {name}" for name in matched.unmatched[:_MOST_NAMED]]
    if len(matched.unmatched) > _MOST_NAMED:
        lines.append(f"  unmatched: and {len(matched.unmatched) - _MOST_NAMED} more")
    lines += [f"  assumed: {text}" for text in adapter.assumed]
    lines += [f"  note: {text}" for text in adapter.remarks]
    return lines


def _training_lines(metadata: PairMetadata) -> list[str]:
    lines = []
    if metadata.psnr_pair is not None and metadata.psnr_base is not None:
        worse = metadata.psnr_pair < metadata.psnr_base
        lines.append(
            f"when trained: {metadata.psnr_pair:.2f} dB to the teacher, the base on the same sigmas "
            f"{metadata.psnr_base:.2f} dB"
            + (": WORSE than the base; set both strengths to 0 or leave the pair out" if worse else "")
        )
    if metadata.kept is not None:
        rollout = metadata.objective in OBJECTIVES and Objective(metadata.objective).is_rollout
        everything = len(metadata.kept.split(", ")) == (3 if rollout else 2)
        lines.append(f"kept when trained: {metadata.kept}{'' if everything else '; what is not named has no effect'}")
    return lines
