"""The shipped weights: what they are, what they paint, and that they and the teacher's pictures can be made again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from glance_core import tiny
from glance_core.draws import History
from glance_core.errors import GlanceError
from glance_core.lora_file import check_pair, read_adapter
from glance_core.metrics import paired as paired_difference
from glance_core.metrics import psnr
from glance_core.pictures import load_grid, save_grid
from glance_core.schedule import FAST, SLOW, build_schedule
from glance_core.solver import Solver
from glance_core.tiny import painting
from glance_core.tiny.evaluator import judge, read
from glance_core.tiny.methods import searched_control, searched_walks
from glance_core.tiny.pair import PairSettings, write
from glance_core.tiny.train_evaluator import accuracy
from glance_core.tiny.words import caption
from glance_core.tiny.world import render
from glance_core.training import Outcome

PAIR = [tiny.LORA_FOLDER / f"glance_tiny_{phase}.safetensors" for phase in (SLOW, FAST)]


@pytest.fixture(scope="module")
def painter():
    return painting.Painter()


def test_the_weights_are_small_enough_to_ship(painter):
    assert sum(p.numel() for p in painter.model.parameters()) < 4_000_000
    assert sum(path.stat().st_size for path in (tiny.MODEL_FILE, tiny.WORDS_FILE, tiny.EVALUATOR_FILE)) < 10e6
    assert {value.dtype for value in load_file(tiny.MODEL_FILE).values()} == {torch.float16}


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(GlanceError, match=r"none.safetensors is missing; it belongs to the pack"):
        tiny.load_model(tmp_path / "none.safetensors")


def test_the_evaluator_reads_real_pictures():
    assert accuracy(tiny.load_evaluator(), 2048, 99)["all"] >= 0.99


def test_the_evaluator_sees_a_wrong_picture():
    evaluator = tiny.load_evaluator()
    prompts = painting.reference_prompts(64)
    real = render(prompts.scenes, torch.Generator().manual_seed(1))
    assert judge(read(evaluator, real), prompts.scenes)["all"].float().mean() > 0.9
    shifted = judge(read(evaluator, real.roll(1, 0)), prompts.scenes)
    assert shifted["all"].float().mean() < 0.1
    assert judge(read(evaluator, real.flip(1)), prompts.scenes)["objects"].float().mean() < 0.2  # other colours


def test_the_shipped_pictures_of_the_teacher_are_painted_again():
    again = painting.paint_references(4)
    assert (psnr(again, painting.load_references(4)) > 45).all()  # 8 bits and another machine's rounding


def test_the_shipped_pictures_show_what_was_asked():
    prompts = painting.reference_prompts()
    right = judge(read(tiny.load_evaluator(), painting.load_references()), prompts.scenes)
    assert right["all"].float().mean() >= 0.85
    with pytest.raises(GlanceError, match=r"2000 reference pictures were asked for; teacher.png holds 1024"):
        painting.load_references(2000)


def test_the_reference_prompts_are_those_of_the_shipped_pictures():
    # The captions are what the first three shipped pictures show, the noise was printed once with torch 2.13: the pictures depend on both.
    prompts = painting.reference_prompts(3)
    assert [caption(tuple(slots)) for slots in prompts.slots.tolist()] == [
        "a large cyan circle right and a large purple circle on plain pink", "a large cyan circle right on dotted grey",
        "a small green star on checkered grey",
    ]  # fmt: skip
    assert prompts.noise[0, 0, 0, :3].tolist() == pytest.approx([-0.776191, 0.484588, -0.984735], abs=1e-5)


def test_guidance_is_the_blend_of_two_forwards(painter):
    prompts = painting.reference_prompts(2)
    sigma, rows = torch.full((2,), 0.7), torch.arange(2)
    conditional = painter.velocity(prompts.slots, 1.0)(prompts.noise, sigma, rows)
    free = painter.velocity(torch.zeros_like(prompts.slots), 1.0)(prompts.noise, sigma, rows)
    guided = painter.velocity(prompts.slots, 3.0)(prompts.noise, sigma, rows)
    assert torch.allclose(guided, free + 3 * (conditional - free), atol=1e-5)


def test_the_shipped_pair_comes_nearer_to_the_teacher_than_the_base_on_the_same_steps(painter):
    slow, fast = (read_adapter(path) for path in PAIR)
    assert check_pair(slow, fast) == ()
    start = searched_control()
    assert slow.trained.split == start.split and slow.trained.kept == "slow, fast, solver"
    solver = Solver.loads(slow.trained.solver)
    prompts, teacher = painting.reference_prompts(48), painting.load_references(48)
    walked = build_schedule(tiny.teacher_sigmas(), start.split)
    base = start.paint(painter, prompts)
    before = {name: value.clone() for name, value in painter.model.state_dict().items()}
    with painting.carrying(painter.model, {SLOW: slow.factors, FAST: fast.factors}, walked) as callback:
        paired = painter.solve(prompts, walked.sigmas, solver, callback)
    gain = paired_difference(psnr(paired, teacher), psnr(base, teacher))
    assert gain.value > 2 * gain.error
    assert all(torch.equal(value, before[name]) for name, value in painter.model.state_dict().items())
    assert torch.allclose(start.paint(painter, prompts), base, atol=1e-5)


def test_the_searched_control_is_that_of_the_shipped_weights(tmp_path):
    control = searched_control()
    assert control.forwards == 10
    other = tmp_path / "control.json"
    other.write_text('{"model_sha256": "0", "walks": [{"steps": "1,2|3", "guidance": 1, "coefficient": 0, "psnr": 20}]}')
    with pytest.raises(GlanceError, match=r"searched for another glance_tiny_flux.safetensors; search again"):
        searched_control(10, path=other)
    with pytest.raises(
        GlanceError, match=r"no walk of 7 forwards with one guidance at every step was searched .*; choose one of 4, 6, 8, 10, 20"
    ):
        searched_control(7, guided=True)
    alike = searched_control(10, guided=True)
    assert alike.solver is None and alike.forwards == 10 == 2 * alike.steps
    assert searched_control(5, guided=False).guidance == 1
    assert sum(method.forwards == 10 for method in searched_walks()) >= 2


def test_a_method_that_needs_a_pair_says_so(painter):
    with pytest.raises(GlanceError, match="Glance needs a pair"):
        replace(searched_control(), name="Glance", with_pair=True).paint(painter, painting.reference_prompts(2))


@pytest.mark.parametrize("forwards", [5, 8, 10])
def test_a_methods_ticks_come_to_its_forwards(painter, forwards):
    for method in (method for method in searched_walks() if method.forwards == forwards):
        counted = []
        method.paint(painter, painting.reference_prompts(3), tick=counted.append)
        assert sum(counted) == 3 * forwards and len(counted) == method.steps


def test_a_written_pair_never_takes_a_name_that_is_there(tmp_path):
    slow, fast = (read_adapter(path) for path in PAIR)
    factors = {SLOW: slow.factors, FAST: fast.factors}
    done = Outcome(factors, History())
    names = [tuple(path.name for path in write(done, PairSettings(), tmp_path, "mine")) for _ in range(2)]
    assert names == [("mine_slow.safetensors", "mine_fast.safetensors"), ("mine-2_slow.safetensors", "mine-2_fast.safetensors")]
    assert check_pair(*(read_adapter(tmp_path / name) for name in names[1])) == ()


def test_a_grid_of_pictures_is_read_back(tmp_path):
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_grid(images, tmp_path / "grid.png")
    assert (load_grid(tmp_path / "grid.png", 8) - images).abs().max() <= 1 / 255 + 1e-6
    with pytest.raises(GlanceError, match="fill no square grid"):
        save_grid(images[:5], tmp_path / "other.png")


def _train(out, *more):
    command = f"{sys.executable} -m glance_core.tiny.train --steps 8 --save-every 2 --no-compile --out".split()
    command += [str(out), *more]
    return subprocess.Popen(command, cwd=tiny.FOLDER.parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training that ended."""
    folder = tmp_path_factory.mktemp("trained")
    whole = _train(folder)
    assert whole.wait(300) == 0, whole.stderr.read()
    return folder


