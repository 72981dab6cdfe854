"""The pipeline that the host and the embedded model share: teacher runs, training, and the ablation."""

from dataclasses import replace

import pytest
import torch
from distill_net import (
    BASE_CFG,
    CHECKS,
    RUNS,
    SETTINGS,
    SIGMAS,
    STUDENT_CFG,
    TEACHER_CFG,
    TEACHER_SIGMAS,
    LinearModel,
    Recorder,
    Stop,
    assert_same_outcome,
    guided,
    make_plan,
    sample_by_hand,
)
from safetensors.torch import load_file

from glance_core.errors import TrainingError
from glance_core.evaluation.metrics import latent_psnr
from glance_core.sampling.cheap_teacher import CheapTeacher
from glance_core.sampling.samplers import euler, multistep
from glance_core.sampling.solver import guided_solver
from glance_core.schedule.split import FAST, SLOW
from glance_core.training.ablation import SOLVER
from glance_core.training.distill import distill, train
from glance_core.training.history import History
from glance_core.training.objectives import Objective
from glance_core.training.run.run_dir import RunDir
from glance_core.training.trainer import Outcome

START = guided_solver(SIGMAS, STUDENT_CFG)
CHEAP = CheapTeacher((0, 3, 6, 9, 12, 15, 18), 44.5)
CHEAP_STEPS = [0, 3, 4, 6, 9, 10, 12, 15, 18]  # with the student's own
WITH_TEACHER = pytest.mark.parametrize(
    "objective", [Objective.TEACHER_FORCED, Objective.ON_POLICY, Objective.END_TO_END], ids=str
)


def plan_of(objective, **changes):
    return make_plan(objective, start=START if objective.is_rollout else None, **changes)


def teacher_by_hand(model, steps, sampler, held_out=False):
    """Return where the teacher ends if it takes these steps with this sampler."""
    noise = model.noise(held_out)
    prompt = model.prompt_of(torch.arange(len(noise)), held_out)

    def velocity(x, sigma):
        return guided(model.module, x, x.new_full((len(x),), sigma), prompt, TEACHER_CFG)

    return sampler(velocity, noise, [*(TEACHER_SIGMAS[step] for step in steps), 0.0])


def steps_visited(calls):
    """Return the teacher steps that these calls were for."""
    sigmas = torch.tensor(TEACHER_SIGMAS)
    return sorted({sigmas.tolist().index(level) for call in calls for level in call.sigma.tolist()})


@WITH_TEACHER
@pytest.mark.parametrize("cheap", [None, CHEAP], ids=["measured", "given"])
def test_a_resumed_run_does_not_run_the_teacher_again(objective, cheap, tmp_path):
    plan, run_dir = plan_of(objective, cheap_teacher=cheap), RunDir(tmp_path, "pair")
    unbroken, teacher = train(plan, LinearModel(), Recorder())
    stopped = LinearModel()
    with pytest.raises(Stop):
        train(plan, stopped, Recorder(stop_at=3), run_dir)
    assert stopped.asked_of_teacher() and run_dir.teacher.exists() and run_dir.run.exists()

    resumed, observer = LinearModel(), Recorder()
    outcome, teacher_again = train(plan, resumed, observer, run_dir)
    assert resumed.asked_of_teacher() == [] and any(call.training for call in resumed.calls)
    assert observer.stages == {"training": [plan.training_work, plan.training_work - 3]}
    assert_same_outcome(outcome, unbroken)
    assert teacher_again == teacher and teacher.visited_steps is not None


def test_teacher_runs_of_another_plan_are_not_reused(tmp_path):
    plan, run_dir = make_plan(), RunDir(tmp_path, "pair")
    with pytest.raises(Stop):
        train(plan, LinearModel(), Recorder(stop_at=3), run_dir)
    other = replace(plan, settings=replace(SETTINGS, seed=4))
    with pytest.raises(
        TrainingError,
        match=r"^pair.teacher.safetensors holds teacher runs with seed 3, but this run has 4; set it back to resume",
    ):
        train(other, LinearModel(), Recorder(), run_dir)
    run_dir.run.unlink()  # no unfinished run needs the old ones
    model = LinearModel()
    train(other, model, Recorder(), run_dir)
    assert model.asked_of_teacher()


