"""A checkpoint of another run, or a damaged one, is rejected in one sentence and left alone."""

import json
import os
import struct
from dataclasses import replace

import pytest
import torch
from resumable_run import SETTINGS, TEACHER_FORCED, TRAJECTORY, Stop, assert_same_outcome, make_student, stop
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glance_core.errors import TrainingError
from glance_core.sampling.rollout import TeacherTrajectory
from glance_core.training.lora_layers import LoraSettings
from glance_core.training.objectives import TeacherForced
from glance_core.training.run.checkpoint import load_run, save_run
from glance_core.training.run.run_state import Checkpoint
from glance_core.training.trainer import train_pair

IDENTITY = {"model": "abc"}


@pytest.fixture
def kept(tmp_path):
    checkpoint = Checkpoint(tmp_path / "kept.safetensors", IDENTITY)
    with pytest.raises(Stop):
        train_pair(make_student(), TEACHER_FORCED, 2, SETTINGS, stop, checkpoint)
    return checkpoint


@pytest.mark.parametrize("changes", [
    {"steps": 5}, {"batch": 2}, {"accumulation": 2}, {"learning_rate": 1e-3}, {"betas": (0.8, 0.999)},
    {"weight_decay": 0.1}, {"warmup": 0.2}, {"decay": "cosine"}, {"clip": 2.0}, {"caption_dropout": 0.1}, {"seed": 4},
    {"optimizer": "adamw8bit"},
], ids=lambda changes: next(iter(changes)))  # fmt: skip
def test_resuming_with_another_setting_is_rejected_by_its_name(kept, changes):
    before = kept.path.read_bytes()
    ((key, value),) = changes.items()
    with pytest.raises(
        TrainingError, match=rf"kept.safetensors holds a run with {key} .+, but this run has .+; set it back to resume"
    ) as caught:
        train_pair(make_student(), TEACHER_FORCED, 2, replace(SETTINGS, **changes), None, kept)
    stated = list(value) if isinstance(value, tuple) else value
    assert f"but this run has {stated};" in str(caught.value)
    assert kept.path.read_bytes() == before


@pytest.mark.parametrize(
    "key, lora",
    [
        ("rank", LoraSettings(3, 4.0)),
        ("alpha", LoraSettings(2, 5.0)),
        ("init", LoraSettings(2, 4.0, "gaussian")),
        ("rslora", LoraSettings(2, 4.0, rslora=True)),
    ],
)
def test_resuming_with_other_lora_settings_is_rejected_by_name(kept, key, lora):
    with pytest.raises(TrainingError, match=f"holds a run with {key} "):
        train_pair(make_student(), TEACHER_FORCED, 2, replace(SETTINGS, lora=lora), None, kept)


@pytest.mark.parametrize("targets", ["one", "one|two"])
def test_resuming_with_other_targets_is_rejected(kept, targets):
    with pytest.raises(TrainingError, match="holds a run with targets "):
        train_pair(make_student(targets=targets), TEACHER_FORCED, 2, SETTINGS, None, kept)


def test_another_pattern_for_the_same_modules_is_resumed(kept):
    resumed = train_pair(make_student(targets="one|two|mi."), TEACHER_FORCED, 2, SETTINGS, None, kept)
    assert_same_outcome(resumed, train_pair(make_student(), TEACHER_FORCED, 2, SETTINGS))


@pytest.mark.parametrize("key, slow_steps, data, identity", [
    ("slow_steps", 1, TEACHER_FORCED, IDENTITY),
    ("student_steps", 2, TeacherForced(TeacherTrajectory(TRAJECTORY.states[1:], TRAJECTORY.sigmas[1:])), IDENTITY),
    ("rows", 2, TeacherForced(TeacherTrajectory(TRAJECTORY.states[:, 1:], TRAJECTORY.sigmas)), IDENTITY),
    ("model", 2, TEACHER_FORCED, {"model": "abd"}),
    ("model", 2, TEACHER_FORCED, {}),
    ("more", 2, TEACHER_FORCED, IDENTITY | {"more": (1, 2)}),
], ids=["slow_steps", "student_steps", "rows", "another model", "no model", "more"])  # fmt: skip
def test_resuming_with_other_data_or_another_identity_is_rejected(kept, key, slow_steps, data, identity):
    with pytest.raises(TrainingError, match=f"holds a run with {key} "):
        train_pair(make_student(), data, slow_steps, SETTINGS, None, Checkpoint(kept.path, identity))