def test_a_killed_training_goes_on_where_it_was_and_ends_with_the_same_bits(tmp_path, trained):
    killed = _train(tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoint.safetensors").exists():
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    resumed = _train(tmp_path / "killed")
    assert resumed.wait(300) == 0, resumed.stderr.read()
    for name in ("glance_tiny_flux.safetensors", "glance_tiny_words.safetensors"):
        one, two = load_file(trained / name), load_file(tmp_path / "killed" / name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 8 and steps == sorted(set(steps))  # nothing is trained twice
    assert len({2, 4, 6, 8} - set(steps)) <= 1  # the kill may fall between a checkpoint and its line in the log


def test_a_training_killed_between_its_two_files_is_finished_by_the_next_run(tmp_path, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "glance_tiny_flux.safetensors").unlink()
    assert _train(run).wait(300) == 0
    assert (run / "glance_tiny_flux.safetensors").read_bytes() == (trained / "glance_tiny_flux.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--workers", "5"], b"cannot share 48 pictures"), (["--workers", "0"], b"--workers 0"), (["--save-every", "0"], b"at least 1")],
)
def test_what_cannot_be_trained_is_refused_at_once(tmp_path, more, said):
    refused = _train(tmp_path, *more)
    assert refused.wait(60) == 2
    assert said in refused.stderr.read()


def test_going_on_with_other_settings_is_refused(tmp_path, trained):
    other = _train(shutil.copytree(trained, tmp_path / "run"), "--seed", "5")
    assert other.wait(300) != 0
    assert b"written with other settings" in other.stderr.read()
