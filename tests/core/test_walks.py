"""Both adapters and the solver in training on the student's own walks: gradients, resuming, and that it learns what few steps miss."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import Linear

from glance_core.draws import Draws
from glance_core.errors import TrainingError
from glance_core.lora_layers import Lora, frozen, low_rank_updates, whole_slots
from glance_core.objectives import NO_PROMPT, both, rollout
from glance_core.phase_switch import PhaseSwitch, PhaseWeights, phase_index
from glance_core.recompute import blocks_of
from glance_core.saved import Saves
from glance_core.schedule import FAST, SLOW, PhaseSchedule, shifted_ladder
from glance_core.solver import guided, solve
from glance_core.student import Student
from glance_core.trainees import Walks, WalkTrainee
from glance_core.training import TrainingSettings, train_pair

LADDER = shifted_ladder(20, 2.0)
POINTS, SLOW_STEPS, GUIDANCE = (0, 4, 10, 15), 2, 2.0
SIGMAS = (*(LADDER[point] for point in POINTS), 0.0)
SETTINGS = TrainingSettings(Lora(4, 4.0), steps=6, batch=3, learning_rate=1e-2, seed=3)


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


def student(checkpointing=False, dtype=torch.float32):
    model = Net().to(dtype).requires_grad_(False)
    return Student(model, model, whole_slots(model, r"two|blocks\..+"), blocks=blocks_of(model) if checkpointing else None)


def walks(end_to_end, guidance=GUIDANCE, dtype=torch.float32, **more):
    model = Net().to(dtype)
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)

    def teacher(x, sigma, rows):
        with torch.no_grad():
            free = model(x, sigma, torch.full_like(rows, NO_PROMPT))
            return free + GUIDANCE * (model(x, sigma, rows) - free)

    states = rollout(teacher, noise, LADDER, POINTS).states
    return Walks(noise, states[1:], SIGMAS, guided(SIGMAS, guidance, 0.1), end_to_end, **more)


def trainee(end_to_end, checkpointing=False, guidance=GUIDANCE):
    made = WalkTrainee(
        student(checkpointing, torch.float64), walks(end_to_end, guidance, torch.float64), SLOW_STEPS, Lora(2, 2.0), (1, 2), Saves()
    )
    generator = torch.Generator().manual_seed(7)
    for layers in made.layers.values():
        for layer in layers.layers.values():
            for factor in (layer.lora_A, layer.lora_B):
                factor.double()
        for parameter in layers.parameters():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    made.numbers.double()
    made.numbers.told.data *= 0.97  # inside its bounds, where it has a slope on both sides
    return made


def loss_of(made, draws):
    """The number whose gradient `backward` adds up."""
    found = []

    def scaled(mean):
        found.append(float(mean.detach()))
        return mean

    made.backward(draws, scaled)
    return sum(found)


def deck():
    return Draws(range(4), 6, 3, 0.0, 5)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_end_to_end_gradients_are_those_of_central_differences(guidance):
    made = trainee(True, guidance=guidance)
    parameters = [parameter for group in made.groups(1.0) for parameter in group["params"]]
    with frozen(made.student.model):
        for _ in range(2):  # the second step knows what the first has learned of the blocks
            for parameter in parameters:
                parameter.grad = None
            loss_of(made, deck())
        given = [parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter) for parameter in parameters]
        assert sum(float(gradient.abs().sum()) > 0 for gradient in given) >= len(given) - (guidance == 1)
        for parameter, gradient in zip(parameters, given, strict=True):
            for at in range(0, parameter.numel(), max(1, parameter.numel() // 3)):
                before = parameter.data.view(-1)[at].item()
                ends = []
                for move in (1e-5, -1e-5):
                    parameter.data.view(-1)[at] = before + move
                    ends.append(loss_of(made, deck()))
                parameter.data.view(-1)[at] = before
                assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient.view(-1)[at]), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_aimed_gradients_are_those_of_each_step_alone(guidance):
    """With the states before a step held fast, the gradient of its error is that of a plain autograd run of this step."""
    plain, again = trainee(False, guidance=guidance), trainee(False, checkpointing=True, guidance=guidance)
    gradients = []
    for made in (plain, again):
        with frozen(made.student.model):
            made.backward(deck(), lambda mean: mean)
        gradients.append(torch.cat([p.grad.flatten() for group in made.groups(1.0) for p in group["params"] if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-12)

    made = trainee(False, guidance=guidance)
    _, rows, shown = deck().next()
    x, targets = made.walks.noise[rows], made.walks.targets[:, rows]
    cond, free = [], []
    velocity = both(made.student.velocity)
    model = made.student.model
    for i in range(4):
        layers = made.layers[SLOW if i < SLOW_STEPS else FAST]
        originals = {name: model.get_submodule(name).weight.data for name in layers.slots}
        for name in layers.slots:  # the weights merged, as plain tensors with a gradient
            down, up = layers.pair(name)
            module = model.get_submodule(name)
            del module._parameters["weight"]
            module.weight = originals[name] + up @ down
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            one, other = velocity(x.clone(), torch.full((3,), 0.97 * SIGMAS[i], dtype=torch.float64), shown, guidance != 1)
            after = made.numbers.step(i, SIGMAS[i + 1] - SIGMAS[i], x, [*cond, one], [*free, other])
            ((after - targets[i]).square().mean(1).mean() / (SIGMAS[i + 1] - SIGMAS[i]) ** 2 / 4).backward()
        for name in layers.slots:
            module = model.get_submodule(name)
            del module.weight
            module.weight = nn.Parameter(originals[name], requires_grad=False)
        cond.append(one.detach())
        free.append(None if other is None else other.detach())
        x = after.detach()
    expected = torch.cat([p.grad.flatten() for group in made.groups(1.0) for p in group["params"] if p.grad is not None])
    assert torch.allclose(gradients[0], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("end_to_end", [True, False], ids=["end to end", "aimed"])
def test_training_brings_whole_walks_nearer_to_the_teacher_and_what_is_given_back_is_what_was_trained(end_to_end):
    learner, data = student(), walks(end_to_end)
    done = train_pair(learner, data, SLOW_STEPS, replace(SETTINGS, steps=60))
    walked = PhaseSchedule(SIGMAS, SLOW_STEPS)
    velocity = both(learner.velocity)
    rows = torch.arange(6)

    def end(solver, factors):
        phases = [low_rank_updates(factors.get(phase, {}), learner.slots) for phase in (SLOW, FAST)]
        switch = PhaseSwitch(PhaseWeights(phases, torch.float32))
        switch.install(learner.model, torch.device("cpu"))
        try:
            with torch.no_grad():
                return solve(
                    solver, SIGMAS, lambda x, sigma, guided: velocity(x, x.new_full((6,), sigma), rows, guided), data.noise,
                    lambda step, x, sigma: switch.select(phase_index(sigma, (walked.threshold,))),
                )  # fmt: skip
        finally:
            switch.remove()

    before = float((end(data.solver, {}) - data.targets[-1]).square().mean())
    after = float((end(done.solver, done.factors) - data.targets[-1]).square().mean())
    assert after < 0.2 * before
    last = torch.tensor(done.history.losses[-12:]).view(4, 3)[-1].mean()  # of the last step's three rows, at the last state
    assert after == pytest.approx(float(last), rel=0.6)
    assert done.solver != data.solver
    assert len(done.history.points) == 60 * 3 * 4


def test_the_solver_stays_as_it_is_where_it_is_not_to_be_learned():
    done = train_pair(student(), walks(True, learn="adapters"), SLOW_STEPS, SETTINGS)
    assert done.solver == guided(SIGMAS, GUIDANCE, 0.1)
    assert any(factor.up.any() for factor in done.factors[SLOW].values())


@pytest.mark.parametrize("end_to_end", [True, False], ids=["end to end", "aimed"])
def test_the_adapters_stay_without_effect_where_they_are_not_to_be_learned(end_to_end):
    data = walks(end_to_end, learn="solver")
    done = train_pair(student(), data, SLOW_STEPS, replace(SETTINGS, steps=30))
    assert not any(factor.up.any() for factors in done.factors.values() for factor in factors.values())
    losses = torch.tensor(done.history.losses).view(30, 4, 3)[:, -1].mean(1)
    assert losses[-5:].mean() < 0.9 * losses[:5].mean() and done.solver != data.solver
    with pytest.raises(TrainingError, match="learn is 'nothing'; choose one of both, adapters, solver"):
        walks(end_to_end, learn="nothing")


def test_what_the_model_is_told_stays_on_its_side_of_the_boundary():
    made = WalkTrainee(student(), walks(True), SLOW_STEPS, Lora(2, 2.0), (1, 2), Saves())
    walked = PhaseSchedule(SIGMAS, SLOW_STEPS)
    for pushed in (-10.0, 10.0):
        made.numbers.told.data.fill_(pushed)
        told = [sigma * share for sigma, share in zip(SIGMAS, made.solver().told, strict=False)]
        assert tuple(map(walked.phase, told)) == walked.phases()
        assert max(told) <= 1


@pytest.mark.parametrize("end_to_end", [True, False], ids=["end to end", "aimed"])
@pytest.mark.parametrize(
    "settings", [SETTINGS, replace(SETTINGS, batch=2, accumulation=2, caption_dropout=0.3, optimizer="adamw")], ids=["", "accumulated"]
)
def test_a_stopped_run_ends_with_the_bits_of_an_unbroken_one(end_to_end, settings, tmp_path):
    class Stop(Exception):
        pass

    whole = train_pair(student(), walks(end_to_end), SLOW_STEPS, settings)
    for last in range(1, SETTINGS.steps + 1):
        file = tmp_path / f"{last}.safetensors"

        def stop(step, last=last):
            if step.step == last:
                raise Stop

        with pytest.raises(Stop):
            train_pair(student(), walks(end_to_end), SLOW_STEPS, settings, stop, file)
        told = []
        again = train_pair(student(), walks(end_to_end), SLOW_STEPS, settings, told.append, file)
        assert len(told) == SETTINGS.steps - last
        assert again.solver == whole.solver and again.history == whole.history
        for phase, factors in whole.factors.items():
            assert all(torch.equal(factor.up, again.factors[phase][name].up) for name, factor in factors.items())
    with pytest.raises(TrainingError, match="holds a run with walks"):
        train_pair(student(), walks(not end_to_end), SLOW_STEPS, settings, None, tmp_path / "1.safetensors")


def test_end_to_end_under_checkpointing_is_refused():
    with pytest.raises(TrainingError, match="keeps the activations of all steps; switch gradient_checkpointing off, or train aimed"):
        train_pair(student(checkpointing=True), walks(True), SLOW_STEPS, SETTINGS)


def test_walks_begin_with_a_solver_fitted_on_the_base():
    """It leads nearer to the teacher than the one that was given; a run that is taken up again is told by the given one."""
    learner, data = student(), walks(True)
    begun = data.begun(learner.velocity, 4)
    velocity, rows = both(learner.velocity), torch.arange(6)

    def error(solver):
        with torch.no_grad():
            end = solve(solver, SIGMAS, lambda x, sigma, guided: velocity(x.clone(), x.new_full((6,), sigma), rows, guided), data.noise)
        return float((end - data.targets[-1]).square().mean())

    assert error(begun.solver) < 0.5 * error(data.solver)
    assert begun.solver != data.solver and begun.given == data.solver and begun.describe() == data.describe()
    assert walks(True, learn="adapters").begun(learner.velocity, 4).solver == data.solver
    done = train_pair(learner, begun, SLOW_STEPS, replace(SETTINGS, steps=1, learning_rate=1e-9))
    assert list(done.solver.numbers()) == pytest.approx(list(begun.solver.numbers()), abs=1e-6)
