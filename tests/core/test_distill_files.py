"""The files of a pair say how it was distilled, and hold what the ablation kept or everything that was trained."""

import itertools
from dataclasses import replace

import pytest
import torch
from distill_net import (
    BASE_CFG,
    CHECKS,
    SETTINGS,
    SHIFT,
    SIGMAS,
    STUDENT_CFG,
    LinearModel,
    make_plan,
    random_outcome,
)

from glance_core.evaluation.comparison import PairedComparison
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.pair_writer import ALL_PARTS
from glance_core.lora.reader import read_adapter
from glance_core.sampling.cheap_teacher import CheapTeacher
from glance_core.sampling.solver import Solver, guided_solver
from glance_core.schedule.sigmas import FIXED_SHIFT, HOST, shifted_sigmas
from glance_core.schedule.split import FAST, SLOW, Split
from glance_core.training.ablation import SOLVER, select_components
from glance_core.training.distill import Distilled, PairFiles, write_all, write_kept
from glance_core.training.objectives import Objective

START, LEARNED = guided_solver(SIGMAS, STUDENT_CFG), guided_solver(SIGMAS, 2.5, 0.2)
COMPARISON = PairedComparison(torch.tensor([30.12345, 31.0]), torch.tensor([25.0, 26.5]), "2 pictures")
EVERYTHING = (SLOW, FAST, SOLVER)


def files_in(folder, **about):
    metadata = PairMetadata(base="flux", shift=SHIFT, resolution="1024x1024")
    return PairFiles(folder, "mine", replace(metadata, **about), {"model": "linear", "data": "five prompts"})


def distilled(kept, solver=LEARNED):
    """Return a distillation in which exactly these components help."""
    trained, start = random_outcome(solver=solver), START if solver else None

    def active(outcome):
        phases = [phase for phase in (SLOW, FAST) if outcome.factors[phase]["layer"].up.any()]
        return [*phases, SOLVER] if solver and outcome.solver == LEARNED else phases

    def psnr(outcome):
        return torch.full((CHECKS,), 20.0) + sum(1.0 if each in kept else -2.0 for each in active(outcome))

    ablation = select_components(trained, start, psnr, LinearModel.held_out_text)
    assert ablation.kept == kept
    return Distilled(trained, ablation, CheapTeacher())


def rollout_plan(**changes):
    return make_plan(Objective.ON_POLICY, start=START, fold_guidance=True, **changes)


def assert_file_holds(adapter, factors):
    (layer,), (factor,) = adapter.factors.values(), factors.values()
    assert torch.allclose(layer.scale * layer.up @ layer.down, factor.scale * factor.up @ factor.down, atol=1e-6)


@pytest.mark.parametrize("kept", [(SLOW, FAST, SOLVER), (SLOW, SOLVER), (FAST,), ()], ids=str)
def test_the_kept_pair_states_how_it_was_trained(kept, tmp_path):
    plan, found = rollout_plan(), distilled(kept)
    slow, fast = write_kept(plan, found, files_in(tmp_path), COMPARISON)
    assert [path.name for path in (slow, fast)] == ["mine_slow.safetensors", "mine_fast.safetensors"]
    for phase, path in ((SLOW, slow), (FAST, fast)):
        adapter = read_adapter(path)
        stated = adapter.pair
        assert (stated.phase, stated.sigma_rule, stated.shift) == (phase, FIXED_SHIFT, SHIFT)
        assert (stated.steps, stated.teacher_steps) == ("1,5|11,16", 20)
        assert (stated.objective, stated.fold_guidance, stated.seed) == ("on_policy", True, SETTINGS.seed)
        assert stated.sigmas == pytest.approx(SIGMAS[:2] if phase == SLOW else SIGMAS[2:4])
        assert (stated.psnr_pair, stated.psnr_base) == (30.5617, 25.75)
        assert stated.kept == (", ".join(kept) or "nothing") and stated.comparison == str(found.ablation)
        assert Solver.loads(stated.solver) == (LEARNED if SOLVER in kept else START)
        assert (stated.base, stated.resolution) == ("flux", "1024x1024")
        assert_file_holds(adapter, found.kept.factors[phase])
        assert (phase in kept) == bool(next(iter(adapter.factors.values())).up.any())
    assert read_adapter(slow).pair.pair == read_adapter(fast).pair.pair is not None


