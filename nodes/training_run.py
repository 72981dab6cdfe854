"""One training run in the host: teacher, both phases, previews, the check before and after, and the files."""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from ..glance_core.adapter_metadata import Trained
from ..glance_core.checkpoint import kept
from ..glance_core.draws import History
from ..glance_core.errors import AdapterError
from ..glance_core.lora_file import Factor
from ..glance_core.lora_layers import low_rank_updates
from ..glance_core.lora_write import WHOLE, write_pair, write_preview
from ..glance_core.objectives import END_TO_END, FLOW, FlowMatching, Objective, Trajectories, rollout
from ..glance_core.parts import Choice, what_helps
from ..glance_core.phase_switch import PhaseSwitch, PhaseWeights, phase_index
from ..glance_core.schedule import FAST, SLOW
from ..glance_core.solver import Solver, guided, in_batches, solve
from ..glance_core.teacher import Surrogate, surrogate
from ..glance_core.trainees import Walks
from ..glance_core.training import Outcome, Step, train_pair
from ..glance_core.verdict import latent_psnr
from . import host
from . import student as glue
from .live import Live, preview
from .training_plan import Plan, hash_of

Pair = Mapping[str, Mapping[str, Factor]]


@dataclass(frozen=True)
class Result:
    """The files written, what came of the training, and what it took; whole: files with all that was trained, where not all is kept; pictures:
    what became of the previews beside the files, for a reader."""

    files: tuple[Path, Path]
    whole: tuple[Path, ...]
    choice: Choice
    history: History
    seconds: float
    steps_per_second: float
    teacher: Surrogate
    pictures: tuple[str, ...]


def train(plan: Plan, live: Live) -> Result:
    """Both phases of `plan`; the pair is on the disk afterwards. An interrupt keeps what is needed to go on."""
    started = time.monotonic()
    found: list[tuple[Choice, History, float, Surrogate, Image.Image | None]] = []

    def work(conditioned: glue.Conditioned, latents: torch.Tensor) -> None:
        objective, taught = _objective(plan, conditioned, latents, live)
        # The paper's loss knows no guidance, and a walk's solver takes both velocities by itself.
        cfg = 1.0 if plan.objective == FLOW or plan.walks else plan.student_cfg
        learner = glue.student(plan.model, conditioned, cfg, plan.slots, plan.checkpointing)
        previews = _Previews(plan, conditioned, live)
        live.stage("training", plan.training_work)
        begun = time.monotonic()
        done = train_pair(
            learner,
            objective,
            plan.walked.slow_steps,
            plan.settings,
            previews.after,
            plan.keep.run,
            plan.identity,
        )
        speed = live.done / max(time.monotonic() - begun, 1e-9)
        choice = _check(plan, conditioned, done, live)
        found.append((choice, done.history, speed, taught, previews.finished(choice.outcome)))

    with plan.keep.alone():
        glue.run(plan.model, plan.positive, plan.negative, plan.latents, plan.settings.seed, plan.offload, _room(plan), work)
        ((choice, history, speed, taught, picture),) = found
        whole = _write(plan, choice.whole, plan.keep.folder, f"{plan.name}{WHOLE}", once=True) if choice.dropped else ()
        files = _write(plan, choice, plan.folder, plan.name)
        plan.keep.remove()  # before the pictures: a kill from here on costs no more than them
    return Result(files, whole, choice, history, time.monotonic() - started, speed, taught, _write_previews(files, picture))


