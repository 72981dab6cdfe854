"""GlanceCompare in the real host: its rows are what the samplers give by themselves, and its forwards are counted."""

import pytest
import torch
from pack import node

import nodes as host_nodes
from glance_core import tiny
from glance_core.metrics import psnr
from glance_core.walks import even_steps

PAIR = ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")
PROMPT = "a large green star left and a small purple ring on striped pink"


def text(prompt):
    return node("GlanceTinyText").execute(prompt).args[0]


@pytest.fixture(scope="module")
def host_model(node_classes):
    with torch.inference_mode():
        return host_nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0]


@pytest.fixture(scope="module")
def carrying(host_model):
    return node("LoadGlanceLoRA").execute(host_model, *PAIR, 1.0, 1.0).args[0]


def compared(model, carrying, pictures=2, cfg=4.0, sampler="dpmpp_2m", settings=None):
    latent = {"samples": torch.zeros(pictures, *tiny.LATENT)}
    vae = node("GlanceTinyVAE").execute().args[0]
    return node("GlanceCompare").execute(model, carrying, text(PROMPT), text(""), latent, vae, 7, cfg, sampler, settings).args


def rows(table):
    """By method: steps, forwards, seconds, PSNR."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    return {line[0]: line[1:] for line in lines}


def decoded(model, sigmas, cfg, sampler):
    latent = {"samples": torch.zeros(2, *tiny.LATENT)}
    steps = node("PhaseSplitSampler").execute(model, text(PROMPT), text(""), latent, 7, cfg, sampler, "auto", 2, 4, 1.0, sigmas).args[0]
    vae = node("GlanceTinyVAE").execute().args[0]
    return vae.decode(steps["samples"]).movedim(-1, 1) * 2 - 1


def test_the_rows_are_what_the_samplers_give_by_themselves(host_model, carrying):
    before = {name: value.clone() for name, value in host_model.model.state_dict().items()}
    grid, table = compared(host_model, carrying)
    found = rows(table)
    assert list(found) == ["teacher", "pair", "bare base, euler", "bare base, dpmpp_2m"]
    assert [(row[0], row[1]) for row in found.values()] == [("50", "100"), ("6", "10"), ("5", "10"), ("5", "10")]
    assert all(float(row[2]) > 0 for row in found.values())
    even = "1,{}|{},{},{}".format(*(step + 1 for step in even_steps(5, 50)[1:]))
    every = "1|" + ",".join(map(str, range(2, 51)))
    teacher = decoded(host_model, every, 4.0, "euler")
    for name, model, steps, cfg, sampler in (
        ("pair", carrying, "", 1.0, "auto"), ("bare base, euler", host_model, even, 4.0, "euler"), ("bare base, dpmpp_2m", host_model, even, 4.0, "dpmpp_2m"),
    ):  # fmt: skip
        near = psnr(decoded(model, steps, cfg, sampler), teacher)
        assert float(found[name][3].split(" ")[0]) == pytest.approx(float(near.mean()), abs=0.02)
    assert grid.ndim == 4 and grid.shape[1] > 4 * 100 and grid.std() > 0.05
    assert all(torch.equal(value, before[name]) for name, value in host_model.model.state_dict().items())


def test_a_sampler_of_two_forwards_a_step_is_counted_as_such(host_model, carrying):
    assert rows(compared(host_model, carrying, 1, sampler="heun")[1])["bare base, heun"][1] == "18"  # the last step is Euler's


def test_settings_are_one_more_row(host_model, carrying):
    latent = {"samples": torch.zeros(1, *tiny.LATENT)}
    settings = node("GlancePhasePlot").execute(
        [host_model], [text(PROMPT)], negative=[text("")], latent_image=[latent], cfg=[4.0], steps=[6], schedule=["auto"], seed=[0]
    ).args[0]  # fmt: skip
    assert rows(compared(host_model, carrying, 1, settings=settings)[1])["bare base, calibrated"][:2] == ["6", "12"]


def test_the_verdict_says_which_row_was_beaten_or_was_not(host_model, carrying):
    table = compared(host_model, carrying, 8)[1]
    assert "The pair is nearer to the teacher than the best bare row" in table and "10.0 times fewer forwards" in table
    idle = node("LoadGlanceLoRA").execute(host_model, *PAIR, 0.0, 0.0).args[0]
    assert "tell little" in compared(host_model, idle, 2)[1]


@pytest.mark.parametrize(
    "swapped, said", [(True, "model carries a Glance pair, and is to be the bare one"), (False, "with_pair carries no Glance pair")]
)
def test_models_in_the_wrong_place_are_told(host_model, carrying, swapped, said):
    with pytest.raises(ValueError, match=said):
        compared(*((carrying, carrying) if swapped else (host_model, host_model)))
