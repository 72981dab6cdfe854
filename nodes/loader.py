"""LoadGlanceLoRA: a MODEL that carries a Slow and a Fast adapter, and a report of what was found."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..glance_core import tiny
from ..glance_core.adapter_metadata import Trained
from ..glance_core.lora_file import Adapter, check_pair, read_adapter
from ..glance_core.objectives import WALKED
from . import host, pair

CATEGORY = "Glance"


class LoadGlanceLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        loras = folder_paths.get_filename_list("loras")
        strength = {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01}
        return io.Schema(
            node_id="LoadGlanceLoRA",
            display_name="Load Glance LoRA",
            category=CATEGORY,
            description="Puts a Glance pair on the model: Slow answers at high noise, Fast at low noise. The base model is not changed.",
            search_aliases=["glance", "phase lora", "accelerator lora", "slow fast lora"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model the pair was trained for. LoRAs already on it stay."),
                _lora_input("slow", loras, "The adapter for the early, noisy phase, from models/loras."),
                _lora_input("fast", loras, "The adapter for the late phase, from models/loras."),
                io.Float.Input("slow_strength", **strength, tooltip="1 is as trained; 0 leaves the base alone in this phase."),
                io.Float.Input("fast_strength", **strength, tooltip="1 is as trained; 0 leaves the base alone in this phase."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the pair; the one handed in stays bare."),
                io.String.Output(display_name="report", tooltip="Modules matched and not, scale, assumptions, schedule found."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, slow_lora: str, fast_lora: str, **_: Any) -> list[Any]:
        """Load again when a file was replaced under the same name."""
        paths = (folder_paths.get_full_path("loras", name) for name in (slow_lora, fast_lora))
        return [(s.st_mtime_ns, s.st_size) for s in map(os.stat, (p for p in paths if p))]

    @classmethod
    def execute(cls, model: Any, slow_lora: str, fast_lora: str, slow_strength: float, fast_strength: float) -> io.NodeOutput:
        paths = (folder_paths.get_full_path_or_raise("loras", name) for name in (slow_lora, fast_lora))
        return io.NodeOutput(*load_pair(model, *paths, slow_strength, fast_strength))


def load_pair(model: Any, slow_path: str, fast_path: str, slow_strength: float = 1.0, fast_strength: float = 1.0) -> tuple[Any, str]:
    """(MODEL that carries the pair, report)."""
    slow, fast = read_adapter(slow_path), read_adapter(fast_path)
    for adapter in (slow, fast):  # before they are compared: which of two differing files is the wrong one, the model tells
        host.refuse_other_architecture(adapter, model)
    notes = check_pair(slow, fast)
    keys = host.key_map(model)
    found = [host.match(a, model, s, keys) for a, s in ((slow, slow_strength), (fast, fast_strength))]
    trained = _trained(slow, fast)
    carrying = pair.attach(model, [m.updates for m in found], trained)
    text = _report(model, (slow, fast), (slow_strength, fast_strength), found, trained, notes)
    for adapter, matched in zip((slow, fast), found, strict=True):
        if matched.unmatched:
            pair.log.warning(
                "Glance: %d modules of %s are not in the model, the first %s", len(matched.unmatched), adapter.name, matched.unmatched[0]
            )
    return carrying, text


def _lora_input(phase: str, loras: list[str], tooltip: str) -> Any:
    """The choice of an adapter; a new node starts with the first file that is named for the phase, the user's own first."""
    own = set(os.listdir(tiny.LORA_FOLDER))
    named = next((name for name in sorted(loras, key=own.__contains__) if phase in name.lower()), None)
    return io.Combo.Input(f"{phase}_lora", options=loras, default=named, tooltip=tooltip)


def _trained(slow: Adapter, fast: Adapter) -> Trained:
    """What the pair says of itself; one file may say what the other leaves out (`check_pair` saw that they agree)."""
    said = {item.name: getattr(slow.trained, item.name) for item in fields(Trained)}
    both = replace(fast.trained, **{name: value for name, value in said.items() if value is not None})
    return both if slow.trained.solver == fast.trained.solver else replace(both, solver=None)


def _report(model: Any, adapters: Any, strengths: Any, found: Any, trained: Trained, notes: tuple[str, ...]) -> str:
    lines = [
        f"model: {type(model.model).__name__} ({host.architecture(model)}), computes in {str(host.compute_dtype(model)).removeprefix('torch.')}"
    ]
    for phase, adapter, strength, matched in zip(("slow", "fast"), adapters, strengths, found, strict=True):
        told = adapter.describe()
        ranks, scales = (", ".join(f"{v:g}" for v in told[name]) for name in ("rank", "scale"))
        lines.append(f"{phase}: {adapter.name}, strength {strength:g}")
        lines.append(f"  modules: {matched.modules} matched on {len(matched.updates)} layers, {len(matched.unmatched)} unmatched")
        lines.append(f"  rank {ranks}, scale {scales}, {', '.join(told['dtype'])}, written as {' + '.join(told['styles'])}")
        if adapter.trained.base is not None:
            lines.append(f"  base: {adapter.trained.base}")
        if adapter.trained.guidance is not None:
            lines.append(f"  trained at guidance {adapter.trained.guidance:g}")
        lines += [f"  unmatched: {name}" for name in matched.unmatched[:5]]
        if len(matched.unmatched) > 5:
            lines.append(f"  unmatched: and {len(matched.unmatched) - 5} more")
        lines += [f"  assumed: {item}" for item in adapter.assumed]
        lines += [f"  note: {item}" for item in adapter.remarks]
    lines += [f"note: {note}" for note in notes]
    if trained.psnr_pair is not None and trained.psnr_base is not None:
        worse = trained.psnr_pair < trained.psnr_base
        lines.append(
            f"when trained: {trained.psnr_pair:.2f} dB to the teacher, the bare base on the same ladder {trained.psnr_base:.2f} dB"
            + (": WORSE than the bare base; set both strengths to 0 or leave the pair out" if worse else "")
        )
    if trained.kept is not None:
        whole = len(trained.kept.split(", ")) == (3 if trained.objective in WALKED else 2)
        lines.append(f"kept when trained: {trained.kept}{'' if whole else '; what is not named does nothing'}")
    if trained.solver is not None:
        lines.append("solver: fitted for these teacher steps, with a guidance of its own; Phase Split Sampler's sampler auto uses it")
    elif any(adapter.trained.solver for adapter in adapters):
        lines.append("solver: not used, the two files state different ones")
    if trained.ladder or trained.steps:
        lines.append(
            f"schedule: {trained.ladder or 'ladder not stated'}, teacher steps {trained.steps or 'not stated'} of {trained.teacher_steps or 50}, from the file"
        )
    else:
        ladder = host.ladder_of(model)
        lines.append(f"schedule: none in the files; {ladder} assumed, switching at teacher step 11 of 50 as in the paper")
    return "\n".join(lines)
