"""The shipped weights: what they are and what they paint."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from glance_core import tiny
from glance_core.errors import GlanceError
from glance_core.evaluation.metrics import paired, psnr
from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter
from glance_core.plots.image_grid import load_grid, save_grid
from glance_core.sampling.cheap_teacher import CheapTeacher
from glance_core.sampling.solver import Solver
from glance_core.schedule.phase_schedule import build_schedule
from glance_core.schedule.split import FAST, SLOW
from glance_core.tiny import painting
from glance_core.tiny.distillation import Destination, PairSettings, write_pair
from glance_core.tiny.evaluator import judge, read
from glance_core.tiny.methods import searched_control, searched_controls
from glance_core.tiny.pretrain_evaluator import accuracy
from glance_core.tiny.words import caption
from glance_core.tiny.world import render
from glance_core.training.distill import Distilled
from glance_core.training.history import History
from glance_core.training.trainer import Outcome

PAIR = [tiny.LORA_FOLDER / f"glance_tiny_{phase}.safetensors" for phase in (SLOW, FAST)]


@pytest.fixture(scope="module")
def painter():
    return painting.Painter()


def test_weights_are_small_enough_to_ship(painter):
    assert sum(p.numel() for p in painter.model.parameters()) < 4_000_000
    assert sum(path.stat().st_size for path in (tiny.MODEL_FILE, tiny.WORDS_FILE, tiny.EVALUATOR_FILE)) < 10e6
    assert {value.dtype for value in load_file(tiny.MODEL_FILE).values()} == {torch.float16}


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(GlanceError, match=r"none.safetensors is missing; clone the pack again"):
        tiny.load_model(tmp_path / "none.safetensors")


def test_evaluator_reads_rendered_pictures():
    assert accuracy(tiny.load_evaluator(), 2048, 99)["all"] >= 0.99


def test_evaluator_notices_a_wrong_picture():
    evaluator = tiny.load_evaluator()
    prompts = painting.reference_prompts(64)
    real = render(prompts.scenes, torch.Generator().manual_seed(1))
    assert judge(read(evaluator, real), prompts.scenes)["all"].float().mean() > 0.9
    shifted = judge(read(evaluator, real.roll(1, 0)), prompts.scenes)
    assert shifted["all"].float().mean() < 0.1
    assert judge(read(evaluator, real.flip(1)), prompts.scenes)["objects"].float().mean() < 0.2  # other colours


def test_teacher_paints_the_shipped_pictures_again():
    again = painting.paint_references(4)
    assert (psnr(again, painting.load_references(4)) > 45).all()  # the file has 8 bits; machines round differently


def test_shipped_pictures_match_their_prompts():
    prompts = painting.reference_prompts()
    right = judge(read(tiny.load_evaluator(), painting.load_references()), prompts.scenes)
    assert right["all"].float().mean() >= 0.85
    with pytest.raises(GlanceError, match=r"2000 reference pictures were asked for, but teacher.png holds 1024"):
        painting.load_references(2000)


def test_reference_prompts_are_those_of_the_shipped_pictures():
    # The first three shipped pictures show these captions. The noise was printed with torch 2.13. Pictures need both.
    prompts = painting.reference_prompts(3)
    assert [caption(tuple(slots)) for slots in prompts.slots.tolist()] == [
        "a large cyan circle right and a large purple circle on plain pink",
        "a large cyan circle right on dotted grey",
        "a small green star on checkered grey",
    ]
    assert prompts.noise[0, 0, 0, :3].tolist() == pytest.approx([-0.776191, 0.484588, -0.984735], abs=1e-5)


def test_guidance_blends_two_model_calls(painter):
    prompts = painting.reference_prompts(2)
    sigma, rows = torch.full((2,), 0.7), torch.arange(2)
    cond = painter.velocity(prompts.slots, 1.0)(prompts.noise, sigma, rows)
    uncond = painter.velocity(torch.zeros_like(prompts.slots), 1.0)(prompts.noise, sigma, rows)
    guided = painter.velocity(prompts.slots, 3.0)(prompts.noise, sigma, rows)
    assert torch.allclose(guided, uncond + 3 * (cond - uncond), atol=1e-5)


def test_shipped_pair_is_closer_to_the_teacher_than_the_base_on_the_same_steps(painter):
    slow, fast = (read_adapter(path) for path in PAIR)
    assert check_pair(slow, fast) == ()
    start = searched_control()
    assert slow.pair.split == start.split and slow.pair.kept == "slow, fast, solver"
    solver = Solver.loads(slow.pair.solver)
    prompts, teacher = painting.reference_prompts(48), painting.load_references(48)
    schedule = build_schedule(tiny.tiny_sigmas(), start.split)
    base = start.paint(painter, prompts)
    before = {name: value.clone() for name, value in painter.model.state_dict().items()}
    with painting.with_pair(painter.model, {SLOW: slow.factors, FAST: fast.factors}, schedule) as callback:
        pair = painter.solve(prompts, schedule.sigmas, solver, painting.Watch(callback))
    gain = paired(psnr(pair, teacher), psnr(base, teacher))
    assert gain.value > 2 * gain.error
    assert all(torch.equal(value, before[name]) for name, value in painter.model.state_dict().items())
    assert torch.allclose(start.paint(painter, prompts), base, atol=1e-5)


def test_searched_control_belongs_to_the_shipped_weights(tmp_path):
    control = searched_control()
    assert control.nfe == 10
    other = tmp_path / "control.json"
    plan = {"steps": "1,2|3", "guidance": 1, "coefficient": 0, "psnr": 20}
    other.write_text(json.dumps({"model_sha256": "0", "plans": [plan]}))
    with pytest.raises(GlanceError, match=r"belongs to another glance_tiny_flux.safetensors; search again"):
        searched_control(10, path=other)
    unknown = (
        r"no control of 7 model calls with one guidance at every step was searched .*; choose one of 4, 6, 8, 10, 20"
    )
    with pytest.raises(GlanceError, match=unknown):
        searched_control(7, guided=True)
    alike = searched_control(10, guided=True)
    assert alike.solver is None and alike.nfe == 10 == 2 * alike.steps
    assert searched_control(5, guided=False).guidance == 1
    assert sum(method.nfe == 10 for method in searched_controls()) >= 2


def test_method_without_its_pair_is_rejected(painter):
    with pytest.raises(GlanceError, match="Glance needs a pair"):
        replace(searched_control(), name="Glance", has_pair=True).paint(painter, painting.reference_prompts(2))


@pytest.mark.parametrize("nfe", [5, 8, 10])
def test_ticks_of_a_method_add_up_to_its_model_calls(painter, nfe):
    for method in (method for method in searched_controls() if method.nfe == nfe):
        counted = []
        method.paint(painter, painting.reference_prompts(3), tick=counted.append)
        assert sum(counted) == 3 * nfe and len(counted) == method.steps


def test_written_pair_never_takes_an_existing_name(tmp_path):
    slow, fast = (read_adapter(path) for path in PAIR)
    found = Distilled(Outcome({SLOW: slow.factors, FAST: fast.factors}, History()), None, CheapTeacher())
    pairs = [write_pair(PairSettings(), found, Destination(tmp_path, "mine")) for _ in range(2)]
    names = [tuple(path.name for path in pair) for pair in pairs]
    assert names == [
        ("mine_slow.safetensors", "mine_fast.safetensors"),
        ("mine-2_slow.safetensors", "mine-2_fast.safetensors"),
    ]
    assert check_pair(*(read_adapter(tmp_path / name) for name in names[1])) == ()


def test_grid_of_pictures_is_read_back(tmp_path):
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_grid(images, tmp_path / "grid.png")
    assert (load_grid(tmp_path / "grid.png", 8) - images).abs().max() <= 1 / 255 + 1e-6
    with pytest.raises(GlanceError, match="do not fill a grid; use a square number"):
        save_grid(images[:5], tmp_path / "other.png")
