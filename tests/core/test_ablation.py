"""Only trained components that help are kept; paired differences decide, and dropped ones have no effect."""

import itertools

import pytest
import torch

from glance_core.evaluation.comparison import PairedComparison
from glance_core.lora.factors import Factor
from glance_core.sampling.solver import guided_solver
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.ablation import SOLVER, select_components, subsets, trained_components, with_components
from glance_core.training.history import History
from glance_core.training.trainer import Outcome

START, LEARNED = guided_solver((1.0, 0.5, 0.0), 3.0), guided_solver((1.0, 0.5, 0.0), 2.5, 0.2)
BASE = torch.tensor([24.0, 26.0, 28.0, 25.0])


def trained_outcome(solver=LEARNED):
    factor = Factor(torch.ones(1, 2), torch.ones(2, 1), 1.0, 1.0, "layer")
    return Outcome({phase: {"layer": factor} for phase in (SLOW, FAST)}, History(), solver)


def active(outcome):
    """Return the components of an outcome that have an effect."""
    phases = [phase for phase in (SLOW, FAST) if outcome.factors[phase]["layer"].up.any()]
    return (*phases, SOLVER) if outcome.solver == LEARNED else tuple(phases)


def psnr_of(gains, spread=0.0):
    """Return a PSNR that is the sum of what each component adds."""
    noise = torch.tensor([1.0, -1.0, 0.5, -0.5]) * spread
    return lambda outcome: BASE + sum(gains[component] + noise for component in active(outcome))


@pytest.mark.parametrize(
    "helping", [each for n in range(4) for each in itertools.combinations((SLOW, FAST, SOLVER), n)]
)
def test_exactly_the_components_that_help_are_kept(helping):
    gains = {component: 0.5 if component in helping else -0.3 for component in (SLOW, FAST, SOLVER)}
    found = select_components(trained_outcome(), START, psnr_of(gains), "4 prompts")
    assert found.kept == helping
    assert active(found.outcome) == helping
    assert found.outcome.solver == (LEARNED if SOLVER in helping else START)
    assert found.comparison.gain == pytest.approx(0.5 * len(helping))
    assert len(found.tried) == 8


def test_a_gain_within_two_standard_errors_does_not_count():
    """The best of seven subsets beats one standard error by chance."""
    gains = {SLOW: 0.1, FAST: -1.0, SOLVER: -1.0}
    assert select_components(trained_outcome(), START, psnr_of(gains, spread=0.05), "4 prompts").kept == (SLOW,)
    between = select_components(trained_outcome(), START, psnr_of(gains, spread=0.15), "4 prompts")
    slow_alone = PairedComparison(between.tried[(SLOW,)], BASE, "4 prompts")
    assert slow_alone.is_better_by(1) and not slow_alone.is_better_by(2) and between.kept == ()
    found = select_components(trained_outcome(), START, psnr_of(gains, spread=0.5), "4 prompts")
    assert found.kept == ()
    assert torch.equal(found.comparison.pair, found.comparison.base)
    assert str(found).startswith(
        "Training did not improve on the base model, so the saved LoRAs are zero. Everything that was trained changes "
        "PSNR by -1.90 ± "
    )


def test_one_outlier_among_ten_examples_decides_nothing():
    base = torch.full((10,), 30.0)

    def comparison(change):
        return PairedComparison(base + change, base, "10")

    better = torch.linspace(0.5, 1.5, 10)
    flipped, lucky = better.clone(), -better
    flipped[3], lucky[3] = -15.0, 15.0  # another scene altogether
    assert comparison(flipped).gain < 0 and comparison(flipped).is_better_by(1)
    assert not comparison(-better).is_better_by(1)
    assert comparison(lucky).gain > 0 and not comparison(lucky).is_better_by(1)


def test_dropped_components_have_no_effect_and_kept_ones_are_unchanged():
    trained = trained_outcome()
    left = with_components(trained, (FAST,), START)
    assert not left.factors[SLOW]["layer"].up.any() and torch.equal(left.factors[SLOW]["layer"].down, torch.ones(1, 2))
    assert left.factors[FAST]["layer"] is trained.factors[FAST]["layer"]
    assert left.solver == START
    assert active(trained) == (SLOW, FAST, SOLVER)  # the trained outcome itself is not changed


def test_everything_that_was_trained_stays_available():
    trained = trained_outcome()
    found = select_components(trained, START, psnr_of({SLOW: 1.0, FAST: -0.25, SOLVER: -1.5}), "4 prompts")
    assert found.kept == (SLOW,) and active(found.outcome) == (SLOW,)
    assert found.all_kept.outcome is trained and found.all_kept.kept == (SLOW, FAST, SOLVER)
    assert found.all_kept.comparison.gain == pytest.approx(-0.75)
    assert str(found.all_kept).startswith("WORSE THAN THE BASE: ")


def test_without_a_trained_solver_there_are_two_components():
    assert trained_components(trained_outcome(None), None) == (SLOW, FAST)
    assert trained_components(trained_outcome(START), START) == (SLOW, FAST)  # the solver did not change
    assert subsets((SLOW, FAST)) == [(), (FAST,), (SLOW,), (SLOW, FAST)]
    found = select_components(trained_outcome(None), None, psnr_of({SLOW: 1.0, FAST: 1.0}), "4 prompts")
    assert found.kept == (SLOW, FAST) and found.outcome.solver is None


def test_everything_is_kept_if_asked_for():
    gains = dict.fromkeys((SLOW, FAST, SOLVER), -1.0)
    found = select_components(trained_outcome(), START, psnr_of(gains), "4 prompts", keep_all=True)
    assert found.kept == (SLOW, FAST, SOLVER) and len(found.tried) == 2
    assert str(found).startswith("WORSE THAN THE BASE: ") and str(found).endswith("; kept slow, fast, solver")


def test_the_text_says_what_was_dropped_and_why():
    gains = {SLOW: 1.0, FAST: -0.25, SOLVER: 1.0}
    text = str(select_components(trained_outcome(), START, psnr_of(gains), "4 prompts"))
    assert "PSNR to the teacher on 4 prompts: pair 27.75" in text and "+2.00 ± 0.00 dB" in text
    assert text.endswith(
        "; kept slow, solver, not fast: with everything that was trained PSNR changes by -0.25 ± 0.00 dB"
    )
    one = select_components(trained_outcome(), START, lambda outcome: BASE[:1] - len(active(outcome)), "one prompt")
    assert str(one).endswith("Everything that was trained changes PSNR by -3.00 dB on one prompt")
