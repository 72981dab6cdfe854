"""A run that was stopped, by anything and at any step, ends with the bits of a run that never was."""

import json
import os
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import Linear

from glance_core.adapter_metadata import Trained
from glance_core.checkpoint import load_run, save_run
from glance_core.errors import AdapterError, TrainingError
from glance_core.lora_file import Factor
from glance_core.lora_layers import Lora, whole_slots
from glance_core.lora_write import PAIR_ENDS, free_name, new_folder, write_pair
from glance_core.objectives import FlowMatching, Trajectories
from glance_core.schedule import FAST, SLOW
from glance_core.student import Student
from glance_core.tensor_file import read_tensors, write_new, write_over
from glance_core.training import TrainingSettings, train_pair

STEPS = 4
SETTINGS = TrainingSettings(Lora(2, 4.0), steps=STEPS, batch=3, learning_rate=1e-2, seed=3)
GENERATOR = torch.Generator().manual_seed(0)
WALKS = Trajectories(torch.randn(5, 7, 4, generator=GENERATOR), torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0]))
PICTURES = FlowMatching(torch.randn(2, 4, generator=GENERATOR), (1.0, 0.8, 0.6, 0.3))
RUNS = {
    "trajectories": (WALKS, SETTINGS),
    "flow matching, whose noise is drawn": (PICTURES, SETTINGS),
    "accumulation and dropout": (WALKS, replace(SETTINGS, batch=2, accumulation=2, caption_dropout=0.4)),
    "flow matching, accumulation, dropout, decay": (
        PICTURES, replace(SETTINGS, batch=1, accumulation=3, caption_dropout=0.2, weight_decay=0.1, decay="cosine")),
}  # fmt: skip


class Net(nn.Module):
    """in_place: it writes into what autograd keeps, so that training has to copy."""

    def __init__(self, in_place=False):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.mid, self.two = Linear(5, 8), Linear(8, 8), Linear(8, 4)
        self.in_place = in_place

    def forward(self, x, sigma, rows):
        h = torch.tanh(self.one(torch.cat([x, sigma[:, None] + (rows < 0)[:, None]], 1)))
        if self.in_place:
            h += self.mid(h)
            return self.two(h)
        return self.two(h + self.mid(h))


def student(in_place=False, targets="one|two|mid"):
    model = Net(in_place).requires_grad_(False)
    return Student(model, model, whole_slots(model, targets))


def equal(one, two):
    for phase in (SLOW, FAST):
        assert one.factors[phase].keys() == two.factors[phase].keys()
        for name, factor in one.factors[phase].items():
            other = two.factors[phase][name]
            assert torch.equal(factor.down, other.down) and torch.equal(factor.up, other.up)
            assert (factor.scale, factor.alpha) == (other.scale, other.alpha)
    assert one.history == two.history


class Stop(Exception):
    pass


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
def test_a_run_stopped_at_any_step_and_taken_up_again_ends_with_the_same_bits(run, in_place, tmp_path):
    objective, settings = RUNS[run]
    whole = train_pair(student(in_place), objective, 2, settings)
    for phase in (SLOW, FAST):
        for last in range(1, STEPS + 1):
            file = tmp_path / f"{phase}{last}.safetensors"

            def stop(step, phase=phase, last=last):
                if (step.phase, step.step) == (phase, last):
                    raise Stop

            with pytest.raises(Stop):
                train_pair(student(in_place), objective, 2, settings, stop, file)
            told = []
            equal(train_pair(student(in_place), objective, 2, settings, told.append, file), whole)
            done = last + (STEPS if phase == FAST else 0)
            assert len(told) == 2 * STEPS - done  # nothing is trained twice


def test_a_run_that_is_stopped_after_every_step_still_ends_with_the_same_bits(tmp_path):
    objective, settings = RUNS["flow matching, accumulation, dropout, decay"]

    def stop(step):
        raise Stop

    for _ in range(2 * STEPS):
        with pytest.raises(Stop):
            train_pair(student(), objective, 2, settings, stop, tmp_path / "run.safetensors")
    equal(train_pair(student(), objective, 2, settings, stop, tmp_path / "run.safetensors"), train_pair(student(), objective, 2, settings))


