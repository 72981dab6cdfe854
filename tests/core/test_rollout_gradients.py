"""Gradients of both adapters and of the solver, on the student's own sampling runs."""

import pytest
import torch
from rollout_net import GUIDANCE, SIGMAS, SLOW_STEPS, make_student, rollout_data
from torch import nn

from glance_core.sampling.velocity import with_and_without_prompt
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.autograd.inplace import InplaceTracker
from glance_core.training.batches import BatchSampler
from glance_core.training.lora_layers import LoraSettings, frozen
from glance_core.training.rollout_task import RolloutTask

SIGMA_SCALE = 0.97  # inside its bounds, so it has a slope on both sides


def make_task(end_to_end, checkpointing=False, guidance=GUIDANCE):
    """Return a task in float64 whose factors are not zero."""
    student = make_student(checkpointing, torch.float64)
    data = rollout_data(end_to_end, guidance, torch.float64)
    task = RolloutTask(student, data, SLOW_STEPS, LoraSettings(2, 2.0), (1, 2), InplaceTracker())
    generator = torch.Generator().manual_seed(7)
    for layers in task.layers.values():
        for layer in layers.layers.values():
            for factor in (layer.lora_A, layer.lora_B):
                factor.double()
        for parameter in layers.parameters():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    task.learnable.double()
    task.learnable.sigma_scale.data *= SIGMA_SCALE
    return task


def parameters_of(task):
    return [parameter for group in task.parameter_groups(1.0) for parameter in group["params"]]


def gradients_of(task):
    return torch.cat([p.grad.flatten() for p in parameters_of(task) if p.grad is not None])


def first_batch():
    return BatchSampler(range(4), 6, 3, 0.0, 5).next()


def loss_of(task):
    """Return the number whose gradient `backward` adds up."""
    found = []

    def scaled(mean):
        found.append(float(mean.detach()))
        return mean

    task.backward(first_batch(), torch.Generator(), scaled)
    return sum(found)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_end_to_end_gradients_equal_central_differences(guidance):
    task = make_task(True, guidance=guidance)
    parameters = parameters_of(task)
    with frozen(task.student.model):
        for _ in range(2):  # the second step knows what the first learned of the blocks
            for parameter in parameters:
                parameter.grad = None
            loss_of(task)
        given = [
            parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter)
            for parameter in parameters
        ]
        assert sum(float(gradient.abs().sum()) > 0 for gradient in given) >= len(given) - (guidance == 1)
        for parameter, gradient in zip(parameters, given, strict=True):
            for at in range(0, parameter.numel(), max(1, parameter.numel() // 3)):
                before = parameter.data.view(-1)[at].item()
                ends = []
                for move in (1e-5, -1e-5):
                    parameter.data.view(-1)[at] = before + move
                    ends.append(loss_of(task))
                parameter.data.view(-1)[at] = before
                assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient.view(-1)[at]), rel=1e-4, abs=1e-7)


def gradients_by_plain_autograd(task, guidance):
    """Return on_policy gradients computed with merged weights, one step after the other."""
    batch = first_batch()
    x, targets = task.data.noise[batch.rows], task.data.targets[:, batch.rows]
    conds, unconds = [], []
    velocity = with_and_without_prompt(task.student.velocity)
    model = task.student.model
    for i in range(4):
        layers = task.layers[SLOW if i < SLOW_STEPS else FAST]
        originals = {name: model.get_submodule(name).weight.data for name in layers.slots}
        for name in layers.slots:  # merged weights, as plain tensors with a gradient
            down, up = layers.pair(name)
            module = model.get_submodule(name)
            del module._parameters["weight"]
            module.weight = originals[name] + up @ down
        width, sigma = SIGMAS[i + 1] - SIGMAS[i], torch.full((3,), SIGMA_SCALE * SIGMAS[i], dtype=torch.float64)
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            cond, uncond = velocity(x.clone(), sigma, batch.prompt_rows, guidance != 1)
            after = task.learnable.step(i, width, x, [*conds, cond], [*unconds, uncond])
            ((after - targets[i]).square().mean(1).mean() / width**2 / 4).backward()
        for name in layers.slots:
            module = model.get_submodule(name)
            del module.weight
            module.weight = nn.Parameter(originals[name], requires_grad=False)
        conds.append(cond.detach())
        unconds.append(None if uncond is None else uncond.detach())
        x = after.detach()
    return gradients_of(task)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_on_policy_gradients_are_those_of_each_step_by_itself(guidance):
    """A step's gradient is plain autograd's, with the states before that step held constant."""
    plain, checkpointed = (make_task(False, checkpointing, guidance) for checkpointing in (False, True))
    gradients = []
    for task in (plain, checkpointed):
        with frozen(task.student.model):
            task.backward(first_batch(), torch.Generator(), lambda mean: mean)
        gradients.append(gradients_of(task))
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-12)
    expected = gradients_by_plain_autograd(make_task(False, guidance=guidance), guidance)
    assert torch.allclose(gradients[0], expected, rtol=1e-8, atol=1e-10)
