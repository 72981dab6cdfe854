"""LoadPhaseLoRA: a MODEL that carries one LoRA at some noise levels, or at all, without merging it."""

from __future__ import annotations

import os
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..glance_core.errors import GlanceError
from ..glance_core.schedule.strengths import parse_strengths
from .host.adapter_timing import LoraTiming
from .host.lora_loading import load_lora
from .host.lora_timing import SHARE, SIGMA, STEPS, BySteps, WholeRun, in_range
from .inputs import CATEGORY

WHOLE_RUN, CUSTOM = "whole run", "custom"
_MOST = 10000.0


class LoadPhaseLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadPhaseLoRA",
            display_name="Load LoRA by Noise Level",
            category=CATEGORY,
            description="Puts a LoRA on the model for the whole run, or for some of its steps. It is not merged, so a "
            "change of the LoRA or its strength does not load the model again. Works with any sampler.",
            search_aliases=["lora schedule", "phase lora", "lora timing", "lora without reload", "load lora"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with. LoRAs already on it stay."),
                io.Combo.Input(
                    "lora_name", options=folder_paths.get_filename_list("loras"), tooltip="The file, from models/loras."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="1 is as trained. 0 switches it off.",
                ),
                io.Combo.Input(
                    "when",
                    options=[WHOLE_RUN, CUSTOM],
                    tooltip="whole run: at every noise level. custom: from start to end.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=_MOST,
                    step=0.01,
                    tooltip="For custom: where it begins. Step 0 is the first one.",
                ),
                io.Float.Input(
                    "end",
                    default=2.0,
                    min=0.0,
                    max=_MOST,
                    step=0.01,
                    tooltip="For custom: where it ends. 0 to 2 steps are the first two.",
                ),
                io.Combo.Input(
                    "unit",
                    options=[STEPS, SHARE, SIGMA],
                    tooltip="For custom. steps: of each sampling run. share: of the noise schedule, 0 to 1, as "
                    "start_percent of other nodes. sigma: noise levels, which fall.",
                ),
                io.String.Input(
                    "strengths",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="A strength for each step, for example 1, 1, 0.5, 0. Later steps keep the last one. "
                    "strength multiplies each. Replaces when, start, end and unit.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with it. The input model stays as it is."),
                io.String.Output(
                    display_name="report", tooltip="What matched, what was assumed, and at which noise levels it acts."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, strengths: str | None = None) -> bool | str:
        try:
            if strengths and strengths.strip():
                parse_strengths(strengths)
        except GlanceError as error:
            return f"strengths: {error}"
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> list[Any]:
        """Load again if the file was replaced under the same name."""
        path = folder_paths.get_full_path("loras", lora_name)
        found = os.stat(path) if path else None
        return [found.st_mtime_ns, found.st_size] if found else []

    @classmethod
    def execute(
        cls,
        model: Any,
        lora_name: str,
        strength: float,
        when: str,
        start: float,
        end: float,
        unit: str,
        strengths: str = "",
    ) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        timing: LoraTiming = WholeRun(strength)
        if strengths.strip():
            timing = BySteps([strength * each for each in parse_strengths(strengths)])
        elif when == CUSTOM:
            timing = in_range(start, end, unit, strength)
        return io.NodeOutput(*load_lora(model, path, timing))
