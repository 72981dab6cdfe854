"""GlancePhasePlot inside ComfyUI: its trajectory is that of ComfyUI's sampler, and what it suggests can be used."""

import comfy.samplers
import pack
import pytest
import tiny_models
import torch
from pack import node, phase_split


def plotted(model, name, **inputs):
    """(settings, teacher steps, plot, report)"""
    inputs = {
        "positive": [*tiny_models.conditioning(name, 1), *tiny_models.conditioning(name, 5)],
        "negative": tiny_models.conditioning(name, 2),
        "latent_image": tiny_models.empty_latent(name),
        "cfg": 1.0,
        "steps": 6,
        "schedule": "auto",
        "seed": 3,
        "teacher_runs": 2,
        "batch_size": 2,
    } | inputs
    return node("GlancePhasePlot").execute(model=[model], **{key: [value] for key, value in inputs.items()}).args


@pytest.mark.parametrize("name, cfg", [("qwen-image", 2.5), ("flux", 1.0), ("wan", 2.5), ("sd3", 3.0)])
def test_suggested_steps_follow_the_trajectory_and_are_sampled_as_by_euler(name, cfg, node_classes):
    model = tiny_models.build(name)
    before = tiny_models.state(model)
    settings, teacher_steps, plot, report = plotted(model, name, cfg=cfg)
    assert plot.ndim == 4 and plot.shape[-1] == 3 and plot.std() > 0
    assert teacher_steps == str(settings.split) and len(settings.split.steps) == 6 and teacher_steps in report
    errors = {
        line.split(":")[0]: float(line.split("error ")[1].split(",")[0])
        for line in report.splitlines()
        if ": error" in line
    }
    assert errors["suggested"] <= errors["even"]
    by_settings = phase_split(model, name, 2, 2, cfg, "auto", settings=settings, teacher_steps="", seed=11)
    by_steps = phase_split(model, name, 2, 2, cfg, "euler", teacher_steps=teacher_steps, seed=11)
    sigmas = pack.scheduler(model, name, 2, 2, teacher_steps=teacher_steps)
    by_comfyui = pack.host_sample(model, name, sigmas, cfg, seed=11)
    tiny_models.assert_bit_exact(model, before)
    assert torch.equal(by_steps, by_comfyui)
    assert (by_settings - by_steps).abs().max() < 1e-4 * by_steps.abs().max()


def test_the_papers_split_is_listed_if_it_has_as_many_steps(node_classes):
    assert "the paper's 5 + 5: error" in plotted(tiny_models.build("flux"), "flux", steps=10)[3]
    assert "the paper's" not in plotted(tiny_models.build("flux"), "flux", steps=6)[3]


@pytest.mark.parametrize("wrong, message", [
    ({"steps": 60}, "60 steps cannot be chosen from a teacher's 50; choose 2 to 50"),
    ({"cfg": 4.0, "negative": []}, "cfg is 4 but no negative prompt is wired"),
])  # fmt: skip
def test_choices_that_cannot_be_plotted_are_rejected(wrong, message, node_classes):
    inputs = {"seed": 0, "positive": tiny_models.conditioning("flux", 1), "teacher_runs": 0} | wrong
    with pytest.raises(ValueError, match=message):
        plotted(tiny_models.build("flux"), "flux", **inputs)


def test_the_suggestion_works_with_the_scheduler_and_any_sampler(node_classes):
    model = tiny_models.build("flux")
    settings = plotted(model, "flux")[0]
    sigmas, sampler = pack.scheduled(model, "flux", 2, 2, settings=settings, teacher_steps="")
    assert len(sigmas) == 7 and isinstance(sampler, comfy.samplers.KSAMPLER)