def _objective(plan: Plan, conditioned: glue.Conditioned, latents: torch.Tensor, live: Live) -> tuple[Objective | Walks, Surrogate]:
    """What is learned, and how the teacher walked for it."""
    if plan.objective == FLOW:
        return FlowMatching(latents.float(), plan.walked.sigmas[:-1], host.is_flow(plan.model)), Surrogate()
    noise = _noise(plan, plan.runs, plan.settings.seed)

    def walk() -> dict[str, torch.Tensor]:
        live.stage("teacher", plan.teacher_work)
        teacher = conditioned.velocity(plan.cfg, range(plan.prompts))
        steps, batch = plan.split.steps, plan.settings.batch
        cheaper = surrogate(teacher, noise, plan.ladder, latent_psnr, batch, live.still, steps)
        data = rollout(teacher, noise, plan.ladder, steps, batch, live.step, cheaper.visited)
        near = torch.tensor(math.nan if cheaper.near is None else cheaper.near)
        return {
            "states": data.states.cpu(),
            "sigmas": data.sigmas.cpu(),
            "near": near,
            "visited": torch.tensor(cheaper.visited or (), dtype=torch.long),
        }

    tensors = kept(plan.keep.teacher, {**plan.identity, "seed": plan.settings.seed}, plan.keep.run, walk)
    states = tensors["states"].to(noise)
    near = float(tensors["near"])
    taught = Surrogate(tuple(tensors["visited"].tolist()) or None, None if math.isnan(near) else near)
    if plan.start is not None:
        walks = Walks(states[0], states[1:], plan.walked.sigmas, plan.start, plan.objective.startswith(END_TO_END), plan.learn)
        return walks.begun(conditioned.velocity(1.0, range(plan.prompts)), plan.settings.batch, live.still), taught
    return Trajectories(states, tensors["sigmas"].to(noise)), taught


def _check(plan: Plan, conditioned: glue.Conditioned, done: Outcome, live: Live) -> Choice:
    """What helps from unseen noise, on prompts that were not trained where there are any."""
    unseen = range(plan.prompts, len(plan.positive))
    among, what = (unseen, "prompts") if unseen else (range(plan.prompts), "unseen noises of the training prompts")
    rows = torch.arange(plan.checks)
    noise = _noise(plan, plan.checks, plan.settings.seed + 7919)  # no seed of a training row: those count up from the seed's own generator
    live.stage("checking", plan.check_work)
    teacher = rollout(conditioned.velocity(plan.cfg, among), noise, plan.ladder, (0,), plan.settings.batch, live.step).states[-1]

    def near(outcome: Outcome) -> torch.Tensor:
        results = _sampled(plan, conditioned, among, noise, rows, outcome.factors, outcome.solver, live.step)
        return latent_psnr(results, teacher).cpu()

    judged = f"{plan.checks} {'unseen ' if unseen else ''}{what}, in latents"
    return what_helps(done, plan.start, near, judged, plan.keep_everything)


def _sampled(
    plan: Plan, conditioned: glue.Conditioned, among: range, noise: torch.Tensor, rows: torch.Tensor, pair: Pair | None, solver: Solver | None,
    tick: Callable[[int], None],
) -> torch.Tensor:  # fmt: skip
    """The student's walk from this noise, with the pair (phases it lacks: the bare base) or without; by Euler without a solver."""
    phases = [low_rank_updates(pair.get(phase, {}) if pair else {}, plan.slots) for phase in (SLOW, FAST)]
    switch = PhaseSwitch(PhaseWeights(phases, host.compute_dtype(plan.model)))
    walks = solver or guided(plan.walked.sigmas, 1.0)  # the guidance is then the host's own
    plain = conditioned.velocity(1.0 if solver else plan.student_cfg, among)

    def begin(step: int, x: torch.Tensor, sigma: float) -> None:
        switch.select(phase_index(sigma, (plan.walked.threshold,)))

    out = []
    with torch.no_grad():
        switch.install(plan.model.model, plan.model.load_device)
        try:
            for batch in rows.split(plan.settings.batch):
                velocities = in_batches(plain, batch, len(batch), tick)
                out.append(solve(walks, plan.walked.sigmas, velocities, noise[batch], begin))
        finally:
            switch.remove()
    return torch.cat(out)


