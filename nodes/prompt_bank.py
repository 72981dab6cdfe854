"""GlancePromptBank: varied prompts for training and calibration, encoded with the user's own text encoder."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..glance_core.prompts.bank import SIZE, bank
from .inputs import CATEGORY


class GlancePromptBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlancePromptBank",
            display_name="Glance Prompt Bank",
            category=CATEGORY,
            description="Up to 256 ready-made prompts with mixed subjects, styles, light, text, languages and lengths. "
            "For Train Glance Adapter and Calibrate Glance, if you have no prompts of your own.",
            search_aliases=["prompts", "glance prompts"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of your model."),
                io.Int.Input(
                    "count", default=16, min=1, max=SIZE, tooltip="How many prompts. Any number is a good mix."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="All prompts, combined."),
                io.String.Output(display_name="prompts", tooltip="The prompts as text, one per line."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, count: int) -> io.NodeOutput:
        entries: list[Any] = []
        prompts = bank(count)
        bar = comfy.utils.ProgressBar(count)
        for prompt in prompts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            entries += clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            bar.update(1)
        return io.NodeOutput(entries, "\n".join(prompts))
