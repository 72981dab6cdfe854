"""CalibrateGlance: the best few steps of this model without training, found from a handful of teacher runs."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..glance_core.calibration import Calibration, Settings, calibrate
from ..glance_core.calibration_plot import plot_calibration
from ..glance_core.verdict import latent_psnr
from ..glance_core.walks import Walk
from . import host
from . import student as glue
from .live import Live, as_image
from .loader import CATEGORY
from .samplers import SETTINGS
from .teacher import taught_by, teacher_inputs


class CalibrateGlance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibrateGlance",
            display_name="Calibrate Glance",
            category=CATEGORY,
            description="Finds which teacher steps, guidance and coefficients bring few steps of this model nearest to its own many steps. Nothing "
            "is trained; Phase Split Sampler, Glance Scheduler and Train Glance Adapter take the settings.",
            search_aliases=["glance settings", "few steps", "find schedule", "solver"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *teacher_inputs("Prompts like those you will use, as many as you have time for: a list, or combined ones. Half choose, half judge."),
                io.Int.Input("forwards", default=10, min=2, max=100, tooltip="Model evaluations a picture may cost. A step under guidance takes two, one without it one; which steps are guided is chosen too."),
                io.Float.Input("seconds", default=300.0, min=1.0, max=36000.0, step=1.0, tooltip="After this long the search ends, the teacher's runs included."),
                io.Combo.Input("schedule", options=host.SCHEDULES, tooltip="The teacher's ladder. auto: what the pair was trained on, else by the model."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="The noise's seed."),
                io.Int.Input("teacher_runs", optional=True, advanced=True, default=0, min=0, max=1024,
                             tooltip="Runs of the teacher, on the prompts in turn. 0: one for each prompt, at least 8."),
                io.Int.Input("batch_size", optional=True, advanced=True, default=4, min=1, max=1024, tooltip="Pictures at a time."),
            ],
            outputs=[
                SETTINGS.Output(display_name="settings", tooltip="For Phase Split Sampler, Glance Scheduler and Train Glance Adapter."),
                io.Image.Output(display_name="plot", tooltip="How near each walk came, and the noise levels chosen."),
                io.String.Output(display_name="report", tooltip="What was found, and what it gains on runs that chose nothing."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: list[Any], positive: list[Any], latent_image: list[Any], cfg: list[float], forwards: list[int], seconds: list[float],
        schedule: list[str], seed: list[int], negative: list[Any] | None = None, teacher_runs: list[int] | None = None,
        batch_size: list[int] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        teacher = taught_by(model[0], positive, negative, latent_image[0], cfg[0], schedule[0])
        runs = (teacher_runs or [0])[0] or max(8, len(teacher.prompts))
        live = Live(getattr(cls.hidden, "unique_id", None), 1)
        found: list[Calibration] = []

        def work(conditioned: glue.Conditioned, _: torch.Tensor) -> None:
            found.append(calibrate(
                conditioned.velocity(1.0), conditioned.velocity, teacher.noise(runs, seed[0]), teacher.ladder, forwards[0], cfg[0],
                latent_psnr, seconds[0], (batch_size or [4])[0], live.still,
            ))  # fmt: skip

        teacher.run(seed[0], work)
        calibration = found[0]
        title = f"{type(model[0].model).__name__}, {forwards[0]} forwards: {calibration.verdict.gain:+.2f} dB over even steps"
        picture = as_image(plot_calibration(calibration, teacher.ladder, title))
        settings = Settings(teacher.kind, calibration.split, calibration.solver, cfg[0])
        return io.NodeOutput(settings, picture, _report(calibration, teacher.kind, cfg[0], len(teacher.prompts), runs))


def _report(found: Calibration, kind: str, cfg: float, prompts: int, runs: int) -> str:
    gained = found.verdict.pair - found.plain
    lines = [
        f"teacher: {found.split.teacher_steps} steps on the {kind} ladder, cfg {cfg:g}, {runs} runs on {prompts} prompts, by {found.teacher}",
        f"found: teacher steps {found.split}, guidance {_scales(found.walk)}, second-order share {found.walk.coefficient:g}, "
        f"{found.solver.forwards} forwards; {len(found.tried)} walks tried in {found.seconds:.0f} s",
        f"PSNR to the teacher on {found.verdict.examples}, in latents: settings {float(found.verdict.pair.mean()):.2f} dB, "
        f"even steps under the teacher's guidance {float(found.verdict.base.mean()):.2f} dB, {found.verdict.gain:+.2f} dB",
        f"of which the fitted coefficients: {float(gained.mean()):+.2f} dB",
    ]
    if found.verdict.worse:
        lines.append("WORSE THAN EVEN STEPS: give it more prompts or seconds, or sample without these settings")
    return "\n".join(lines)


def _scales(walk: Walk) -> str:
    """The guidance of each step, or of all."""
    return ", ".join(f"{scale:.3g}" for scale in (walk.scales if walk.weights else walk.scales[:1]))
