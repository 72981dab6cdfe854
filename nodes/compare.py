"""GlanceCompare: teacher, base and pair from the same noise, with what each costs and how close it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..glance_core.calibration.calibrate import Settings
from ..glance_core.errors import ScheduleError
from ..glance_core.evaluation.comparison import PairedComparison, mean_text
from ..glance_core.evaluation.metrics import psnr
from ..glance_core.models import cfg_hint
from ..glance_core.plots.image_grid import comparison_sheet
from ..glance_core.schedule.plan import even_steps
from .host.base_model import latent_shape
from .host.model_sigmas import AUTO, model_sigmas
from .host.nested import parts
from .host.node_progress import as_image
from .host.patcher import metadata_of, pair_of
from .host.phase_run import StepChoice, phase_run
from .host.sampling_run import Scene, cfg_guider, sample, tagged_sigmas
from .inputs import CATEGORY, cfg_input, seed_input, settings_input, sigmas_input

TILE = 384  # pixels, the longest side of a picture in the grid
_SHOWN = 4  # pictures of each method
_ENOUGH = 8  # pictures from which a difference can be told


@dataclass(frozen=True)
class Run:
    """One method: a model and how to sample it."""

    name: str
    model: Any
    cfg: float
    sampler: Any
    sigmas: torch.Tensor


@dataclass(frozen=True)
class Sampled:
    """One method's pictures (n, 3, H, W) in [-1, 1], and what they cost. psnr (n,): to the teacher in dB, or empty."""

    name: str
    pictures: torch.Tensor
    steps: int
    nfe: float
    seconds: float
    psnr: torch.Tensor

    @property
    def label(self) -> str:
        """The label of its row in the grid."""
        lines = [self.name, f"{self.nfe:g} model calls"]
        return "\n".join([*lines, *([f"{float(self.psnr.mean()):.1f} dB"] if len(self.psnr) else [])])

    @property
    def row(self) -> str:
        """Its row in the table."""
        psnr_text = mean_text(self.psnr) if len(self.psnr) else "-"
        return f"| {self.name} | {self.steps} | {self.nfe:g} | {self.seconds:.1f} | {psnr_text} |"


class GlanceCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceCompare",
            display_name="Glance Compare",
            category=CATEGORY,
            description="Shows whether the pair is worth it. Samples your prompt from the same noise with all steps, "
            "with the pair, and with the base at as many model calls. Says how close each comes to the full run.",
            search_aliases=["compare", "benchmark", "before after", "xy plot"],
            inputs=[
                io.Model.Input("model", tooltip="The base model."),
                io.Model.Input("with_pair", tooltip="The same model from Load Glance LoRA or Train Glance Adapter."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show. Used unless cfg is 1."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent: size, and how many pictures to compare. More tell more."
                ),
                io.Vae.Input("vae", tooltip="Pictures are compared after decoding."),
                seed_input("Random seed for the noise, the same for all."),
                cfg_input(f"For the full run and the base: {cfg_hint()}. The pair uses what it was trained for."),
                io.Combo.Input(
                    "second_order",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default="dpmpp_2m",
                    tooltip="The sampler of the second base row.",
                ),
                settings_input("From Calibrate Glance: one more row, the base with these settings."),
                sigmas_input(),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A row for each method, with its first four pictures."),
                io.String.Output(
                    display_name="table", tooltip="Steps, model calls, seconds, PSNR to the full run, and the result."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        with_pair: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        vae: Any,
        seed: int,
        cfg: float,
        second_order: str,
        settings: Settings | None = None,
        sigmas: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if pair_of(with_pair) is None:
            raise ScheduleError("with_pair carries no Glance pair; wire the MODEL of Load Glance LoRA")
        if pair_of(model) is not None:
            raise ScheduleError("model carries a Glance pair; wire the model from before Load Glance LoRA")
        bench = _Bench(Scene(positive, negative, latent_image, seed), vae)
        shape, metadata = latent_shape(with_pair, latent_image), metadata_of(with_pair)
        levels = torch.tensor(model_sigmas(with_pair, shape, AUTO, metadata, sigmas).values)
        euler, second = (comfy.samplers.sampler_object(name) for name in ("euler", second_order))
        bench.warm_up(Run("", model, cfg, euler, levels))
        teacher = bench.sampled(Run("teacher", model, cfg, euler, levels))
        rows = [bench.compared(teacher, _pair_run(with_pair, latent_image, cfg, sigmas))]
        count = max(1, min(len(levels) - 1, round(rows[0].nfe / (1 if cfg == 1 else 2))))
        even = levels[[*even_steps(count, len(levels) - 1), -1]]
        rows.append(bench.compared(teacher, Run("base, euler", model, cfg, euler, even)))
        rows.append(bench.compared(teacher, Run(f"base, {second_order}", model, cfg, second, even)))
        if settings is not None:
            found = phase_run(model, latent_image, StepChoice(settings=settings))
            calibrated = Run("base, calibrated", model, 1.0, found.sampler, torch.tensor(found.schedule.sigmas))
            rows.append(bench.compared(teacher, calibrated))
        labelled = [(each.label, each.pictures[:_SHOWN]) for each in (teacher, *rows)]
        return io.NodeOutput(as_image(comparison_sheet(labelled, (), TILE)), _table(teacher, rows))


def _pair_run(with_pair: Any, latent: Any, cfg: float, sigmas: torch.Tensor | None) -> Run:
    """Return what Phase Split Sampler does by default: the pair's steps, else 5 + 5; its solver, else Euler."""
    metadata = metadata_of(with_pair)
    counts = (len(metadata.split.slow), len(metadata.split.fast)) if metadata.split else (5, 5)
    found = phase_run(with_pair, latent, StepChoice(*counts, sigmas=sigmas))
    own_cfg = 1.0 if found.solver else metadata.guidance or cfg
    return Run("pair", with_pair, own_cfg, found.sampler, tagged_sigmas(found.schedule))


class _Bench:
    """Runs of ComfyUI's sampler from one noise, decoded and counted."""

    def __init__(self, scene: Scene, vae: Any):
        self.scene, self.vae = scene, vae

    def warm_up(self, run: Run) -> None:
        """Take one step, so that loading the model is not counted."""
        sample(cfg_guider(run.model, run.cfg), self.scene, run.sampler, run.sigmas[:2])

    def sampled(self, run: Run) -> Sampled:
        calls = [0]

        def count(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            calls[0] += len(x)
            return executor(x, *args, **kwargs)

        patcher = run.model.clone()
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "glance_compare", count)
        began = time.monotonic()
        latent = sample(cfg_guider(patcher, run.cfg), self.scene, run.sampler, run.sigmas)
        seconds = time.monotonic() - began
        nfe = calls[0] / self.scene.latent["samples"].shape[0]
        return Sampled(run.name, self._decoded(latent), len(run.sigmas) - 1, nfe, seconds, torch.empty(0))

    def compared(self, teacher: Sampled, run: Run) -> Sampled:
        """Return the run with its PSNR to the teacher."""
        found = self.sampled(run)
        return replace(found, psnr=psnr(found.pictures, teacher.pictures))

    def _decoded(self, latent: Any) -> torch.Tensor:
        """Return pictures (n, 3, H, W); of a video every frame, without its sound."""
        pixels = self.vae.decode(parts(latent["samples"])[0])
        return pixels.reshape(-1, *pixels.shape[-3:]).movedim(-1, 1)[:, :3].float().cpu() * 2 - 1


def _table(teacher: Sampled, rows: Sequence[Sampled]) -> str:
    pair, base = rows[0], max(rows[1:], key=lambda row: float(row.psnr.mean()))
    comparison = PairedComparison(pair.psnr, base.psnr, "")
    if comparison.is_better_by(1):
        result = (
            f"The pair is closer to the teacher than the best base row ({base.name}): {comparison.difference}, with "
            f"{teacher.nfe / pair.nfe:.1f} times fewer model calls than the teacher."
        )
    else:
        result = (
            f"THE PAIR IS NOT CLOSER than the best base row ({base.name}): {comparison.difference}. Use that row's "
            "settings, or train another pair."
        )
    few = (
        ""
        if len(pair.psnr) >= _ENOUGH
        else f" {len(pair.psnr)} pictures say little; use a larger batch_size in the latent."
    )
    head = "| method | steps | model calls | seconds | PSNR to the teacher, dB |\n|---|---|---|---|---|"
    return "\n".join([head, teacher.row, *(row.row for row in rows), "", result + few])
