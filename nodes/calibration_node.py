"""CalibrateGlance: the best few steps of this model without training, found from a handful of full runs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..glance_core.calibration.calibrate import Budget, Calibration, Settings, calibrate
from ..glance_core.evaluation.metrics import latent_psnr
from ..glance_core.plots.calibration_plot import plot_calibration
from ..glance_core.sampling.rollout import Teacher
from ..glance_core.schedule.plan import StepPlan
from .host.conditioned import Conditioned
from .host.host_teacher import HostTeacher, TeacherChoices, host_teacher
from .host.node_progress import NodeProgress, as_image
from .inputs import (
    CATEGORY,
    SETTINGS,
    batch_input,
    schedule_input,
    seed_input,
    sigmas_input,
    teacher_inputs,
    teacher_runs_input,
)

_FEWEST_RUNS = 8


class CalibrateGlance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibrateGlance",
            display_name="Calibrate Glance",
            category=CATEGORY,
            description="Finds the steps, guidance and solver coefficients with which few steps of this model come "
            "closest to all of its steps. It trains nothing.",
            search_aliases=["glance settings", "few steps", "find schedule", "solver"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *teacher_inputs(
                    "Prompts like those you will use, as many as you have time for. Half choose, half judge."
                ),
                io.Int.Input(
                    "model_calls",
                    display_name="model calls per picture",
                    default=10,
                    min=2,
                    max=100,
                    tooltip="How often the model may run per picture. A step with guidance takes two calls.",
                ),
                io.Float.Input(
                    "seconds",
                    default=300.0,
                    min=1.0,
                    max=36000.0,
                    step=1.0,
                    tooltip="When the search stops, full runs included.",
                ),
                schedule_input(),
                seed_input(),
                teacher_runs_input("Full runs, one prompt after the other. 0: one for each prompt, at least 8."),
                batch_input(),
                sigmas_input(),
            ],
            outputs=[
                SETTINGS.Output(
                    display_name="settings",
                    tooltip="For Phase Split Sampler, Glance Scheduler and Train Glance Adapter.",
                ),
                io.Image.Output(display_name="plot", tooltip="How close each try came, and the chosen noise levels."),
                io.String.Output(display_name="report", tooltip="What was found, and what it gains on other runs."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: list[Any],
        positive: list[Any],
        latent_image: list[Any],
        cfg: list[float],
        model_calls: list[int],
        seconds: list[float],
        schedule: list[str],
        seed: list[int],
        negative: list[Any] | None = None,
        teacher_runs: list[int] | None = None,
        batch_size: list[int] | None = None,
        sigmas: list[Any] | None = None,
    ) -> io.NodeOutput:
        teacher = host_teacher(
            model[0], positive, negative, TeacherChoices(latent_image[0], cfg[0], schedule[0], (sigmas or [None])[0])
        )
        runs = (teacher_runs or [0])[0] or max(_FEWEST_RUNS, len(teacher.prompts))
        budget = Budget(model_calls[0], cfg[0], seconds[0])
        progress = NodeProgress(getattr(cls.hidden, "unique_id", None), 1)
        batch = (batch_size or [4])[0]

        def work(conditioned: Conditioned) -> Calibration:
            core = Teacher(conditioned.velocity(cfg[0]), teacher.sigmas.values, batch, progress.pause)
            return calibrate(core, conditioned.velocity(1.0), teacher.noise(runs, seed[0]), latent_psnr, budget)

        found = teacher.run(seed[0], work)
        name = type(model[0].model).__name__
        title = f"{name}, {model_calls[0]} model calls: {found.comparison.gain:+.2f} dB over even steps"
        picture = as_image(plot_calibration(found, teacher.sigmas.values, title))
        settings = Settings(teacher.sigmas.rule, found.split, found.solver, cfg[0], teacher.sigmas.listed)
        return io.NodeOutput(settings, picture, _report(found, teacher, cfg[0], runs))


def _report(found: Calibration, teacher: HostTeacher, cfg: float, runs: int) -> str:
    comparison, fit = found.comparison, found.comparison.pair - found.plain_psnr
    lines = [
        f"teacher: {found.split.teacher_steps} steps on {teacher.sigmas.rule} sigmas, cfg {cfg:g}, {runs} runs on "
        f"{len(teacher.prompts)} prompts; {found.teacher}",
        f"found: teacher steps {found.split}, guidance {_guidance(found.plan)}, second-order share "
        f"{found.plan.coefficient:g}, {found.solver.nfe} model calls; {len(found.tried)} plans tried in "
        f"{found.seconds:.0f} s",
        f"PSNR to the teacher on {comparison.examples}, in latents: settings {float(comparison.pair.mean()):.2f} dB, "
        f"even steps under the teacher's guidance {float(comparison.base.mean()):.2f} dB, {comparison.gain:+.2f} dB",
        f"the fitted coefficients add {float(fit.mean()):+.2f} dB of it",
    ]
    if comparison.worse:
        lines.append("WORSE THAN EVEN STEPS. Use more prompts or seconds, or sample without these settings.")
    return "\n".join(lines)


def _guidance(plan: StepPlan) -> str:
    """Return the guidance of each step, or of all."""
    return ", ".join(f"{scale:.3g}" for scale in (plan.scales if plan.weights else plan.scales[:1]))