def test_the_scale_of_a_half_precision_run_is_taken_up_too(tmp_path):
    halved = replace(student(), half=True)

    def stop(step):
        raise Stop

    for _ in range(2 * STEPS):
        with pytest.raises(Stop):
            train_pair(halved, WALKS, 2, SETTINGS, stop, tmp_path / "run.safetensors")
    equal(train_pair(halved, WALKS, 2, SETTINGS, None, tmp_path / "run.safetensors"), train_pair(halved, WALKS, 2, SETTINGS))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_interrupt_inside_the_model_loses_no_finished_step(tmp_path, error):
    whole, calls, told = train_pair(student(), WALKS, 2, SETTINGS), [], []
    broken = student()

    def velocity(x, sigma, rows):
        calls.append(1)
        out = broken.model(x, sigma, rows)
        if len(calls) == STEPS + 3:
            raise error("stopped")
        return out

    with pytest.raises(error):
        train_pair(replace(broken, velocity=velocity), WALKS, 2, SETTINGS, None, tmp_path / "run.safetensors")
    equal(train_pair(student(), WALKS, 2, SETTINGS, told.append, tmp_path / "run.safetensors"), whole)
    assert len(told) == STEPS - 2


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(run, every, tmp_path):
    objective, settings = RUNS[run]
    settings = replace(settings, save_every=every)
    file, copies = tmp_path / "run.safetensors", set()

    def copy(step):
        if file.exists():
            copies.add(file.read_bytes())

    whole = train_pair(student(), objective, 2, settings, copy, file)
    equal(whole, train_pair(student(), objective, 2, replace(settings, save_every=0)))  # keeping a run does not change it
    assert len(copies) == {1: 2 * (STEPS - 1) + 1, 2: 3}[every]  # between steps, and slow's end
    for i, kept in enumerate([*copies, file.read_bytes()]):
        left = tmp_path / f"left{i}.safetensors"
        left.write_bytes(kept)
        equal(train_pair(student(), objective, 2, settings, None, left), whole)


def test_a_run_that_is_finished_is_not_trained_again(tmp_path):
    file, told = tmp_path / "run.safetensors", []
    whole = train_pair(student(), WALKS, 2, SETTINGS, None, file)
    kept = file.read_bytes()
    equal(train_pair(student(), WALKS, 2, SETTINGS, told.append, file), whole)
    assert not told and file.read_bytes() == kept


# What is not this run's checkpoint


@pytest.fixture
def kept(tmp_path):
    def stop(step):
        raise Stop

    with pytest.raises(Stop):
        train_pair(student(), WALKS, 2, SETTINGS, stop, tmp_path / "kept.safetensors", {"model": "abc"})
    return tmp_path / "kept.safetensors"


@pytest.mark.parametrize("changes", [
    {"steps": 5}, {"batch": 2}, {"accumulation": 2}, {"learning_rate": 1e-3}, {"betas": (0.8, 0.999)}, {"weight_decay": 0.1},
    {"warmup": 0.2}, {"decay": "cosine"}, {"clip": 2.0}, {"caption_dropout": 0.1}, {"seed": 4}, {"optimizer": "adamw8bit"},
], ids=lambda changes: next(iter(changes)))  # fmt: skip
def test_going_on_with_another_setting_is_refused_by_its_name(kept, changes):
    before = kept.read_bytes()
    ((key, mine),) = changes.items()
    with pytest.raises(TrainingError, match=rf"kept.safetensors holds a run with {key} .+, this one has .+; set it back to go on") as told:
        train_pair(student(), WALKS, 2, replace(SETTINGS, **changes), None, kept, {"model": "abc"})
    shown = list(mine) if isinstance(mine, tuple) else mine
    assert f"this one has {shown};" in str(told.value)
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    "key, lora",
    [("rank", Lora(3, 4.0)), ("alpha", Lora(2, 5.0)), ("init", Lora(2, 4.0, "gaussian")), ("rslora", Lora(2, 4.0, rslora=True))],
)
def test_going_on_with_another_lora_is_refused_by_its_name(kept, key, lora):
    with pytest.raises(TrainingError, match=f"holds a run with {key} "):
        train_pair(student(), WALKS, 2, replace(SETTINGS, lora=lora), None, kept, {"model": "abc"})


