"""GlancePhasePlot: what the teacher does along its path on this model, and the steps and the boundary that follow from it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..glance_core.calibration import Settings
from ..glance_core.objectives import rollout
from ..glance_core.path import Path, measured
from ..glance_core.path_plot import plot_path
from ..glance_core.schedule import PRESETS, TEACHER_STEPS, Split, build_schedule, split_steps
from ..glance_core.solver import guided
from ..glance_core.walks import even_steps
from . import host
from . import student as glue
from .live import Live, as_image
from .loader import CATEGORY
from .samplers import SETTINGS
from .teacher import taught_by, teacher_inputs


class GlancePhasePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlancePhasePlot",
            display_name="Glance Phase Plot",
            category=CATEGORY,
            description="Lets the model walk all of its steps, draws how much its velocity turns at each noise level, and suggests the few steps, and the boundary "
            "between Slow and Fast, that follow its path most closely. Quicker than Calibrate Glance, and less: guidance and solver stay as they are.",
            search_aliases=["schedule", "phase boundary", "sigmas plot"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *teacher_inputs("A prompt, or several: a list, or combined ones."),
                io.Int.Input("steps", default=10, min=2, max=1000, tooltip="How many of the teacher's steps to choose."),
                io.Combo.Input("schedule", options=host.SCHEDULES, tooltip="The teacher's ladder. auto: by the model."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="The noise's seed."),
                io.Int.Input("teacher_runs", optional=True, advanced=True, default=0, min=0, max=1024, tooltip="Runs of the teacher, on the prompts in turn. 0: one for each prompt."),
                io.Int.Input("batch_size", optional=True, advanced=True, default=4, min=1, max=1024, tooltip="Pictures at a time."),
            ],
            outputs=[
                SETTINGS.Output(display_name="settings", tooltip="The suggested steps, for Phase Split Sampler, Glance Scheduler and Train Glance Adapter."),
                io.String.Output(display_name="teacher_steps", tooltip="The same as text, Slow before the bar."),
                io.Image.Output(display_name="plot", tooltip="The path, and the ladders laid over it."),
                io.String.Output(display_name="report", tooltip="The ladders and their errors."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: list[Any], positive: list[Any], latent_image: list[Any], cfg: list[float], steps: list[int], schedule: list[str],
        seed: list[int], negative: list[Any] | None = None, teacher_runs: list[int] | None = None, batch_size: list[int] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        teacher = taught_by(model[0], positive, negative, latent_image[0], cfg[0], schedule[0])
        total = len(teacher.ladder) - 1
        runs = (teacher_runs or [0])[0] or len(teacher.prompts)
        live = Live(getattr(cls.hidden, "unique_id", None), runs * total)
        live.stage("teacher", runs * total)
        found: list[Path] = []

        def work(conditioned: glue.Conditioned, _: torch.Tensor) -> None:
            noise = teacher.noise(runs, seed[0])
            walked = rollout(conditioned.velocity(cfg[0]), noise, teacher.ladder, range(total), (batch_size or [4])[0], live.step)
            found.append(measured(walked.states, teacher.ladder))

        teacher.run(seed[0], work)
        path = found[0]
        best = path.best(steps[0])
        split = path.split(best)
        ladders = {"suggested": best, "even": even_steps(steps[0], total)}
        for slow, fast in PRESETS.values():
            if slow + fast == steps[0] and total == TEACHER_STEPS:
                ladders[f"the paper's {slow} + {fast}"] = split_steps(slow, fast).steps
        settings = Settings(teacher.kind, split, guided(build_schedule(teacher.ladder, split).sigmas, cfg[0]), cfg[0])
        title = f"{type(model[0].model).__name__}, {total} steps, cfg {cfg[0]:g}, {runs} runs"
        return io.NodeOutput(
            settings, str(split), as_image(plot_path(path, ladders, split, title)), _report(path, ladders, split, teacher.kind, runs)
        )


def _report(path: Path, ladders: dict[str, tuple[int, ...]], split: Split, kind: str, runs: int) -> str:
    lines = [f"teacher: {path.steps} steps on the {kind} ladder, {runs} runs"]
    lines += [
        f"{name}: error {path.error(steps):.4g}, teacher steps {', '.join(str(step + 1) for step in steps)}"
        for name, steps in ladders.items()
    ]
    slow, fast = path.sigmas[split.slow[-1]], path.sigmas[split.fast[0]]
    lines.append(
        f"Slow to Fast between sigma {slow:.3f} and {fast:.3f}, where both phases have as much error to make good as can be: {split}"
    )
    return "\n".join(lines)
