"""A small model that sees whether it has a prompt, and rollouts of a guided teacher to train it on."""

import torch
from torch import nn
from torch.nn import Linear

from glance_core.lora.slots import whole_slots
from glance_core.sampling.rollout import Teacher, rollout
from glance_core.sampling.solver import guided_solver
from glance_core.sampling.velocity import NO_PROMPT
from glance_core.schedule.sigmas import shifted_sigmas
from glance_core.training.autograd.checkpointing import blocks_of
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.rollout_task import RolloutData
from glance_core.training.settings import TrainingSettings
from glance_core.training.student import Student

TEACHER_SIGMAS = shifted_sigmas(20, 2.0)
STEPS, SLOW_STEPS, GUIDANCE = (0, 4, 10, 15), 2, 2.0
SIGMAS = (*(TEACHER_SIGMAS[step] for step in STEPS), 0.0)
SETTINGS = TrainingSettings(LoraSettings(4, 4.0), steps=6, batch=3, learning_rate=1e-2, seed=3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.gate = Linear(12, 12), Linear(12, 12)

    def forward(self, h):
        h += torch.tanh(self.lin(h)) * self.gate(h)
        return h


class Net(nn.Module):
    """velocity(x (B, 4), sigma (B,), rows), another for the empty prompt; its blocks write into what autograd keeps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Linear(6, 12), Linear(12, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x, sigma, rows):
        h = torch.tanh(self.one(torch.cat([x, sigma[:, None], (rows == NO_PROMPT)[:, None].to(x)], 1)))
        for block in self.blocks:
            h = block(h)
        return self.two(h)


def make_student(checkpointing=False, dtype=torch.float32):
    model = Net().to(dtype).requires_grad_(False)
    blocks = blocks_of(model) if checkpointing else None
    return Student(model, model, whole_slots(model, r"two|blocks\..+"), blocks=blocks)


def rollout_data(end_to_end, guidance=GUIDANCE, dtype=torch.float32, **more):
    """Return six runs of the teacher under GUIDANCE, for a student whose solver starts with `guidance`."""
    model = Net().to(dtype)
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)

    def guided_velocity(x, sigma, rows):
        with torch.no_grad():
            uncond = model(x, sigma, torch.full_like(rows, NO_PROMPT))
            return uncond + GUIDANCE * (model(x, sigma, rows) - uncond)

    trajectory = rollout(Teacher(guided_velocity, TEACHER_SIGMAS), noise, STEPS)
    return RolloutData.of(trajectory, SIGMAS, guided_solver(SIGMAS, guidance, 0.1), end_to_end, **more)
