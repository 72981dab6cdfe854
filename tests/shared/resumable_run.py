"""A small model, and short training runs on it that a test stops and resumes."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import Linear

from glance_core.lora.slots import whole_slots
from glance_core.sampling.rollout import TeacherTrajectory
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.objectives import FlowMatching, TeacherForced
from glance_core.training.settings import TrainingSettings
from glance_core.training.student import Student

STEPS = 4
SETTINGS = TrainingSettings(LoraSettings(2, 4.0), steps=STEPS, batch=3, learning_rate=1e-2, seed=3)
_GENERATOR = torch.Generator().manual_seed(0)
TRAJECTORY = TeacherTrajectory(torch.randn(5, 7, 4, generator=_GENERATOR), torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0]))
TEACHER_FORCED = TeacherForced(TRAJECTORY)
PICTURES = FlowMatching(torch.randn(2, 4, generator=_GENERATOR), (1.0, 0.8, 0.6, 0.3))
RUNS = {
    "teacher forced": (TEACHER_FORCED, SETTINGS),
    "flow matching, which draws noise": (PICTURES, SETTINGS),
    "accumulation and dropout": (TEACHER_FORCED, replace(SETTINGS, batch=2, accumulation=2, caption_dropout=0.4)),
    "flow matching, accumulation, dropout, decay": (
        PICTURES,
        replace(SETTINGS, batch=1, accumulation=3, caption_dropout=0.2, weight_decay=0.1, decay="cosine"),
    ),
}


class Net(nn.Module):
    """in_place: it writes into what autograd keeps, so that training has to copy."""

    def __init__(self, in_place=False):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.mid, self.two = Linear(5, 8), Linear(8, 8), Linear(8, 4)
        self.in_place = in_place

    def forward(self, x, sigma, rows):
        h = torch.tanh(self.one(torch.cat([x, sigma[:, None] + (rows < 0)[:, None]], 1)))
        if self.in_place:
            h += self.mid(h)
            return self.two(h)
        return self.two(h + self.mid(h))


class Stop(Exception):
    pass


def make_student(in_place=False, targets="one|two|mid"):
    model = Net(in_place).requires_grad_(False)
    return Student(model, model, whole_slots(model, targets))


def stop(step):
    """Stop the run after its next step."""
    raise Stop


def assert_same_outcome(one, two):
    for phase in (SLOW, FAST):
        assert one.factors[phase].keys() == two.factors[phase].keys()
        for name, factor in one.factors[phase].items():
            other = two.factors[phase][name]
            assert torch.equal(factor.down, other.down) and torch.equal(factor.up, other.up)
            assert (factor.scale, factor.alpha) == (other.scale, other.alpha)
    assert one.history == two.history
