"""A small model, and teacher trajectories to train it on."""

import torch
from torch import nn
from torch.nn import Linear

from glance_core.lora.slots import whole_slots
from glance_core.sampling.rollout import Teacher, rollout
from glance_core.schedule.sigmas import shifted_sigmas
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.objectives import TeacherForced
from glance_core.training.settings import TrainingSettings
from glance_core.training.student import Student

SIGMAS = shifted_sigmas(20, 2.0)
STEPS = (0, 4, 10, 15)
SETTINGS = TrainingSettings(LoraSettings(4, 8.0), steps=40, batch=8, learning_rate=1e-2, seed=3)


class Block(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.lin, self.gate = Linear(16, 16), Linear(16, 16)
        self.in_place = in_place

    def forward(self, h):
        more = torch.tanh(self.lin(h)) * self.gate(h)
        if not self.in_place:
            return h + more
        h += more
        return h


class Net(nn.Module):
    """velocity(x (B, 4), sigma (B,)), with blocks that add to their input in place or not."""

    def __init__(self, in_place=False):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Linear(5, 16), Linear(16, 4)
        self.blocks = nn.ModuleList(Block(in_place) for _ in range(2))

    def forward(self, x, sigma):
        h = torch.tanh(self.one(torch.cat([x, sigma[:, None]], 1)))
        for block in self.blocks:
            h = block(h)
        return self.two(h)


def velocity_of(model):
    return lambda x, sigma, rows: model(x, sigma)


def student_of(model, targets="one|two", velocity=None, **more):
    return Student(model, velocity or velocity_of(model), whole_slots(model, targets), **more)


def frozen_net():
    return Net().requires_grad_(False)


def teacher_forced(model, steps=STEPS, scale=1.0):
    """Return ten runs of the model as its own teacher, from noise of this standard deviation."""
    noise = scale * torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    return TeacherForced(rollout(Teacher(velocity_of(model), SIGMAS), noise, steps))


def snapshot(model):
    """Return the model's weights, its modules with their attributes, and what requires a gradient."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(name, type(module), set(vars(module))) for name, module in model.named_modules()],
        [(name, parameter.requires_grad) for name, parameter in model.named_parameters()],
    )


def is_unchanged(model, before):
    now = snapshot(model)
    assert now[0].keys() == before[0].keys() and all(torch.equal(now[0][name], before[0][name]) for name in now[0])
    return now[1:] == before[1:]


def same_factors(one, two):
    pairs = [(one[phase][name], two[phase][name]) for phase in (SLOW, FAST) for name in one[phase]]
    return one.keys() == two.keys() and all(torch.equal(a.up, b.up) and torch.equal(a.down, b.down) for a, b in pairs)