@pytest.mark.parametrize("targets", ["one", "one|two", "one|two|mi."])
def test_going_on_with_other_targets_is_refused(kept, targets):
    if targets == "one|two|mi.":
        train_pair(student(targets=targets), WALKS, 2, SETTINGS, None, kept, {"model": "abc"})  # the same modules by another pattern
        return
    with pytest.raises(TrainingError, match="holds a run with targets "):
        train_pair(student(targets=targets), WALKS, 2, SETTINGS, None, kept, {"model": "abc"})


def test_going_on_with_other_data_or_what_the_caller_binds_is_refused(kept):
    for key, slow_steps, objective, identity in (
        ("slow_steps", 1, WALKS, {"model": "abc"}),
        ("points", 2, Trajectories(WALKS.states[1:], WALKS.sigmas[1:]), {"model": "abc"}),
        ("rows", 2, Trajectories(WALKS.states[:, 1:], WALKS.sigmas), {"model": "abc"}),
        ("model", 2, WALKS, {"model": "abd"}),
        ("model", 2, WALKS, {}),
        ("more", 2, WALKS, {"model": "abc", "more": (1, 2)}),
    ):
        with pytest.raises(TrainingError, match=f"holds a run with {key} "):
            train_pair(student(), objective, slow_steps, SETTINGS, None, kept, identity)


def test_how_often_a_run_is_kept_may_change(kept):
    equal(
        train_pair(student(), WALKS, 2, replace(SETTINGS, save_every=1), None, kept, {"model": "abc"}),
        train_pair(student(), WALKS, 2, SETTINGS),
    )


