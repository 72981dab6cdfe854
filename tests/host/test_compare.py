"""GlanceCompare inside ComfyUI: its rows are what the samplers give by themselves, and its model calls are counted."""

import pytest
import tiny_flux
from pack import node

from glance_core.evaluation.metrics import psnr
from glance_core.schedule.plan import even_steps


@pytest.fixture(scope="module")
def host_model(node_classes):
    return tiny_flux.load()


@pytest.fixture(scope="module")
def carrying(host_model):
    return tiny_flux.with_pair(host_model)


def compared(model, carrying, pictures=2, sampler="dpmpp_2m", settings=None):
    """(grid, table)"""
    vae, positive, negative = (
        node("GlanceTinyVAE").execute().args[0],
        tiny_flux.text(tiny_flux.PROMPT),
        tiny_flux.text(""),
    )
    latent = tiny_flux.empty_latent(pictures)
    execute = node("GlanceCompare").execute
    return execute(model, carrying, positive, negative, latent, vae, 7, 4.0, sampler, settings).args


def rows(table):
    """By method: steps, model calls, seconds, PSNR."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    return {line[0]: line[1:] for line in lines}


def decoded(model, teacher_steps, cfg, sampler):
    """Two pictures (2, 3, H, W) by Phase Split Sampler."""
    options = {"teacher_steps": teacher_steps, "latent": tiny_flux.empty_latent(2)}
    samples = tiny_flux.phase_split(model, 2, 4, cfg, sampler, **options)
    return node("GlanceTinyVAE").execute().args[0].decode(samples).movedim(-1, 1) * 2 - 1


def test_the_rows_are_what_the_samplers_give_by_themselves(host_model, carrying):
    before = {name: value.clone() for name, value in host_model.model.state_dict().items()}
    grid, table = compared(host_model, carrying)
    found = rows(table)
    assert list(found) == ["teacher", "pair", "base, euler", "base, dpmpp_2m"]
    assert [(row[0], row[1]) for row in found.values()] == [("50", "100"), ("6", "10"), ("5", "10"), ("5", "10")]
    assert all(float(row[2]) > 0 for row in found.values())
    even = "1,{}|{},{},{}".format(*(step + 1 for step in even_steps(5, 50)[1:]))
    every = "1|" + ",".join(map(str, range(2, 51)))
    teacher = decoded(host_model, every, 4.0, "euler")
    for name, model, steps, cfg, sampler in (
        ("pair", carrying, "", 1.0, "auto"),
        ("base, euler", host_model, even, 4.0, "euler"),
        ("base, dpmpp_2m", host_model, even, 4.0, "dpmpp_2m"),
    ):
        own = psnr(decoded(model, steps, cfg, sampler), teacher)
        assert float(found[name][3].split(" ")[0]) == pytest.approx(float(own.mean()), abs=0.02)
    assert grid.ndim == 4 and grid.shape[1] > 4 * 100 and grid.std() > 0.05
    assert all(value.equal(before[name]) for name, value in host_model.model.state_dict().items())


def test_both_model_calls_of_a_two_stage_sampler_are_counted(host_model, carrying):
    table = compared(host_model, carrying, 1, sampler="heun")[1]
    assert rows(table)["base, heun"][1] == "18"  # the last step is Euler's


def test_settings_are_one_more_row(host_model, carrying):
    inputs = {
        "model": host_model,
        "positive": tiny_flux.text(tiny_flux.PROMPT),
        "negative": tiny_flux.text(""),
        "latent_image": tiny_flux.empty_latent(),
        "cfg": 4.0,
        "steps": 6,
        "schedule": "auto",
        "seed": 0,
    }
    settings = node("GlancePhasePlot").execute(**{key: [value] for key, value in inputs.items()}).args[0]
    assert rows(compared(host_model, carrying, 1, settings=settings)[1])["base, calibrated"][:2] == ["6", "12"]


def test_the_conclusion_names_the_best_base_row_and_warns_of_few_pictures(host_model, carrying):
    table = compared(host_model, carrying, 8)[1]
    assert "The pair is closer to the teacher than the best base row" in table
    assert "10.0 times fewer model calls" in table
    idle = tiny_flux.with_pair(host_model, 0.0, 0.0)
    assert "say little" in compared(host_model, idle, 2)[1]


@pytest.mark.parametrize("swapped, message", [
    (True, "model carries a Glance pair; wire the model from before Load Glance LoRA"),
    (False, "with_pair carries no Glance pair"),
])  # fmt: skip
def test_models_in_the_wrong_place_are_rejected(host_model, carrying, swapped, message):
    with pytest.raises(ValueError, match=message):
        compared(*((carrying, carrying) if swapped else (host_model, host_model)))
