"""GlancePhasePlot: how the full run moves on this model, and the steps and the boundary that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..glance_core.calibration.calibrate import Settings
from ..glance_core.calibration.step_selection import TrajectoryProfile, profile_trajectory
from ..glance_core.plots.trajectory_plot import plot_trajectory
from ..glance_core.sampling.rollout import Teacher, rollout
from ..glance_core.sampling.solver import guided_solver
from ..glance_core.schedule.phase_schedule import build_schedule
from ..glance_core.schedule.plan import even_steps
from ..glance_core.schedule.sigmas import TEACHER_STEPS
from ..glance_core.schedule.split import PRESETS, Split, split_steps
from .host.conditioned import Conditioned
from .host.host_teacher import TeacherChoices, host_teacher
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

Choices = Mapping[str, tuple[int, ...]]


class GlancePhasePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlancePhasePlot",
            display_name="Glance Phase Plot",
            category=CATEGORY,
            description="Runs the model with all of its steps and plots how much its direction changes at each noise "
            "level. Suggests the steps, and the boundary between Slow and Fast, that follow it best. Faster than "
            "Calibrate Glance, but it does not choose guidance or solver.",
            search_aliases=["schedule", "phase boundary", "sigmas plot"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *teacher_inputs("One prompt or several: a list, or combined."),
                io.Int.Input("steps", default=10, min=2, max=1000, tooltip="How many steps to choose."),
                schedule_input(),
                seed_input(),
                teacher_runs_input("Full runs, one prompt after the other. 0: one for each prompt."),
                batch_input(),
                sigmas_input(),
            ],
            outputs=[
                SETTINGS.Output(
                    display_name="settings",
                    tooltip="The suggested steps, for Phase Split Sampler, Glance Scheduler and Train Glance Adapter.",
                ),
                io.String.Output(display_name="teacher_steps", tooltip="The same as text, Slow before the bar."),
                io.Image.Output(display_name="plot", tooltip="The trajectory, and the steps to choose from."),
                io.String.Output(display_name="report", tooltip="The steps to choose from, and their errors."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: list[Any],
        positive: list[Any],
        latent_image: list[Any],
        cfg: list[float],
        steps: list[int],
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
        runs = (teacher_runs or [0])[0] or len(teacher.prompts)
        progress = NodeProgress(getattr(cls.hidden, "unique_id", None), runs * teacher.steps)
        progress.stage("teacher", runs * teacher.steps)
        levels, batch = teacher.sigmas.values, (batch_size or [4])[0]

        def work(conditioned: Conditioned) -> TrajectoryProfile:
            core = Teacher(conditioned.velocity(cfg[0]), levels, batch, progress.tick)
            found = rollout(core, teacher.noise(runs, seed[0]), range(teacher.steps))
            return profile_trajectory(found.states, levels)

        profile = teacher.run(seed[0], work)
        split = profile.split(profile.best_steps(steps[0]))
        choices = _choices(split, steps[0], teacher.steps)
        solver = guided_solver(build_schedule(levels, split).sigmas, cfg[0])
        settings = Settings(teacher.sigmas.rule, split, solver, cfg[0], teacher.sigmas.listed)
        title = f"{type(model[0].model).__name__}, {teacher.steps} steps, cfg {cfg[0]:g}, {runs} runs"
        picture = as_image(plot_trajectory(profile, choices, split, title))
        head = f"teacher: {profile.steps} steps on {teacher.sigmas.rule} sigmas, {runs} runs"
        return io.NodeOutput(settings, str(split), picture, "\n".join([head, *_lines(profile, choices, split)]))


def _choices(split: Split, count: int, teacher_steps: int) -> Choices:
    """Return the suggested steps, even ones, and the paper's if there are as many."""
    choices = {"suggested": split.steps, "even": even_steps(count, teacher_steps)}
    for slow, fast in PRESETS.values():
        if slow + fast == count and teacher_steps == TEACHER_STEPS:
            choices[f"the paper's {slow} + {fast}"] = split_steps(slow, fast).steps
    return choices


def _lines(profile: TrajectoryProfile, choices: Choices, split: Split) -> list[str]:
    lines = [
        f"{name}: error {profile.error(steps):.4g}, teacher steps {', '.join(str(step + 1) for step in steps)}"
        for name, steps in choices.items()
    ]
    slow, fast = profile.sigmas[split.slow[-1]], profile.sigmas[split.fast[0]]
    lines.append(
        f"switch from Slow to Fast between sigma {slow:.3f} and {fast:.3f}, where both phases have about the same "
        f"error: {split}"
    )
    return lines
