"""TrainGlanceAdapter as short calls for the tests."""

from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import comfyui
import pack
import tiny_models
import torch
from comfy_api.latest import io

# A short run. Some of these belong to TrainGlanceAdapter, the others to GlanceTrainingOptions.
INPUTS = {
    "objective": "teacher_forced",
    "slow_steps": 2,
    "fast_steps": 2,
    "steps": 4,
    "cfg": 1.0,
    "rank": 2,
    "teacher_runs": 1,
    "gradient_checkpointing": True,
    "seed": 0,
    "resume": True,
    "name": "tiny",
    "schedule": "auto",
    "learning_rate": 1e-3,
    "alpha": 4.0,
    "targets": "attention",
    "optimizer": "adamw",
    "checks": 1,
    "preview_every": 0,
    "save_every": 2,
    "keep": "everything",
    "offload": "auto",
}


def option_names():
    """The names of the inputs of GlanceTrainingOptions."""
    return {given.id for given in pack.node("GlanceTrainingOptions").GET_SCHEMA().inputs}


def widget_values(node):
    """What a new node of this name shows. A Combo without a default starts with its first choice."""
    widgets = [given for given in pack.node(node).GET_SCHEMA().inputs if isinstance(given, io.WidgetInput)]
    return {given.id: given.options[0] if given.default is None else given.default for given in widgets}


def training_options(**inputs):
    """The output of GlanceTrainingOptions."""
    return pack.node("GlanceTrainingOptions").execute(**inputs).args[0]


def with_options(inputs):
    """The inputs of TrainGlanceAdapter. GlanceTrainingOptions takes those that are its own."""
    names = option_names()
    options = training_options(**{name: value for name, value in inputs.items() if name in names})
    return {name: value for name, value in inputs.items() if name not in names} | {"options": options}


def train(model, architecture, latent=None, positive=None, negative=None, check=None, **inputs):
    """The node's outputs: MODEL, slow file, fast file, IMAGE, report."""
    lists = {name: [value] for name, value in with_options(INPUTS | inputs).items()}
    if check is not None:
        lists["check_prompts"] = [check]
    lists["negative"] = [tiny_models.conditioning(architecture, 2) if negative is None else negative]
    latent = tiny_models.empty_latent(architecture) if latent is None else latent
    positive = tiny_models.conditioning(architecture, 1) if positive is None else positive
    return pack.node("TrainGlanceAdapter").execute(model=[model], latent=[latent], positive=[positive], **lists).args


class Planned(Exception):
    """Stops the node when its plan is made."""


def planned(run):
    """The TrainingPlan that run(), a call of the node, would train."""
    with mock.patch.object(comfyui.pack_module("nodes.train"), "train", side_effect=Planned) as stopped:
        try:
            run()
        except Planned:
            return stopped.call_args.args[0]
    raise AssertionError("the node did not reach its training run")


def plan_of(model, architecture, **inputs):
    """The TrainingPlan that the node would train."""
    return planned(lambda: train(model, architecture, **inputs))


def observer_class():
    """The class that hears of each training step."""
    return comfyui.pack_module("nodes.host.training_run").TrainingObserver


@contextmanager
def stopped_at(step, error):
    """Let the `step`-th training step of a run, counted over both phases, end in `error`."""
    observer = observer_class()
    trained, seen = observer.trained, []

    def stopping(self, done):
        trained(self, done)
        seen.append(done)
        if len(seen) == step:
            raise error

    with mock.patch.object(observer, "trained", stopping):
        yield


def picture(name, count=1, seed=4):
    """An encoded picture, as VAE Encode would give one."""
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn((count, *tiny_models.MODELS[name].latent), generator=generator)}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
