"""What a fresh process samples and trains in ComfyUI. `test_determinism.py` starts two of them."""

from pathlib import Path
from unittest import mock

import adapters
import comfy.model_management
import folder_paths
import pack
import tiny_models
import torch
import train_node
from safetensors.torch import load_file, save_file

SETTINGS = {"steps": 3, "save_every": 1, "caption_dropout": 0.3}


@torch.inference_mode()
def save(folder: Path, moment: str) -> None:
    """Write everything into `moment`.safetensors.

    `begin` leaves a run that was interrupted in its second phase; `end` resumes it.
    """
    own, shared = folder / moment, folder / "shared"
    for each in (own, shared):
        each.mkdir(exist_ok=True)
    folder_paths.folder_names_and_paths["loras"] = ([str(own)], {".safetensors"})
    folder_paths.output_directory = str(shared)
    model = tiny_models.build("flux", depth=1, depth_single_blocks=1)
    with_pair = pack.load_pair(model, *adapters.save_pair(model, own))[0]
    found = {
        sampler: pack.phase_split(with_pair, "flux", 2, 2, 2.0, sampler) for sampler in ("euler", "euler_ancestral")
    }
    pictured = {"objective": "flow_matching", "latent": train_node.picture("flux")}  # draws noise in every step
    train_node.train(model, "flux", name=f"picture_{moment}", **SETTINGS, **pictured)
    if moment == "end":
        train_node.train(model, "flux", name="whole", **SETTINGS)
    _train_interrupted(model, moment)
    for path in sorted(own.glob("*_*.safetensors")):
        found |= {f"{path.stem}/{key}": value for key, value in load_file(path).items()}
    save_file(
        {key.replace(f"_{moment}", ""): value.contiguous() for key, value in found.items()},
        folder / f"{moment}.safetensors",
    )


def _train_interrupted(model, moment):
    observer = train_node.observer_class()
    trained = observer.trained

    def interrupted(self, step):
        if moment == "begin" and (step.part, step.step) == ("fast", 1):
            comfy.model_management.interrupt_current_processing()
        trained(self, step)

    with mock.patch.object(observer, "trained", interrupted):
        try:
            train_node.train(model, "flux", name="broken", **SETTINGS)
        except comfy.model_management.InterruptProcessingException:
            assert moment == "begin"
