"""The parts of FLUX's fused layers that adapters train are those of ComfyUI's own map to diffusers' names."""

import comfy.utils
import pytest
import tiny_flux
import tiny_models
import torch

from glance_core.lora.slots import fused_slots
from glance_core.models import MODELS


@pytest.mark.parametrize("name", ["flux", "embedded"])
def test_fused_slots_are_those_of_comfyuis_map(name, node_classes):
    model = (tiny_models.build("flux") if name == "flux" else tiny_flux.load()).model
    known = comfy.utils.flux_to_diffusers(model.model_config.unet_config, output_prefix="")
    slots = fused_slots(model.diffusion_model, MODELS["flux"].fused)
    for key, slot in slots.items():
        theirs = known[f"{key}.weight"]
        weight, rows = (theirs, (0, 0, slot.outside)) if isinstance(theirs, str) else theirs[:2]
        assert (weight, rows) == (f"{slot.module}.weight", (0, slot.start, slot.outside)), key
    covered = {}
    for slot in slots.values():
        covered[slot.module] = covered.get(slot.module, 0) + slot.outside
    linears = {
        key: module.out_features
        for key, module in model.diffusion_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert covered == {key: width for key, width in linears.items() if "_blocks." in key}
