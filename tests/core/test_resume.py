"""A run that is stopped at any step and resumed ends with the same bits as one that never stopped."""

from dataclasses import replace

import pytest
from resumable_run import RUNS, SETTINGS, STEPS, TEACHER_FORCED, Stop, assert_same_outcome, make_student, stop

from glance_core.schedule.split import FAST, SLOW
from glance_core.training.run.run_state import Checkpoint
from glance_core.training.trainer import train_pair


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
def test_a_run_stopped_at_any_step_and_resumed_ends_with_the_same_bits(run, in_place, tmp_path):
    data, settings = RUNS[run]
    unbroken = train_pair(make_student(in_place), data, 2, settings)
    for phase in (SLOW, FAST):
        for last in range(1, STEPS + 1):
            checkpoint = Checkpoint(tmp_path / f"{phase}{last}.safetensors")

            def stop_at(step, phase=phase, last=last):
                if (step.part, step.step) == (phase, last):
                    raise Stop

            with pytest.raises(Stop):
                train_pair(make_student(in_place), data, 2, settings, stop_at, checkpoint)
            reports = []
            resumed = train_pair(make_student(in_place), data, 2, settings, reports.append, checkpoint)
            assert_same_outcome(resumed, unbroken)
            done = last + (STEPS if phase == FAST else 0)
            assert len(reports) == 2 * STEPS - done  # no step is trained twice


def test_a_run_stopped_after_every_step_ends_with_the_same_bits(tmp_path):
    data, settings = RUNS["flow matching, accumulation, dropout, decay"]
    checkpoint = Checkpoint(tmp_path / "run.safetensors")
    for _ in range(2 * STEPS):
        with pytest.raises(Stop):
            train_pair(make_student(), data, 2, settings, stop, checkpoint)
    assert_same_outcome(
        train_pair(make_student(), data, 2, settings, stop, checkpoint),
        train_pair(make_student(), data, 2, settings),
    )


def test_the_loss_scale_of_a_half_precision_run_is_resumed_too(tmp_path):
    student, checkpoint = replace(make_student(), half=True), Checkpoint(tmp_path / "run.safetensors")
    for _ in range(2 * STEPS):
        with pytest.raises(Stop):
            train_pair(student, TEACHER_FORCED, 2, SETTINGS, stop, checkpoint)
    assert_same_outcome(
        train_pair(student, TEACHER_FORCED, 2, SETTINGS, None, checkpoint),
        train_pair(student, TEACHER_FORCED, 2, SETTINGS),
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_interrupt_inside_the_model_loses_no_finished_step(tmp_path, error):
    unbroken = train_pair(make_student(), TEACHER_FORCED, 2, SETTINGS)
    broken, checkpoint = make_student(), Checkpoint(tmp_path / "run.safetensors")
    calls, reports = [], []

    def velocity(x, sigma, rows):
        calls.append(1)
        out = broken.model(x, sigma, rows)
        if len(calls) == STEPS + 3:
            raise error("stopped")
        return out

    with pytest.raises(error):
        train_pair(replace(broken, velocity=velocity), TEACHER_FORCED, 2, SETTINGS, None, checkpoint)
    resumed = train_pair(make_student(), TEACHER_FORCED, 2, SETTINGS, reports.append, checkpoint)
    assert_same_outcome(resumed, unbroken)
    assert len(reports) == STEPS - 2


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("save_every", [1, 2])
def test_a_killed_run_resumes_from_its_last_checkpoint(run, save_every, tmp_path):
    data, settings = RUNS[run]
    settings = replace(settings, save_every=save_every)
    path, copies = tmp_path / "run.safetensors", set()

    def copy(step):
        if path.exists():
            copies.add(path.read_bytes())

    unbroken = train_pair(make_student(), data, 2, settings, copy, Checkpoint(path))
    without_saving = train_pair(make_student(), data, 2, replace(settings, save_every=0))
    assert_same_outcome(unbroken, without_saving)
    assert len(copies) == {1: 2 * (STEPS - 1) + 1, 2: 3}[save_every]  # between steps, and at the end of Slow
    for i, content in enumerate([*copies, path.read_bytes()]):
        left = tmp_path / f"left{i}.safetensors"
        left.write_bytes(content)
        assert_same_outcome(train_pair(make_student(), data, 2, settings, None, Checkpoint(left)), unbroken)


def test_a_finished_run_is_not_trained_again(tmp_path):
    checkpoint, reports = Checkpoint(tmp_path / "run.safetensors"), []
    finished = train_pair(make_student(), TEACHER_FORCED, 2, SETTINGS, None, checkpoint)
    content = checkpoint.path.read_bytes()
    again = train_pair(make_student(), TEACHER_FORCED, 2, SETTINGS, reports.append, checkpoint)
    assert_same_outcome(again, finished)
    assert not reports and checkpoint.path.read_bytes() == content