def test_teacher_runs_of_another_cheap_teacher_are_not_reused(tmp_path):
    run_dir = RunDir(tmp_path, "pair")
    with pytest.raises(Stop):
        train(make_plan(cheap_teacher=CHEAP), LinearModel(), Recorder(stop_at=3), run_dir)
    with pytest.raises(TrainingError, match="holds teacher runs with visited_steps "):
        train(make_plan(cheap_teacher=CheapTeacher((0, 10, 15))), LinearModel(), Recorder(), run_dir)


def test_teacher_runs_of_another_model_are_not_reused(tmp_path, monkeypatch):
    run_dir, model = RunDir(tmp_path, "pair"), LinearModel()
    with pytest.raises(Stop):
        train(make_plan(), LinearModel(), Recorder(stop_at=3), run_dir)
    monkeypatch.setattr(model, "identity", lambda: {"model": "other", "data": "five prompts"})
    with pytest.raises(TrainingError, match=r"holds teacher runs with model linear, but this run has other"):
        train(make_plan(), model, Recorder(), run_dir)


@pytest.mark.parametrize("key, changes", [
    ("student_cfg", {"student_cfg": 2.5}), ("fold_guidance", {"fold_guidance": True}),
    ("objective", {"objective": Objective.END_TO_END}), ("rollout", {"start": guided_solver(SIGMAS, 2.5)}),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_an_unfinished_run_is_not_resumed_by_another_plan(key, changes, tmp_path):
    run_dir, model = RunDir(tmp_path, "pair"), LinearModel()
    with pytest.raises(Stop):
        train(plan_of(Objective.ON_POLICY), LinearModel(), Recorder(stop_at=3), run_dir)
    with pytest.raises(TrainingError, match=rf"^pair.run.safetensors holds a run with {key} "):
        train(replace(plan_of(Objective.ON_POLICY), **changes), model, Recorder(), run_dir)
    assert model.asked_of_teacher() == []


def test_a_given_cheap_teacher_serves_training_and_checks(tmp_path):
    model, run_dir = LinearModel(), RunDir(tmp_path, "pair")
    found = distill(make_plan(cheap_teacher=CHEAP), model, Recorder(), run_dir)
    assert found.teacher == CHEAP
    assert steps_visited(model.asked_of_teacher()) == CHEAP_STEPS
    assert steps_visited(model.asked_of_teacher(held_out=True)) == CHEAP_STEPS
    last_states = load_file(run_dir.teacher)["states"][-1]
    assert torch.allclose(last_states, teacher_by_hand(model, CHEAP_STEPS, multistep), atol=1e-5)
    results = sample_by_hand(model, found.outcome, STUDENT_CFG, held_out=True)
    expected = latent_psnr(results, teacher_by_hand(model, CHEAP_STEPS, multistep, held_out=True))
    assert torch.allclose(found.ablation.tried[SLOW, FAST], expected, atol=1e-3)


def test_checks_use_all_teacher_steps_if_no_cheap_teacher_is_known():
    model, observer = LinearModel(), Recorder()
    found = distill(make_plan(), model, observer)
    # Measured and good enough to learn from: 4 runs both ways, then 14 runs in batches of 4 on the cheap steps.
    assert found.teacher.visited_steps is not None and found.teacher.psnr > 40
    assert len(model.asked_of_teacher()) == len(CHEAP_STEPS) + 20 + 4 * len(CHEAP_STEPS)
    assert observer.paused == 4 * (len(CHEAP_STEPS) + 20) and observer.stages["teacher"][1] == RUNS * len(CHEAP_STEPS)
    assert steps_visited(model.asked_of_teacher(held_out=True)) == list(range(20))
    teacher = teacher_by_hand(model, range(20), euler, held_out=True)
    for kept, outcome, cfg in (((SLOW, FAST), found.outcome, STUDENT_CFG), ((), Outcome({}, History()), BASE_CFG)):
        expected = latent_psnr(sample_by_hand(model, outcome, cfg, held_out=True), teacher)
        assert torch.allclose(found.ablation.tried[kept], expected, atol=1e-3)


def test_too_few_runs_for_a_measurement_take_all_teacher_steps(tmp_path):
    model, run_dir = LinearModel(runs=11), RunDir(tmp_path, "pair")
    _, teacher = train(make_plan(runs=11), model, Recorder(), run_dir)
    assert teacher == CheapTeacher() and len(model.asked_of_teacher()) == 3 * 20
    last_states = load_file(run_dir.teacher)["states"][-1]
    assert torch.allclose(last_states, teacher_by_hand(model, range(20), euler), atol=1e-5)


@WITH_TEACHER
def test_teacher_and_student_see_the_same_prompt_in_runs_beyond_the_prompts(objective):
    """There are 14 runs of 5 prompts. The state at the first sigma is the noise, which tells one run from another."""
    model = LinearModel()
    train(plan_of(objective, settings=replace(SETTINGS, steps=20)), model, Recorder())

    def prompts_by_run(calls):
        found = [set() for _ in range(RUNS)]
        for call in calls:
            for x, prompt in zip(call.x, call.prompt, strict=True):
                runs = (model.noise() == x).all(1).nonzero().flatten().tolist()
                for run in runs if prompt.any() else ():  # the empty prompt is zeros
                    found[run].add(tuple(prompt.tolist()))
        return found

    expected = [{tuple(model.prompts[False][run % 5].tolist())} for run in range(RUNS)]
    assert prompts_by_run(model.asked_of_teacher()) == expected
    assert prompts_by_run(call for call in model.calls if call.training) == expected


@pytest.mark.parametrize("objective, guidance", [
    (Objective.TEACHER_FORCED, STUDENT_CFG), (Objective.FLOW_MATCHING, 1.0), (Objective.ON_POLICY, 1.0),
    (Objective.END_TO_END, 1.0),
], ids=str)  # fmt: skip
def test_the_student_trains_under_the_guidance_of_its_objective(objective, guidance):
    model = LinearModel()
    train(plan_of(objective), model, Recorder())
    assert {call.guidance for call in model.calls if call.training} == {guidance}


def test_flow_matching_runs_no_teacher(tmp_path):
    plan, model, observer, run_dir = (
        make_plan(Objective.FLOW_MATCHING),
        LinearModel(),
        Recorder(),
        RunDir(tmp_path, "a"),
    )
    _, teacher = train(plan, model, observer, run_dir)
    assert teacher == CheapTeacher() and model.asked_of_teacher() == [] and not run_dir.teacher.exists()
    assert list(observer.stages) == ["training"]


@WITH_TEACHER
@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("cheap", [None, CHEAP], ids=["every step", "given"])
def test_the_announced_work_is_done(objective, keep_all, cheap):
    """With 11 runs nothing is measured, so every teacher step counts unless a cheap teacher is given."""
    plan, observer = plan_of(objective, runs=11, keep_all=keep_all, cheap_teacher=cheap), Recorder()
    distill(plan, LinearModel(runs=11), observer)
    assert list(observer.stages) == ["teacher", "training", "checking"]
    assert all(announced == done > 0 for announced, done in observer.stages.values())
    assert sum(done for _, done in observer.stages.values()) == plan.work


def test_without_checks_everything_is_kept_untested():
    model = LinearModel()
    found = distill(make_plan(checks=0), model, Recorder())
    assert found.ablation is None and found.kept is found.outcome
    assert not any(call.held_out for call in model.calls)


def test_only_what_the_ablation_chose_is_kept():
    found = distill(make_plan(), LinearModel(), Recorder())
    assert found.ablation.trained is found.outcome and found.kept is found.ablation.outcome
    assert len(found.ablation.tried) == 4 and len(found.ablation.tried[()]) == CHECKS
    assert found.ablation.comparison.examples == LinearModel.held_out_text
    best = max(found.ablation.tried, key=lambda kept: float(found.ablation.tried[kept].mean()))
    assert found.ablation.kept == best == (SLOW, FAST)


def test_keep_all_keeps_what_is_not_clearly_better():
    plan = plan_of(Objective.ON_POLICY)
    chosen = distill(plan, LinearModel(), Recorder())
    assert chosen.ablation.kept == () and not chosen.kept.has_effect and chosen.kept.solver == START
    everything = distill(replace(plan, keep_all=True), LinearModel(), Recorder())
    assert everything.ablation.kept == (SLOW, FAST, SOLVER) and everything.ablation.dropped == ()
    assert_same_outcome(everything.kept, chosen.outcome)
    assert everything.kept.has_effect and everything.kept.solver != START
