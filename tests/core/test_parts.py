"""Of what was trained only what helps is kept: chosen by paired differences, and what is dropped has no effect."""

import itertools

import pytest
import torch

from glance_core.draws import History
from glance_core.lora_file import Factor
from glance_core.objectives import SOLVER
from glance_core.parts import only, parts_of, sets_of, what_helps
from glance_core.schedule import FAST, SLOW
from glance_core.solver import guided
from glance_core.training import Outcome
from glance_core.verdict import Verdict

START, LEARNT = guided((1.0, 0.5, 0.0), 3.0), guided((1.0, 0.5, 0.0), 2.5, 0.2)
BASE = torch.tensor([24.0, 26.0, 28.0, 25.0])


def outcome(solver=LEARNT):
    factor = Factor(torch.ones(1, 2), torch.ones(2, 1), 1.0, 1.0, "layer")
    return Outcome({phase: {"layer": factor} for phase in (SLOW, FAST)}, History(), solver)


def parts(of):
    """What of an outcome has an effect."""
    alive = [phase for phase in (SLOW, FAST) if of.factors[phase]["layer"].up.any()]
    return (*alive, SOLVER) if of.solver == LEARNT else tuple(alive)


def near(gains, spread=0.0):
    """PSNR as a sum of what each part adds."""
    noise = torch.tensor([1.0, -1.0, 0.5, -0.5]) * spread
    return lambda of: BASE + sum(gains[part] + noise for part in parts(of))


@pytest.mark.parametrize("helping", [each for n in range(4) for each in itertools.combinations((SLOW, FAST, SOLVER), n)])
def test_exactly_the_parts_that_help_are_kept(helping):
    gains = {part: 0.5 if part in helping else -0.3 for part in (SLOW, FAST, SOLVER)}
    found = what_helps(outcome(), START, near(gains), "4 prompts")
    assert found.kept == helping
    assert parts(found.outcome) == helping
    assert found.outcome.solver == (LEARNT if SOLVER in helping else START)
    assert found.verdict.gain == pytest.approx(0.5 * len(helping))
    assert len(found.tried) == 8


def test_a_gain_within_two_standard_errors_is_none():
    """It is the best of seven: one error is too few."""
    gains = {SLOW: 0.1, FAST: -1.0, SOLVER: -1.0}
    assert what_helps(outcome(), START, near(gains, spread=0.05), "4 prompts").kept == (SLOW,)
    between = what_helps(outcome(), START, near(gains, spread=0.15), "4 prompts")
    one = Verdict(between.tried[(SLOW,)], BASE, "4 prompts")
    assert one.nearer_by(1) and not one.nearer_by(2) and between.kept == ()
    found = what_helps(outcome(), START, near(gains, spread=0.5), "4 prompts")
    assert found.kept == ()
    assert torch.equal(found.verdict.pair, found.verdict.base)
    assert str(found).startswith("NOTHING OF IT HELPED, so the files have no effect: all that was trained comes to -1.90 ± ")


def test_one_example_of_ten_that_turns_out_otherwise_decides_nothing():
    base = torch.full((10,), 30.0)
    better = torch.linspace(0.5, 1.5, 10)
    flipped = better.clone()
    flipped[3] = -15.0  # another scene altogether
    assert Verdict(base + flipped, base, "10").gain < 0 and Verdict(base + flipped, base, "10").nearer_by(1)
    assert not Verdict(base - better, base, "10").nearer_by(1)
    lucky = -better
    lucky[3] = 15.0
    assert Verdict(base + lucky, base, "10").gain > 0 and not Verdict(base + lucky, base, "10").nearer_by(1)


def test_what_is_dropped_has_no_effect_and_the_rest_is_as_it_was():
    trained = outcome()
    left = only(trained, (FAST,), START)
    assert not left.factors[SLOW]["layer"].up.any() and torch.equal(left.factors[SLOW]["layer"].down, torch.ones(1, 2))
    assert left.factors[FAST]["layer"] is trained.factors[FAST]["layer"]
    assert left.solver == START
    assert parts(trained) == (SLOW, FAST, SOLVER)  # the training's own outcome is not written into


def test_all_of_it_is_at_hand_whatever_is_kept():
    trained = outcome()
    found = what_helps(trained, START, near({SLOW: 1.0, FAST: -0.25, SOLVER: -1.5}), "4 prompts")
    assert found.kept == (SLOW,) and parts(found.outcome) == (SLOW,)
    assert found.whole.outcome is trained and found.whole.kept == (SLOW, FAST, SOLVER)
    assert found.whole.verdict.gain == pytest.approx(-0.75) and str(found.whole).startswith("WORSE THAN THE BARE BASE: ")


def test_without_a_solver_of_its_own_there_are_two_parts():
    assert parts_of(outcome(None), None) == (SLOW, FAST)
    assert parts_of(outcome(START), START) == (SLOW, FAST)  # nothing of it was learned
    assert sets_of((SLOW, FAST)) == [(), (FAST,), (SLOW,), (SLOW, FAST)]
    found = what_helps(outcome(None), None, near({SLOW: 1.0, FAST: 1.0}), "4 prompts")
    assert found.kept == (SLOW, FAST) and found.outcome.solver is None


def test_everything_is_kept_where_that_is_asked_for():
    found = what_helps(outcome(), START, near(dict.fromkeys((SLOW, FAST, SOLVER), -1.0)), "4 prompts", everything=True)
    assert found.kept == (SLOW, FAST, SOLVER) and len(found.tried) == 2
    assert str(found).startswith("WORSE THAN THE BARE BASE: ") and str(found).endswith("; kept slow, fast, solver")


def test_a_reader_is_told_what_was_dropped_and_why():
    told = str(what_helps(outcome(), START, near({SLOW: 1.0, FAST: -0.25, SOLVER: 1.0}), "4 prompts"))
    assert "PSNR to the teacher on 4 prompts: pair 27.75" in told and "+2.00 ± 0.00 dB" in told
    assert told.endswith("; kept slow, solver, not fast: all that was trained comes to -0.25 ± 0.00 dB beside it")
    one = what_helps(outcome(), START, lambda of: BASE[:1] - len(parts(of)), "one prompt")
    assert str(one).endswith("all that was trained comes to -3.00 dB on one prompt")
