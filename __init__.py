"""Glance for ComfyUI: registration only. Importable where ComfyUI is not, and then registers nothing."""

import sys

WEB_DIRECTORY = "./web"  # help pages, docs/<NodeId>.md

try:
    from comfy_api.latest import ComfyExtension
except ImportError as error:  # tests, tools and `python -m glance_core` on a machine without ComfyUI
    if "folder_paths" in sys.modules:
        if not (error.name or "").startswith("comfy_api"):  # a part of ComfyUI is missing, and says so itself
            raise
        raise ImportError("Glance needs ComfyUI 0.33 or newer; update ComfyUI") from error
    ComfyExtension = None

if ComfyExtension is not None:

    class GlanceExtension(ComfyExtension):
        async def get_node_list(self):
            from .nodes.calibrate import CalibrateGlance
            from .nodes.compare import GlanceCompare
            from .nodes.loader import LoadGlanceLoRA
            from .nodes.phase_plot import GlancePhasePlot
            from .nodes.prompts import GlancePromptBank
            from .nodes.samplers import GlanceReferenceSampler, GlanceScheduler, PhaseSplitSampler
            from .nodes.tiny import GlanceTinyText, GlanceTinyVAE, offer_files
            from .nodes.train import TrainGlanceAdapter

            offer_files()
            return [
                LoadGlanceLoRA, GlanceScheduler, PhaseSplitSampler, TrainGlanceAdapter, CalibrateGlance, GlancePhasePlot, GlanceCompare, GlancePromptBank,
                GlanceReferenceSampler, GlanceTinyText, GlanceTinyVAE,
            ]  # fmt: skip

    async def comfy_entrypoint():
        return GlanceExtension()
