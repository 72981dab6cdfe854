"""GlanceCompare: teacher, bare base and pair from the same noise, with what each costs and how near it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..glance_core.adapter_metadata import Trained
from ..glance_core.calibration import Settings
from ..glance_core.errors import ScheduleError
from ..glance_core.metrics import psnr
from ..glance_core.pictures import comparison
from ..glance_core.verdict import Verdict, mean
from ..glance_core.walks import even_steps
from . import host, pair
from .live import as_image
from .loader import CATEGORY
from .samplers import run_of, settings_input

TILE = 384  # pixels, the longest side of a picture in the grid


@dataclass(frozen=True)
class Shown:
    """One method's pictures (n, 3, H, W) in [-1, 1], and what they cost; near: PSNR (n,) to the teacher in dB, none
    of the teacher's own."""

    name: str
    pictures: torch.Tensor
    steps: int
    forwards: float
    seconds: float
    near: torch.Tensor

    @property
    def label(self) -> str:
        return "\n".join([self.name, f"{self.forwards:g} forwards", *([f"{float(self.near.mean()):.1f} dB"] if len(self.near) else [])])

    @property
    def row(self) -> str:
        near = mean(self.near) if len(self.near) else "-"
        return f"| {self.name} | {self.steps} | {self.forwards:g} | {self.seconds:.1f} | {near} |"


class GlanceCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GlanceCompare",
            display_name="Glance Compare",
            category=CATEGORY,
            description="Is the pair worth it, on your model and your prompt? Samples, from the same noise, all of the teacher's steps, the pair, and the bare base with "
            "as many forwards, by Euler and by a second-order sampler; shows them in a grid, and says how near each comes to the teacher.",
            search_aliases=["compare", "benchmark", "before after", "xy plot"],
            inputs=[
                io.Model.Input("model", tooltip="The bare model."),
                io.Model.Input("with_pair", tooltip="The same model from Load Glance LoRA or Train Glance Adapter."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not; used where cfg is not 1."),
                io.Latent.Input("latent_image", tooltip="An empty latent: size, and how many pictures to compare. More of them tell more."),
                io.Vae.Input("vae", tooltip="Pictures are compared as you see them, decoded."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="The noise's seed, the same for all."),
                io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Of the teacher and the bare base: Qwen-Image 4, FLUX.1-dev 1, the embedded model 4. "
                               "The pair takes what it was trained with."),
                io.Combo.Input("second_order", options=comfy.samplers.SAMPLER_NAMES, default="dpmpp_2m", tooltip="The sampler of the second bare row."),
                settings_input("From Calibrate Glance: one more row, the bare base with these settings."),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A row for each method, the first four pictures of each."),
                io.String.Output(display_name="table", tooltip="Steps, forwards, seconds, PSNR to the teacher, and what follows."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, with_pair: Any, positive: Any, negative: Any, latent_image: Any, vae: Any, seed: int, cfg: float, second_order: str,
        settings: Settings | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        if pair.pair_of(with_pair) is None:
            raise ScheduleError("with_pair carries no Glance pair; wire the MODEL of Load Glance LoRA")
        if pair.pair_of(model) is not None:
            raise ScheduleError("model carries a Glance pair, and is to be the bare one; wire the model from before Load Glance LoRA")
        bench = _Bench(positive, negative, latent_image, vae, seed)
        trained = pair.trained_of(with_pair)
        ladder = torch.tensor(host.teacher_ladder(with_pair, host.latent_shape(with_pair, latent_image), "auto", trained)[1])
        euler, second = (comfy.samplers.sampler_object(name) for name in ("euler", second_order))
        bench.warm(model, cfg, euler, ladder)
        teacher = bench.shown("teacher", model, cfg, euler, ladder)
        rows = [bench.beside(teacher, *_pair_run(with_pair, latent_image, trained, cfg))]
        count = max(1, min(len(ladder) - 1, round(rows[0].forwards / (1 if cfg == 1 else 2))))
        even = ladder[[*even_steps(count, len(ladder) - 1), -1]]
        rows.append(bench.beside(teacher, "bare base, euler", model, cfg, euler, even))
        rows.append(bench.beside(teacher, f"bare base, {second_order}", model, cfg, second, even))
        if settings is not None:
            walked, sampler, _ = run_of(model, latent_image, "auto", 1, 1, "", 1.0, settings)
            rows.append(bench.beside(teacher, "bare base, calibrated", model, 1.0, sampler, torch.tensor(walked.sigmas)))
        labelled = [(each.label, each.pictures[:4]) for each in (teacher, *rows)]
        return io.NodeOutput(as_image(comparison(labelled, (), TILE)), _table(teacher, rows))


def _pair_run(with_pair: Any, latent: Any, trained: Trained, cfg: float) -> tuple[str, Any, float, Any, torch.Tensor]:
    """How Phase Split Sampler would sample the pair when left alone: its own steps, else 5 + 5; its solver, else Euler."""
    counts = (len(trained.split.slow), len(trained.split.fast)) if trained.split else (5, 5)
    walked, sampler, solver = run_of(with_pair, latent, "auto", *counts, "", 1.0, None)
    return "pair", with_pair, 1.0 if solver else trained.guidance or cfg, sampler, pair.tagged_sigmas(walked)


class _Bench:
    """Runs of the host's sampler from one noise, decoded and counted."""

    def __init__(self, positive: Any, negative: Any, latent: Any, vae: Any, seed: int):
        self.positive, self.negative, self.latent, self.vae, self.seed = positive, negative, latent, vae, seed

    def warm(self, model: Any, cfg: float, sampler: Any, ladder: torch.Tensor) -> None:
        """One step, so that loading the model is not counted."""
        host.sample(model, self.positive, self.negative, self.latent, self.seed, cfg, sampler, ladder[:2])

    def shown(self, name: str, model: Any, cfg: float, sampler: Any, sigmas: torch.Tensor) -> Shown:
        counted, pictures = 0, self.latent["samples"].shape[0]

        def counting(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal counted
            counted += len(x)
            return executor(x, *args, **kwargs)

        patcher = model.clone()
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "glance_compare", counting)
        began = time.monotonic()
        done = host.sample(patcher, self.positive, self.negative, self.latent, self.seed, cfg, sampler, sigmas)
        seconds = time.monotonic() - began
        return Shown(name, self._decoded(done), len(sigmas) - 1, counted / pictures, seconds, torch.empty(0))

    def beside(self, teacher: Shown, *method: Any) -> Shown:
        found = self.shown(*method)
        return replace(found, near=psnr(found.pictures, teacher.pictures))

    def _decoded(self, latent: Any) -> torch.Tensor:
        """Of a video every frame."""
        pixels = self.vae.decode(latent["samples"])
        return pixels.reshape(-1, *pixels.shape[-3:]).movedim(-1, 1)[:, :3].float().cpu() * 2 - 1


def _table(teacher: Shown, rows: Sequence[Shown]) -> str:
    ours, bare = rows[0], max(rows[1:], key=lambda row: float(row.near.mean()))
    beside = Verdict(ours.near, bare.near, "")
    verdict = (
        f"The pair is nearer to the teacher than the best bare row ({bare.name}): {beside.difference}, with {teacher.forwards / ours.forwards:.1f} times "
        "fewer forwards than the teacher."
        if beside.nearer_by(1)
        else f"THE PAIR IS NO NEARER than the best bare row ({bare.name}): {beside.difference}; use that one, or train another pair."
    )
    few = "" if len(ours.near) > 7 else f" {len(ours.near)} pictures tell little; a higher batch_size in the latent tells more."
    head = "| method | steps | forwards | seconds | PSNR to the teacher, dB |\n|---|---|---|---|---|"
    return "\n".join([head, teacher.row, *(row.row for row in rows), "", verdict + few])
