"""A linear velocity model as the distillation pipeline takes it, which records what it is asked."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import Linear

from glance_core.evaluation.metrics import latent_psnr
from glance_core.lora.factors import Factor
from glance_core.lora.slots import whole_slots
from glance_core.sampling.samplers import euler
from glance_core.sampling.velocity import NO_PROMPT
from glance_core.schedule.sigmas import FIXED_SHIFT, shifted_sigmas
from glance_core.schedule.split import FAST, SLOW, Split
from glance_core.training.distill_plan import DistillPlan
from glance_core.training.history import History
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.objectives import Objective
from glance_core.training.settings import TrainingSettings
from glance_core.training.student import Student
from glance_core.training.trainer import Outcome

SHIFT = 2.0
TEACHER_SIGMAS = shifted_sigmas(20, SHIFT)
SPLIT = Split((0, 4), (10, 15), 20)
SIGMAS = (*(TEACHER_SIGMAS[step] for step in SPLIT.steps), 0.0)
TEACHER_CFG, STUDENT_CFG, BASE_CFG = 3.0, 2.0, 1.5
RUNS, CHECKS = 14, 6
SETTINGS = TrainingSettings(LoraSettings(2, 2.0), steps=6, batch=7, learning_rate=0.05, seed=3)


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """velocity(x (B, 4), sigma (B,), prompt (B, 2)), linear in all of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = Linear(7, 4)

    def forward(self, x, sigma, prompt):
        return self.layer(torch.cat([x, sigma[:, None], prompt], 1))


def guided(net, x, sigma, prompt, guidance):
    """Return classifier-free guidance; the empty prompt is zeros."""
    uncond = net(x, sigma, torch.zeros_like(prompt))
    return uncond + guidance * (net(x, sigma, prompt) - uncond)


@dataclass(frozen=True)
class Call:
    """What the model was asked: by a student in training or not, and x (B, 4), sigma (B,), prompt (B, 2)."""

    training: bool
    guidance: float
    held_out: bool
    x: torch.Tensor
    sigma: torch.Tensor
    prompt: torch.Tensor


class LinearModel:
    """A DistillModel of five training prompts and three held-out ones, so that runs share them."""

    device, dtype, batch, is_flow, noise_scale = torch.device("cpu"), torch.float32, 4, True, 1.0
    held_out_text = f"{CHECKS} held-out prompts"

    def __init__(self, runs=RUNS):
        self.module = Net().requires_grad_(False)
        self.slots = whole_slots(self.module)
        self.pictures = random(3, 4, seed=1)
        self.noises = {False: random(runs, 4, seed=2), True: random(CHECKS, 4, seed=3)}
        self.prompts = {False: random(5, 2, seed=4), True: random(3, 2, seed=5)}
        self.calls = []

    def velocity(self, guidance, held_out=False):
        return self._recorded(False, guidance, held_out)

    def student(self, guidance):
        return Student(self.module, self._recorded(True, guidance, False), self.slots)

    def noise(self, held_out=False):
        return self.noises[held_out]

    def closeness(self, results, teacher):
        return latent_psnr(results, teacher)

    def identity(self):
        return {"model": "linear", "data": "five prompts"}

    def prompt_of(self, rows, held_out=False):
        prompts = self.prompts[held_out]
        shown = prompts[rows % len(prompts)]
        return torch.where((rows == NO_PROMPT)[:, None], torch.zeros_like(shown), shown)

    def asked_of_teacher(self, held_out=False):
        """Return the calls under the teacher's guidance."""
        return [
            call
            for call in self.calls
            if not call.training and call.guidance == TEACHER_CFG and call.held_out == held_out
        ]

    def _recorded(self, training, guidance, held_out):
        def velocity(x, sigma, rows):
            prompt = self.prompt_of(rows, held_out)
            self.calls.append(Call(training, guidance, held_out, x.detach().clone(), sigma.detach().clone(), prompt))
            return guided(self.module, x, sigma, prompt, guidance)

        return velocity


class Recorder:
    """An Observer. stages: name -> [announced total, counted work]. paused: work that no stage counts.

    stop_at: raise Stop after this training step.
    """

    def __init__(self, stop_at=None):
        self.stages, self.name, self.paused, self.stop_at = {}, None, 0, stop_at

    def stage(self, name, total):
        self.name = name
        self.stages[name] = [total, 0]

    def tick(self, count):
        self.stages[self.name][1] += count

    def pause(self, count):
        self.paused += count

    def trained(self, step):
        self.tick(1)
        if step.step == self.stop_at:
            raise Stop


class Stop(Exception):
    pass


def make_plan(objective=Objective.TEACHER_FORCED, **changes):
    values = {
        "fold_guidance": False,
        "rule": FIXED_SHIFT,
        "sigmas": TEACHER_SIGMAS,
        "split": SPLIT,
        "runs": RUNS,
        "teacher_cfg": TEACHER_CFG,
        "student_cfg": STUDENT_CFG,
        "base_cfg": BASE_CFG,
        "settings": SETTINGS,
        "checks": CHECKS,
    }
    return DistillPlan(objective=objective, **values | changes)


def random_outcome(phases=(SLOW, FAST), solver=None):
    """Return an outcome whose phases change the model, each in its own way."""
    factors = {
        phase: {"layer": Factor(random(2, 7, seed=10 + i), 0.3 * random(4, 2, seed=20 + i), 1.0, 0.5, "layer")}
        for i, phase in enumerate(phases)
    }
    return Outcome(factors, History(), solver)


def merged_nets(model, outcome):
    """Return the model with each phase's factors merged into its weight, Slow first."""
    nets = []
    for phase in (SLOW, FAST):
        net = copy.deepcopy(model.module)
        for factor in outcome.factors.get(phase, {}).values():
            net.layer.weight += factor.scale * factor.up @ factor.down
        nets.append(net)
    return nets


def sample_by_hand(model, outcome, guidance, held_out=False):
    """Return where Euler's method ends on the student's steps, with merged weights."""
    noise, nets = model.noise(held_out), merged_nets(model, outcome)
    prompt = model.prompt_of(torch.arange(len(noise)), held_out)

    def velocity(x, sigma):
        net = nets[0] if SIGMAS.index(sigma) < len(SPLIT.slow) else nets[1]
        return guided(net, x, x.new_full((len(x),), sigma), prompt, guidance)

    return euler(velocity, noise, SIGMAS)


def solve_by_hand(model, outcome, held_out=False):
    """Return where the outcome's solver ends, by the formula in sampling/solver.py, with merged weights."""
    x, nets, solver = model.noise(held_out), merged_nets(model, outcome), outcome.solver
    prompt = model.prompt_of(torch.arange(len(x)), held_out)
    cond, uncond = [], []
    for i in range(len(SIGMAS) - 1):
        net, level = nets[i >= len(SPLIT.slow)], x.new_full((len(x),), solver.sigma_scale[i] * SIGMAS[i])
        cond.append(net(x, level, prompt))
        uncond.append(net(x, level, torch.zeros_like(prompt)))
        slope = sum(solver.cond_coef[i][j] * cond[j] + solver.uncond_coef[i][j] * uncond[j] for j in range(i + 1))
        x = solver.state_coef[i] * x + (SIGMAS[i + 1] - SIGMAS[i]) * slope
    return x


def assert_same_outcome(one, two):
    assert one.history == two.history and one.solver == two.solver
    for phase in (SLOW, FAST):
        factor, other = (each.factors[phase]["layer"] for each in (one, two))
        assert torch.equal(factor.down, other.down) and torch.equal(factor.up, other.up)
