"""Glance for ComfyUI. This file only registers the nodes; without ComfyUI it registers nothing."""

import sys

WEB_DIRECTORY = "./web"  # help pages, docs/<NodeId>.md

try:
    from comfy_api.latest import ComfyExtension
except ImportError as error:  # tests, tools and `python -m glance_core` on a machine without ComfyUI
    if "folder_paths" in sys.modules:
        if not (error.name or "").startswith("comfy_api"):  # a part of ComfyUI is missing; its own message is better
            raise
        raise ImportError("Glance needs ComfyUI 0.33 or newer; update ComfyUI") from error
    ComfyExtension = None

if ComfyExtension is not None:

    class GlanceExtension(ComfyExtension):
        async def get_node_list(self):
            from .nodes import embedded
            from .nodes.calibration_node import CalibrateGlance
            from .nodes.compare import GlanceCompare
            from .nodes.lora_loader import LoadGlanceLoRA
            from .nodes.phase_lora import LoadPhaseLoRA
            from .nodes.phase_plot import GlancePhasePlot
            from .nodes.phase_sampler import GlanceReferenceSampler, GlanceScheduler, PhaseSplitSampler
            from .nodes.prompt_bank import GlancePromptBank
            from .nodes.train import TrainGlanceAdapter
            from .nodes.training_options import GlanceTrainingOptions
            from .nodes.two_model_guider import GlanceTwoModelGuider

            embedded.register()
            return [
                LoadGlanceLoRA,
                LoadPhaseLoRA,
                PhaseSplitSampler,
                GlanceScheduler,
                TrainGlanceAdapter,
                GlanceTrainingOptions,
                CalibrateGlance,
                GlancePhasePlot,
                GlanceCompare,
                GlancePromptBank,
                GlanceReferenceSampler,
                GlanceTwoModelGuider,
                embedded.GlanceTinyText,
                embedded.GlanceTinyVAE,
            ]

    async def comfy_entrypoint():
        return GlanceExtension()