@pytest.mark.parametrize("kept, guidance", [((SLOW, FAST), STUDENT_CFG), ((), BASE_CFG)], ids=str)
def test_a_pair_without_a_solver_states_its_guidance(kept, guidance, tmp_path):
    slow, _ = write_kept(make_plan(), distilled(kept, solver=None), files_in(tmp_path), None)
    stated = read_adapter(slow).pair
    assert (stated.guidance, stated.solver, stated.fold_guidance) == (guidance, None, False)
    assert stated.objective == "teacher_forced" and stated.psnr_pair is None and stated.psnr_base is None


def test_an_untested_pair_holds_everything_and_states_no_ablation(tmp_path):
    found = Distilled(random_outcome(), None, CheapTeacher())
    slow, fast = write_kept(make_plan(checks=0), found, files_in(tmp_path), None)
    for phase, path in ((SLOW, slow), (FAST, fast)):
        adapter = read_adapter(path)
        assert (adapter.pair.kept, adapter.pair.comparison) == (None, None)
        assert_file_holds(adapter, found.outcome.factors[phase])
    assert write_all(make_plan(checks=0), found, files_in(tmp_path)) == ()


def test_the_same_pair_is_written_once_only_if_asked_for(tmp_path):
    plan, found, files = make_plan(), distilled((SLOW, FAST), solver=None), files_in(tmp_path)
    first = write_kept(plan, found, files, None, once=True)
    assert write_kept(plan, found, files, None, once=True) == first and len(list(tmp_path.iterdir())) == 2
    again = write_kept(plan, found, files, None)
    assert [path.name for path in again] == ["mine-2_slow.safetensors", "mine-2_fast.safetensors"]


@pytest.mark.parametrize("changes", [
    {"teacher_cfg": 2.5}, {"student_cfg": 2.5}, {"fold_guidance": True}, {"runs": 15}, {"learn": "adapters"},
    {"settings": replace(SETTINGS, learning_rate=0.1)}, {"settings": replace(SETTINGS, seed=4)}, {"rule": HOST},
    {"sigmas": shifted_sigmas(20, 3.0)}, {"split": Split((0, 5), (10, 15), 20)},
], ids=lambda changes: "-".join(changes))  # fmt: skip
def test_pairs_of_different_plans_do_not_count_as_the_same(changes, tmp_path):
    found, files = distilled((SLOW, FAST), solver=None), files_in(tmp_path)
    first = write_kept(make_plan(), found, files, None, once=True)
    other = write_kept(make_plan(**changes), found, files, None, once=True)
    assert set(first).isdisjoint(other)
    saving_more_often = make_plan(settings=replace(SETTINGS, save_every=2))
    assert write_kept(saving_more_often, found, files, None, once=True) == first


def test_pairs_of_different_models_or_data_do_not_count_as_the_same(tmp_path):
    found, files = distilled((SLOW, FAST), solver=None), files_in(tmp_path)
    first = write_kept(make_plan(), found, files, None, once=True)
    for changed in ({"model": "other"}, {"data": "six prompts"}):
        other = replace(files, identity={**files.identity, **changed})
        assert set(first).isdisjoint(write_kept(make_plan(), found, other, None, once=True))


def test_everything_trained_is_written_beside_a_pair_that_lacks_some_of_it(tmp_path):
    plan, found, files = rollout_plan(), distilled((SLOW, SOLVER)), files_in(tmp_path)
    paths = write_all(plan, found, files)
    assert [path.name for path in paths] == [f"mine{ALL_PARTS}_{phase}.safetensors" for phase in (SLOW, FAST)]
    for phase, path in zip((SLOW, FAST), paths, strict=True):
        adapter = read_adapter(path)
        stated = adapter.pair
        assert (stated.kept, stated.comparison) == ("slow, fast, solver", str(found.ablation.all_kept))
        assert (stated.psnr_pair, stated.psnr_base) == (20.0, 20.0)  # 1 - 2 + 1 dB above the base
        assert Solver.loads(stated.solver) == LEARNED
        assert_file_holds(adapter, found.outcome.factors[phase])
    assert write_all(plan, found, files) == paths and len(list(tmp_path.iterdir())) == 2
    kept = write_kept(plan, found, files, found.ablation.comparison)
    pairs = [read_adapter(path).pair.pair for path in (paths[0], kept[0])]
    assert all(one != other for one, other in itertools.combinations(pairs, 2))


def test_no_second_pair_is_written_if_everything_was_kept(tmp_path):
    assert write_all(rollout_plan(), distilled(EVERYTHING), files_in(tmp_path)) == ()
    assert list(tmp_path.iterdir()) == []