class _Previews:
    """What happens after each step: progress, and now and then a picture through the pair as it is."""

    def __init__(self, plan: Plan, conditioned: glue.Conditioned, live: Live):
        self.plan, self.conditioned, self.live = plan, conditioned, live
        self.noise = _noise(plan, 1, plan.settings.seed + 104_729)
        self.painted = 0

    def after(self, step: Step) -> None:
        done = step.step + (step.steps if step.phase == FAST else 0)
        picture = None
        if self.plan.preview_every and done - self.painted >= self.plan.preview_every:
            self.painted = done
            picture = self._paint(step.factors(), step.solver())
        self.live.at(done, f"{step.phase} {step.step}/{step.steps}, loss {step.loss:.4g}", picture)

    def finished(self, outcome: Outcome) -> Image.Image | None:
        """The last one, through the pair as it is written."""
        picture = self._paint(outcome.factors, outcome.solver) if self.plan.preview_every else None
        if picture is None:
            return None
        self.live.at(self.live.done, "", picture)
        return picture[1]

    def _paint(self, pair: Pair, solver: Solver | None) -> tuple[str, Image.Image, int] | None:
        row = torch.zeros(1, dtype=torch.long)
        latent = _sampled(self.plan, self.conditioned, range(self.plan.prompts), self.noise, row, pair, solver, self.live.still)
        return preview(self.plan.model, latent)


def _write(plan: Plan, choice: Choice, folder: Path, name: str, once: bool = False) -> tuple[Path, Path]:
    done, verdict = choice.outcome, choice.verdict
    walked = plan.walked
    about = {**plan.identity, **asdict(plan.settings), "learn": plan.learn, "kept": choice.names}
    common = Trained(
        base=host.architecture(plan.model), fingerprint=host.fingerprint(plan.model), ladder=plan.kind, teacher_steps=plan.split.teacher_steps,
        steps=str(plan.split), objective=plan.objective, guidance=plan.student_cfg, seed=plan.settings.seed,
        pair=hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16],
        image_sha256=hash_of([plan.latents]) if plan.objective == FLOW else None, solver=done.solver.dumps() if done.solver else None,
        psnr_pair=float(verdict.pair.mean()), psnr_base=float(verdict.base.mean()), kept=choice.names, verdict=str(choice),
        resolution=host.picture_size(plan.model, tuple(plan.latents.shape)),
    )  # fmt: skip
    sigmas = {SLOW: walked.sigmas[: walked.slow_steps], FAST: walked.sigmas[walked.slow_steps : -1]}
    return write_pair(folder, name, done.factors, common, sigmas, once)


def _write_previews(files: tuple[Path, Path], picture: Image.Image | None) -> tuple[str, ...]:
    """The picture beside each of the files, where managers look for it; a file that is there stays, and no failure here costs the pair."""
    if picture is None:
        return ()
    content = io.BytesIO()
    picture.convert("RGB").save(content, "PNG")
    told = []
    for file in files:
        try:
            told.append(str(write_preview(file, content.getvalue())))
        except AdapterError as error:
            told.append(f"no preview picture beside {file.name}: {error}")
    return tuple(told)


def _noise(plan: Plan, count: int, seed: int) -> torch.Tensor:
    return host.starting_noise(plan.model, plan.ladder, tuple(plan.latents.shape), count, seed)


def _room(plan: Plan) -> int:
    """Bytes that training needs beside the weights: adapters, their gradients and optimiser state, and per number of the hidden state what
    each block keeps (its inputs, or all of it) and what one block works with. The figures are `python -m benchmarks.memory`'s, rounded up."""
    widths = Counter(slot.inside for slot in plan.slots.values())
    frames = plan.latents.shape[2] if plan.latents.ndim == 5 else 1
    tokens = frames * host.latent_tokens(tuple(plan.latents.shape)) + 512
    blocks = len(glue.blocks_of(plan.model.model.diffusion_model))
    forwards = plan.settings.batch * (2 if plan.student_cfg != 1 else 1)
    adapters = sum(plan.settings.lora.rank * (slot.inside + slot.outside) for slot in plan.slots.values())
    per_number = (blocks * (2 if plan.checkpointing else 46) + 64) * host.compute_dtype(plan.model).itemsize // 2
    if plan.objective.startswith(END_TO_END):
        forwards *= plan.walked.steps  # all steps' activations
    return forwards * tokens * widths.most_common(1)[0][0] * per_number + 16 * adapters * (2 if plan.walks else 1)