def header_of(path, change):
    """The file with another header."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def facts(change):
    def changed(header):
        told = json.loads(header["__metadata__"]["glance_run"])
        change(told)
        return header | {"__metadata__": {"glance_run": json.dumps(told)}}

    return changed


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "truncated in the header": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
    "a pickle": lambda path: torch.save({"step": 1}, path),
    "a web page": lambda path: path.write_bytes(b"<html>not found</html>"),
    "somebody's LoRA": lambda path: save_file({"a.lora_A.weight": torch.zeros(2, 2)}, path),
    "somebody's LoRA with metadata": lambda path: save_file({"a.lora_A.weight": torch.zeros(2, 2)}, path, {"glance.format": "1"}),
    "no JSON": lambda path: save_file({"a": torch.zeros(1)}, path, {"glance_run": "{"}),
    "a list": lambda path: save_file({"a": torch.zeros(1)}, path, {"glance_run": "[1]"}),
    "a number": lambda path: save_file({"a": torch.zeros(1)}, path, {"glance_run": "1"}),
    "another format": lambda path: header_of(path, facts(lambda told: told.update(format=2))),
    "the format and no more": lambda path: save_file({"a": torch.zeros(1)}, path, {"glance_run": '{"format": 1}'}),
    "an identity that is none": lambda path: header_of(path, facts(lambda told: told.update(identity=3))),
    "no step": lambda path: header_of(path, facts(lambda told: told.pop("step"))),
    "no scaler": lambda path: header_of(path, facts(lambda told: told.pop("scaler"))),
    "no history": lambda path: header_of(path, lambda header: {k: v for k, v in header.items() if not k.startswith("history")}),
    "no factors": lambda path: (tensors := load_file(path), told := _metadata(path), save_file({k: v for k, v in tensors.items() if k != "one.A"}, path, told)),
    "factors of another shape": lambda path: (tensors := load_file(path), told := _metadata(path), save_file(tensors | {"one.A": torch.zeros(9, 9)}, path, told)),
}  # fmt: skip


def _metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("how", DAMAGE)
def test_a_checkpoint_that_is_none_is_refused_in_one_sentence_and_left_alone(kept, how):
    DAMAGE[how](kept)
    before = kept.read_bytes()
    with pytest.raises(TrainingError, match=r"^kept.safetensors (is no checkpoint|holds a run)") as told:
        train_pair(student(), WALKS, 2, SETTINGS, None, kept, {"model": "abc"})
    assert "\n" not in str(told.value) and "delete it, or train under another name" in str(told.value)
    assert kept.read_bytes() == before


def test_what_is_kept_is_read_back(tmp_path):
    tensors = {"a": torch.arange(3), "b": torch.zeros(0), "c": torch.tensor(0.1, dtype=torch.float64)}
    save_run(tmp_path / "a", tensors, {"step": 3, "lr": 0.1})
    read, told = load_run(tmp_path / "a")
    assert told == {"step": 3, "lr": 0.1}
    assert read.keys() == tensors.keys() and all(torch.equal(read[key], tensors[key]) for key in tensors)


# Files


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_file_that_is_written_over_stays_whole_when_writing_fails(tmp_path, monkeypatch, call):
    path = tmp_path / "run.safetensors"
    write_over(path, {"a": torch.ones(3)}, {"which": "first"})
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(AdapterError, match=r"cannot be written .No space left on device."):
        write_over(path, {"a": torch.zeros(3)}, {"which": "second"})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # and nothing half-written lies about
    write_over(path, {"a": torch.zeros(3)}, {"which": "second"})
    assert read_tensors(path)[1] == {"which": "second"}


def test_an_interrupt_while_writing_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    write_over(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_over(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_new_file_never_takes_the_place_of_another(tmp_path):
    path = tmp_path / "a.safetensors"
    write_new(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()
    with pytest.raises(AdapterError, match="exists already and is not overwritten; choose another name"):
        write_new(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def factors():
    return {phase: {"double_blocks.0.img_attn.proj": Factor(torch.ones(2, 4), torch.ones(4, 2), 2.0, 1.0, "m")} for phase in (SLOW, FAST)}


@pytest.mark.parametrize("end", PAIR_ENDS)
def test_a_pair_never_overwrites_a_file_that_has_one_of_its_names(tmp_path, end):
    (tmp_path / f"mine{end}").write_bytes(b"somebody's own")
    sigmas = {SLOW: (1.0, 0.9), FAST: (0.5,)}
    first, second = (write_pair(tmp_path, "mine", factors(), Trained(base="flux"), sigmas) for _ in range(2))
    assert [path.name for path in (*first, *second)] == [f"mine-{i}_{phase}.safetensors" for i in (2, 3) for phase in (SLOW, FAST)]
    assert (tmp_path / f"mine{end}").read_bytes() == b"somebody's own"
    for slow, fast in (first, second):
        told = [_metadata(path) for path in (slow, fast)]
        assert [t["glance.phase"] for t in told] == [SLOW, FAST]
        assert [t["glance.partner"] for t in told] == [fast.name, slow.name]
        assert [json.loads(t["glance.sigmas"]) for t in told] == [[1.0, 0.9], [0.5]]


def test_a_free_name_is_free_of_every_end(tmp_path):
    assert free_name(tmp_path, "a", [".x", ".y"]) == "a"
    (tmp_path / "a.y").touch()
    (tmp_path / "a-2.x").touch()
    assert free_name(tmp_path, "a", [".x", ".y"]) == "a-3"
    assert free_name(tmp_path, "a", [".x"]) == "a"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match=r"cannot be written into .+; choose another folder"):
        new_folder(tmp_path / "file" / "folder")
    new_folder(tmp_path / "one" / "two")
    assert list((tmp_path / "one" / "two").iterdir()) == []
