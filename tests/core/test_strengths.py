"""Strengths by noise level, and the phases that several of them make."""

from glance_core.schedule.strengths import RunPhases, StrengthCurve, above, below, run_phases


def at(curve, *sigmas):
    return [curve.at(sigma) for sigma in sigmas]


def test_a_pair_answers_above_and_below_its_threshold():
    assert at(above(0.5, 0.7), 0.6, 0.5, 0.1) == [0.7, 0, 0]
    assert at(below(0.5, 0.7), 0.6, 0.5, 0.1) == [0, 0.7, 0.7]


def test_phases_of_several_adapters_are_all_their_ranges():
    """As two pairs with other boundaries on one model make them, and a strength that stays."""
    found = run_phases([above(0.5, 1.0), below(0.5, 0.9), above(0.8, 2.0), StrengthCurve((), (0.4,))])
    assert found.thresholds == (0.8, 0.5)
    assert found.strengths == ((1.0, 0, 2.0, 0.4), (1.0, 0, 0, 0.4), (0, 0.9, 0, 0.4))


def test_neighbours_with_the_same_strengths_are_one_phase():
    assert run_phases([StrengthCurve((0.7, 0.3), (1, 1, 1))]) == RunPhases((), ((1,),))
    assert run_phases([above(0.5, 0.3), below(0.5, 0.3)]).strengths == ((0.3, 0), (0, 0.3))
    assert run_phases([above(0.5, 0.0), below(0.5, 0.0)]) == RunPhases((), ((0, 0),))
    assert not run_phases([below(0.5, 0.0)]).has_effect
    assert run_phases([above(0.5, 0.0), below(0.5, -1)]).has_effect
