"""GlancePhasePlot in the real host: the path is the one that the host's own sampler walks, and what it suggests can be sampled and trained on."""

import comfy.samplers
import pytest
import tiny
import torch
from pack import host_sample, node


def plotted(model, name, cfg, steps, **more):
    given = {"cfg": cfg, "steps": steps, "schedule": "auto", "seed": 3, "teacher_runs": 2, "batch_size": 2, **more}
    inputs = {key: [value] for key, value in given.items()}
    prompts = [[*tiny.conditioning(name, 1), *tiny.conditioning(name, 5)]]
    execute = node("GlancePhasePlot").execute
    return execute([model], prompts, latent_image=[tiny.empty_latent(name)], negative=[tiny.conditioning(name, 2)], **inputs).args


@pytest.mark.parametrize("name, cfg", [("qwen-image", 2.5), ("flux", 1.0), ("wan", 2.5), ("sd3", 3.0)])
def test_steps_are_suggested_that_follow_the_path_and_are_sampled_as_euler_walks_them(name, cfg, node_classes):
    model = tiny.build(name)
    before = tiny.state(model)
    with torch.inference_mode():
        settings, teacher_steps, plot, report = plotted(model, name, cfg, 6)
        assert plot.ndim == 4 and plot.shape[-1] == 3 and plot.std() > 0
        assert teacher_steps == str(settings.split) and len(settings.split.steps) == 6 and teacher_steps in report
        errors = {line.split(":")[0]: float(line.split("error ")[1].split(",")[0]) for line in report.splitlines() if ": error" in line}
        assert errors["suggested"] <= errors["even"]
        positive, negative, start = tiny.conditioning(name, 1), tiny.conditioning(name, 2), tiny.empty_latent(name)
        execute = node("PhaseSplitSampler").execute
        by_settings = execute(model, positive, negative, start, 11, cfg, "auto", "auto", 2, 2, 1.0, "", settings).args[0]["samples"]
        by_steps = execute(model, positive, negative, start, 11, cfg, "euler", "auto", 2, 2, 1.0, teacher_steps).args[0]["samples"]
        sigmas = node("GlanceScheduler").execute(model, start, "auto", 2, 2, 1.0, teacher_steps).args[0]
        hosts_own = host_sample(model, name, sigmas, cfg, seed=11)
    tiny.assert_bit_exact(model, before)
    assert torch.equal(by_steps, hosts_own)
    assert (by_settings - by_steps).abs().max() < 1e-4 * by_steps.abs().max()


def test_the_papers_split_stands_beside_it_where_there_is_one(node_classes):
    assert "the paper's 5 + 5: error" in plotted(tiny.build("flux"), "flux", 1.0, 10)[3]
    assert "the paper's" not in plotted(tiny.build("flux"), "flux", 1.0, 6)[3]


@pytest.mark.parametrize("inputs, said", [
    ({"steps": 60}, "60 steps cannot be chosen from a teacher's 50; give 2 to 50"),
    ({"cfg": 4.0, "negative": []}, "cfg is 4 but no negative prompt is wired"),
])  # fmt: skip
def test_what_cannot_be_plotted_is_told(inputs, said, node_classes):
    model = tiny.build("flux")
    given = {"cfg": 1.0, "steps": 6, "schedule": "auto", "seed": 0, "negative": tiny.conditioning("flux", 2), **inputs}
    with pytest.raises(ValueError, match=said):
        node("GlancePhasePlot").execute(
            [model],
            [tiny.conditioning("flux", 1)],
            latent_image=[tiny.empty_latent("flux")],
            **{key: [value] for key, value in given.items()},
        )


def test_the_suggestion_is_the_scheduler_of_any_sampler(node_classes):
    model = tiny.build("flux")
    settings = plotted(model, "flux", 1.0, 6)[0]
    sigmas, sampler = node("GlanceScheduler").execute(model, tiny.empty_latent("flux"), "auto", 2, 2, 1.0, "", settings).args
    assert len(sigmas) == 7 and isinstance(sampler, comfy.samplers.KSAMPLER)
