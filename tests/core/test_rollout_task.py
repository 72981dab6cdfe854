"""Training both adapters and the solver on the student's own sampling runs: what it learns, and that it resumes."""

from dataclasses import replace

import pytest
import torch
from rollout_net import GUIDANCE, SETTINGS, SIGMAS, SLOW_STEPS, make_student, rollout_data

from glance_core.errors import TrainingError
from glance_core.lora.slots import low_rank_updates
from glance_core.sampling.solver import guided_solver, solve
from glance_core.sampling.velocity import with_and_without_prompt
from glance_core.schedule.phase_schedule import PhaseSchedule, phase_index
from glance_core.schedule.split import FAST, SLOW
from glance_core.switch import PhaseSwitch, PhaseWeights
from glance_core.training.autograd.inplace import InplaceTracker
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.rollout_task import RolloutTask
from glance_core.training.run.run_state import Checkpoint
from glance_core.training.trainer import train_pair

BOTH_OBJECTIVES = pytest.mark.parametrize("end_to_end", [True, False], ids=["end_to_end", "on_policy"])


def sample(student, data, solver, factors):
    """Return where the student ends from the data's noise, with these factors switched by phase."""
    schedule = PhaseSchedule(SIGMAS, SLOW_STEPS)
    both, rows = with_and_without_prompt(student.velocity), torch.arange(6)
    phases = [low_rank_updates(factors.get(phase, {}), student.slots) for phase in (SLOW, FAST)]
    switch = PhaseSwitch(PhaseWeights(phases, torch.float32))

    def velocities(x, sigma, guided):
        return both(x.clone(), x.new_full((6,), sigma), rows, guided)

    def select(step, x, sigma):
        switch.select(phase_index(sigma, (schedule.threshold,)))

    switch.install(student.model, torch.device("cpu"))
    try:
        with torch.no_grad():
            return solve(solver, SIGMAS, velocities, data.noise, select)
    finally:
        switch.remove()


@BOTH_OBJECTIVES
def test_training_brings_whole_runs_closer_to_the_teacher(end_to_end):
    student, data = make_student(), rollout_data(end_to_end)
    outcome = train_pair(student, data, SLOW_STEPS, replace(SETTINGS, steps=60))

    def error(solver, factors):
        return float((sample(student, data, solver, factors) - data.targets[-1]).square().mean())

    before, after = error(data.solver, {}), error(outcome.solver, outcome.factors)
    assert after < 0.2 * before
    # The last training step's three rows, at the last state: the outcome is what was trained.
    last = torch.tensor(outcome.history.losses[-12:]).view(4, 3)[-1].mean()
    assert after == pytest.approx(float(last), rel=0.6)
    assert outcome.solver != data.solver
    assert len(outcome.history.steps) == 60 * 3 * 4


def test_the_solver_stays_as_it_is_if_only_adapters_learn():
    outcome = train_pair(make_student(), rollout_data(True, learn="adapters"), SLOW_STEPS, SETTINGS)
    assert outcome.solver == guided_solver(SIGMAS, GUIDANCE, 0.1)
    assert any(factor.up.any() for factor in outcome.factors[SLOW].values())


@BOTH_OBJECTIVES
def test_the_adapters_stay_zero_if_only_the_solver_learns(end_to_end):
    data = rollout_data(end_to_end, learn="solver")
    outcome = train_pair(make_student(), data, SLOW_STEPS, replace(SETTINGS, steps=30))
    assert not any(factor.up.any() for factors in outcome.factors.values() for factor in factors.values())
    losses = torch.tensor(outcome.history.losses).view(30, 4, 3)[:, -1].mean(1)
    assert losses[-5:].mean() < 0.9 * losses[:5].mean() and outcome.solver != data.solver
    with pytest.raises(TrainingError, match="learn is 'nothing'; choose one of both, adapters, solver"):
        rollout_data(end_to_end, learn="nothing")


def test_sigmas_that_the_model_sees_stay_in_their_phase():
    task = RolloutTask(make_student(), rollout_data(True), SLOW_STEPS, LoraSettings(2, 2.0), (1, 2), InplaceTracker())
    schedule = PhaseSchedule(SIGMAS, SLOW_STEPS)
    for scale in (-10.0, 10.0):
        task.learnable.sigma_scale.data.fill_(scale)
        seen = [sigma * share for sigma, share in zip(SIGMAS, task.solver().sigma_scale, strict=False)]
        assert tuple(map(schedule.phase, seen)) == schedule.phases()
        assert max(seen) <= 1


class Stop(Exception):
    pass


@BOTH_OBJECTIVES
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, batch=2, accumulation=2, caption_dropout=0.3, optimizer="adamw")],
    ids=["", "accumulated"],
)
def test_a_stopped_run_ends_with_the_bits_of_an_unbroken_one(end_to_end, settings, tmp_path):
    unbroken = train_pair(make_student(), rollout_data(end_to_end), SLOW_STEPS, settings)
    for last in range(1, SETTINGS.steps + 1):
        checkpoint = Checkpoint(tmp_path / f"{last}.safetensors")

        def stop(step, last=last):
            if step.step == last:
                raise Stop

        with pytest.raises(Stop):
            train_pair(make_student(), rollout_data(end_to_end), SLOW_STEPS, settings, stop, checkpoint)
        reports = []
        resumed = train_pair(make_student(), rollout_data(end_to_end), SLOW_STEPS, settings, reports.append, checkpoint)
        assert len(reports) == SETTINGS.steps - last
        assert resumed.solver == unbroken.solver and resumed.history == unbroken.history
        for phase, factors in unbroken.factors.items():
            assert all(torch.equal(factor.up, resumed.factors[phase][name].up) for name, factor in factors.items())
    first = Checkpoint(tmp_path / "1.safetensors")
    with pytest.raises(TrainingError, match="holds a run with rollout"):
        train_pair(make_student(), rollout_data(not end_to_end), SLOW_STEPS, settings, None, first)


def test_end_to_end_with_checkpointing_is_rejected():
    with pytest.raises(
        TrainingError,
        match="keeps the activations of all steps; switch gradient_checkpointing off, or choose on_policy",
    ):
        train_pair(make_student(checkpointing=True), rollout_data(True), SLOW_STEPS, SETTINGS)


def test_a_rollout_starts_with_a_solver_fitted_to_the_base():
    """It ends closer to the teacher than the given solver. A resumed run is compared by the given one."""
    student, data = make_student(), rollout_data(True)
    fitted = data.with_fitted_solver(student.velocity, 4)

    def error(solver):
        return float((sample(student, data, solver, {}) - data.targets[-1]).square().mean())

    assert error(fitted.solver) < 0.5 * error(data.solver)
    assert fitted.solver != data.solver and fitted.unfitted == data.solver and fitted.describe() == data.describe()
    assert rollout_data(True, learn="adapters").with_fitted_solver(student.velocity, 4).solver == data.solver
    outcome = train_pair(student, fitted, SLOW_STEPS, replace(SETTINGS, steps=1, learning_rate=1e-9))
    assert list(outcome.solver.coefficients()) == pytest.approx(list(fitted.solver.coefficients()), abs=1e-6)
