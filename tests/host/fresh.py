"""What a fresh process samples and trains in ComfyUI; `test_determinism.py` starts two of them."""

from pathlib import Path

import adapters
import comfy.model_management
import comfyui
import folder_paths
import pack
import tiny
import torch
import training
from safetensors.torch import load_file, save_file


@torch.inference_mode()
def save(folder: Path, moment: str) -> None:
    """Everything into `moment`.safetensors. begin leaves a training behind that was interrupted in its second phase, end takes it up."""
    own, shared = folder / moment, folder / "shared"
    for each in (own, shared):
        each.mkdir(exist_ok=True)
    folder_paths.folder_names_and_paths["loras"] = ([str(own)], {".safetensors"})
    folder_paths.output_directory = str(shared)
    model = tiny.build("flux", depth=1, depth_single_blocks=1)
    with_pair = pack.load_pair(model, *adapters.save_pair(model, own))[0]
    found = {sampler: pack.phase_split(with_pair, "flux", 2, 2, 2.0, sampler) for sampler in ("euler", "euler_ancestral")}
    settings = {"steps": 3, "save_every": 1, "caption_dropout": 0.3}
    pictured = {"objective": "flow_matching", "latent": training.picture("flux")}  # draws noise in every step
    training.train(model, "flux", name=f"picture_{moment}", **settings, **pictured)
    if moment == "end":
        training.train(model, "flux", name="whole", **settings)
    previews = comfyui.pack_module("nodes.training_run")._Previews
    after = previews.after

    def interrupted(self, step):
        if moment == "begin" and (step.phase, step.step) == ("fast", 1):
            comfy.model_management.interrupt_current_processing()
        after(self, step)

    previews.after = interrupted
    try:
        training.train(model, "flux", name="broken", **settings)
    except comfy.model_management.InterruptProcessingException:
        assert moment == "begin"
    for path in sorted(own.glob("*_*.safetensors")):
        found |= {f"{path.stem}/{key}": value for key, value in load_file(path).items()}
    save_file({key.replace(f"_{moment}", ""): value.contiguous() for key, value in found.items()}, folder / f"{moment}.safetensors")
