"""GlancePromptBank: varied prompts for training and calibration, encoded with the user's own text encoder."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..glance_core.prompt_bank import SIZE, bank
from .loader import CATEGORY


class GlancePromptBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlancePromptBank",
            display_name="Glance Prompt Bank",
            category=CATEGORY,
            description="The first prompts of a bank of 256: subjects, styles, light, text in pictures, languages and lengths are mixed. As positive for "
            "Train Glance Adapter and Calibrate Glance, where you have no prompts of your own at hand.",
            search_aliases=["prompts", "glance prompts"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of your model."),
                io.Int.Input("count", default=16, min=1, max=SIZE, tooltip="How many, from the first on; any number of them is mixed."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="All of them combined: each entry is one prompt."),
                io.String.Output(display_name="prompts", tooltip="One a line, to read."),
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
