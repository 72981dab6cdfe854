"""GlanceTwoModelGuider: a GUIDER for bases of two models, for SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..glance_core.models import TWO_MODELS, TWO_MODELS_BOUNDARY
from .host.two_models import BOUNDARY_UNITS, ModelBoundary, TwoModelGuider
from .inputs import CATEGORY, late_cfg_input


class GlanceTwoModelGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceTwoModelGuider",
            display_name="Two-Model Guider",
            category=CATEGORY,
            description=f"For bases of two models, as {TWO_MODELS}. One run of the sampler: the first model answers at "
            "high noise, the late one from the boundary down. Samplers keep their history over the boundary.",
            search_aliases=[TWO_MODELS.lower(), "high noise low noise", "dual model guider"],
            inputs=[
                io.Model.Input("model", tooltip="The high-noise model, with its LoRAs and its ModelSampling node."),
                io.Model.Input("late_model", tooltip="The low-noise model, with its own."),
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show. Used unless cfg is 1."),
                io.Float.Input(
                    "cfg",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the high-noise model. At 1 a step takes one model call, above it two.",
                ),
                io.Float.Input(
                    "boundary",
                    default=0.875,
                    min=0.0,
                    max=10000.0,
                    step=0.001,
                    round=0.0001,
                    tooltip=f"Where the late model begins. {TWO_MODELS_BOUNDARY}.",
                ),
                io.Combo.Input(
                    "unit",
                    options=BOUNDARY_UNITS,
                    tooltip="sigma: a noise level. steps: how many steps the first model takes.",
                ),
                late_cfg_input(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        late_model: Any,
        positive: Any,
        negative: Any,
        cfg: float,
        boundary: float,
        unit: str,
        late_cfg: float = 0.0,
    ) -> io.NodeOutput:
        guider = TwoModelGuider(model, late_model, ModelBoundary(boundary, unit))
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg, late_cfg or cfg)
        return io.NodeOutput(guider)