def test_save_every_may_change_when_a_run_is_resumed(kept):
    assert_same_outcome(
        train_pair(make_student(), TEACHER_FORCED, 2, replace(SETTINGS, save_every=1), None, kept),
        train_pair(make_student(), TEACHER_FORCED, 2, SETTINGS),
    )


def change_header(path, change):
    """Replace the file's header by change(header)."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def change_facts(path, change):
    """Apply `change` to the facts in the file's header."""

    def changed(header):
        facts = json.loads(header["__metadata__"]["glance_run"])
        change(facts)
        return header | {"__metadata__": {"glance_run": json.dumps(facts)}}

    change_header(path, changed)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def change_tensors(path, change):
    """Write the file again with change(tensors), and the same metadata."""
    metadata = metadata_of(path)
    save_file(change(load_file(path)), path, metadata)


def without_history(header):
    return {name: value for name, value in header.items() if not name.startswith("history")}


def write_other_file(path, metadata):
    """Write a file of one tensor with this metadata."""
    save_file({"a": torch.zeros(1)}, path, metadata)


LORA = {"a.lora_A.weight": torch.zeros(2, 2)}
DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "truncated in the header": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
    "a pickle": lambda path: torch.save({"step": 1}, path),
    "a web page": lambda path: path.write_bytes(b"<html>not found</html>"),
    "a LoRA": lambda path: save_file(LORA, path),
    "a LoRA with metadata": lambda path: save_file(LORA, path, {"glance.format": "1"}),
    "a LoRA with metadata of format 2": lambda path: save_file(LORA, path, {"glance.format": "2"}),
    "not JSON": lambda path: write_other_file(path, {"glance_run": "{"}),
    "a list": lambda path: write_other_file(path, {"glance_run": "[1]"}),
    "a number": lambda path: write_other_file(path, {"glance_run": "1"}),
    "a later format": lambda path: change_facts(path, lambda facts: facts.update(format=3)),
    "an earlier format": lambda path: change_facts(path, lambda facts: facts.update(format=1)),
    "the format and nothing else": lambda path: write_other_file(path, {"glance_run": '{"format": 2}'}),
    "an identity that is not a dictionary": lambda path: change_facts(path, lambda facts: facts.update(identity=3)),
    "no step": lambda path: change_facts(path, lambda facts: facts.pop("step")),
    "no scaler": lambda path: change_facts(path, lambda facts: facts.pop("scaler")),
    "no history": lambda path: change_header(path, without_history),
    "no factors": lambda path: change_tensors(path, lambda t: {k: v for k, v in t.items() if k != "one.A"}),
    "factors of another shape": lambda path: change_tensors(path, lambda t: t | {"one.A": torch.zeros(9, 9)}),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_file_that_is_not_a_valid_checkpoint_is_rejected_and_left_alone(kept, how):
    DAMAGE[how](kept.path)
    before = kept.path.read_bytes()
    with pytest.raises(TrainingError, match=r"^kept.safetensors (is not a checkpoint|holds a run)") as caught:
        train_pair(make_student(), TEACHER_FORCED, 2, SETTINGS, None, kept)
    assert "\n" not in str(caught.value) and "delete it, or train under another name" in str(caught.value)
    assert kept.path.read_bytes() == before


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    tensors = {"a": torch.arange(3), "b": torch.zeros(0), "c": torch.tensor(0.1, dtype=torch.float64)}
    save_run(tmp_path / "a", tensors, {"step": 3, "lr": 0.1})
    read, facts = load_run(tmp_path / "a")
    assert facts == {"step": 3, "lr": 0.1}
    assert read.keys() == tensors.keys() and all(torch.equal(read[key], tensors[key]) for key in tensors)
