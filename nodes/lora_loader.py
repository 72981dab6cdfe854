"""LoadGlanceLoRA: a MODEL that carries a Slow and a Fast adapter, and a report of what was found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from .host.pair_loading import load_pair
from .inputs import CATEGORY

_PACK = Path(__file__).resolve().parents[1]


class LoadGlanceLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        loras = folder_paths.get_filename_list("loras")
        strength = {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01}
        return io.Schema(
            node_id="LoadGlanceLoRA",
            display_name="Load Glance LoRA",
            category=CATEGORY,
            description="Puts a Glance pair on the model. Slow answers at high noise, Fast at low noise. The base "
            "model does not change.",
            search_aliases=["glance", "phase lora", "accelerator lora", "slow fast lora"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the pair was trained for. LoRAs already on it stay."),
                _lora_input("slow", loras, "The LoRA for the early, noisy phase, from models/loras."),
                _lora_input("fast", loras, "The LoRA for the late phase, from models/loras."),
                io.Float.Input(
                    "slow_strength", **strength, tooltip="1 is as trained. 0 leaves this phase to the base."
                ),
                io.Float.Input(
                    "fast_strength", **strength, tooltip="1 is as trained. 0 leaves this phase to the base."
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the pair. The input model stays as it is."
                ),
                io.String.Output(display_name="report", tooltip="What matched, the scale, assumptions, the schedule."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, slow_lora: str, fast_lora: str, **_: Any) -> list[Any]:
        """Load again if a file was replaced under the same name."""
        paths = (folder_paths.get_full_path("loras", name) for name in (slow_lora, fast_lora))
        return [(s.st_mtime_ns, s.st_size) for s in map(os.stat, (p for p in paths if p))]

    @classmethod
    def execute(
        cls, model: Any, slow_lora: str, fast_lora: str, slow_strength: float, fast_strength: float
    ) -> io.NodeOutput:
        paths = (folder_paths.get_full_path_or_raise("loras", name) for name in (slow_lora, fast_lora))
        return io.NodeOutput(*load_pair(model, *paths, slow_strength, fast_strength))


def _lora_input(phase: str, loras: list[str], tooltip: str) -> Any:
    """Return the choice of an adapter. A new node starts with a file named for the phase, the user's own first."""
    named = [name for name in loras if phase in name.lower()]
    first = min(named, key=_is_ours, default=None)
    return io.Combo.Input(f"{phase}_lora", options=loras, default=first, tooltip=tooltip)


def _is_ours(name: str) -> bool:
    """Return whether the file comes with the pack."""
    path = folder_paths.get_full_path("loras", name)
    return path is not None and _PACK in Path(path).resolve().parents
