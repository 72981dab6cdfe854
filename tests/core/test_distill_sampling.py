"""sample_pair equals a sampling run by hand with merged weights, and leaves the model as it was."""

import pytest
import torch
from distill_net import (
    BASE_CFG,
    CHECKS,
    RUNS,
    STUDENT_CFG,
    LinearModel,
    make_plan,
    random_outcome,
    sample_by_hand,
    solve_by_hand,
)

from glance_core.sampling.solver import Solver
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.ablation import with_components
from glance_core.training.distill import StartNoise, sample_pair
from glance_core.training.history import History
from glance_core.training.trainer import Outcome

# No coefficient is special, and every sigma stays in its own phase.
SOLVER = Solver(
    sigma_scale=(0.99, 1.02, 0.97, 1.1),
    state_coef=(1.01, 0.98, 1.03, 0.95),
    cond_coef=((1.9,), (0.3, 1.8), (-0.2, 0.4, 1.7), (0.1, -0.3, 0.2, 1.6)),
    uncond_coef=((-0.9,), (0.1, -0.8), (0.2, -0.1, -0.7), (-0.1, 0.2, 0.1, -0.6)),
)
HELD_OUT = pytest.mark.parametrize("held_out", [False, True], ids=["training prompts", "held-out prompts"])


def sample(model, outcome, held_out=False, tick=lambda count: None):
    return sample_pair(make_plan(), model, outcome, StartNoise(model.noise(held_out), held_out), tick)


@HELD_OUT
@pytest.mark.parametrize("phases", [(SLOW, FAST), (SLOW,), (FAST,)], ids=str)
def test_without_a_solver_a_pair_takes_euler_steps_under_its_guidance(phases, held_out):
    model, outcome = LinearModel(), random_outcome(phases)
    expected = sample_by_hand(model, outcome, STUDENT_CFG, held_out)
    assert torch.allclose(sample(model, outcome, held_out), expected, atol=1e-5)
    base = sample_by_hand(model, Outcome({}, History()), STUDENT_CFG, held_out)
    assert (expected - base).abs().max() > 0.05


@HELD_OUT
@pytest.mark.parametrize("phases", [(SLOW, FAST), (SLOW,), ()], ids=str)
def test_a_solver_has_its_own_guidance_and_coefficients(phases, held_out):
    model, outcome = LinearModel(), random_outcome(phases, SOLVER)
    assert torch.allclose(sample(model, outcome, held_out), solve_by_hand(model, outcome, held_out), atol=1e-5)


def test_each_phase_answers_only_its_own_steps():
    model = LinearModel()
    sample(model, random_outcome())
    slow, fast = (sample(model, random_outcome((phase,))) for phase in (SLOW, FAST))
    assert (slow - fast).abs().max() > 0.05
    swapped = Outcome({SLOW: random_outcome().factors[FAST], FAST: random_outcome().factors[SLOW]}, History())
    assert (sample(model, swapped) - sample(model, random_outcome())).abs().max() > 0.05


@pytest.mark.parametrize(
    "outcome", [Outcome({}, History()), with_components(random_outcome(), (), None)], ids=["", "0"]
)
def test_a_pair_without_effect_is_sampled_like_the_base_at_its_best_guidance(outcome):
    model = LinearModel()
    assert torch.allclose(sample(model, outcome), sample_by_hand(model, outcome, BASE_CFG), atol=1e-5)
    assert (sample(model, outcome) - sample_by_hand(model, outcome, STUDENT_CFG)).abs().max() > 0.05


def test_a_run_takes_a_few_pictures_at_a_time_and_counts_each_step():
    model, ticks = LinearModel(), []
    sample(model, random_outcome(), held_out=True, tick=ticks.append)
    assert ticks == [4] * 4 + [2] * 4 and sum(ticks) == CHECKS * 4
    assert [len(call.x) for call in model.calls] == ticks
    fewer = sample_pair(make_plan(), model, random_outcome(), StartNoise(model.noise()[:3]), lambda count: None)
    assert torch.allclose(fewer, sample(model, random_outcome())[:3], atol=1e-6) and len(model.noise()) == RUNS


def test_an_interrupt_leaves_the_model_as_it_was():
    model = LinearModel()
    before, attributes = sample_by_hand(model, Outcome({}, History()), BASE_CFG), set(vars(model.module.layer))
    counts = []

    def interrupt(count):
        counts.append(count)
        if len(counts) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, random_outcome(), tick=interrupt)
    assert set(vars(model.module.layer)) == attributes
    assert torch.equal(sample_by_hand(model, Outcome({}, History()), BASE_CFG), before)
