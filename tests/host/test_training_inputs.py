"""What a user wires reaches teacher and student as it reaches ComfyUI's own sampler: masks, first pictures, noise."""

import comfy.samplers
import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node

TEACHER_STEPS = 6


def teacher_of(model, name, latent, steps=TEACHER_STEPS, prompts=None):
    """(the end of the teacher's run in this pack, ComfyUI's own Euler from the same noise), at cfg 2.

    prompts: the positive and the negative CONDITIONING.
    """
    host = comfyui.pack_module("nodes.host.host_teacher")
    rollout = comfyui.pack_module("glance_core.sampling.rollout")
    prompts, negative = ([each] for each in prompts or [tiny_models.conditioning(name, seed) for seed in (1, 2)])
    teacher = host.host_teacher(model, prompts, negative, host.TeacherChoices(latent, 2.0, "model"))
    values = teacher.sigmas.values
    sigmas = (*values[:: (len(values) - 1) // steps][:steps], 0.0)
    noise = teacher.noise(1, 5)
    run = rollout.Teacher
    found = teacher.run(
        5, lambda model: rollout.rollout(run(model.velocity(2.0), sigmas), noise, range(len(sigmas) - 1)).states[-1]
    )
    unit = torch.randn((1, *noise.shape[1:]), generator=torch.Generator().manual_seed(5))
    theirs = comfy.sample.sample_custom(
        model,
        unit,
        2.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor(sigmas),
        prompts[0],
        negative[0],
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=5,
    )
    found = model.get_model_object("model_sampling").inverse_noise_scaling(torch.tensor(sigmas[-1]), found)
    return model.model.process_latent_out(found), theirs  # as ComfyUI's samplers end


def masked(name, seed=7):
    """A latent with a picture in it, and a mask that samples the right half or, in videos, all but the first frame."""
    latent = tiny_models.empty_latent(name)
    samples = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(1, 1, *samples.shape[2:])
    if samples.ndim == 5 and samples.shape[2] > 1:
        mask[:, :, 0] = 0
    else:
        mask[..., : samples.shape[-1] // 2] = 0
    return latent | {"samples": samples, "noise_mask": mask}


@pytest.mark.parametrize("name", ["flux", "wan", "wan22-5b", "ltxv", "qwen-image"])
def test_teacher_with_a_mask_ends_where_comfyuis_own_sampler_ends(name):
    model, latent = tiny_models.build(name), masked(name)
    ours, theirs = teacher_of(model, name, latent)
    assert pack.relative(ours, theirs) < 1e-5
    free, _ = teacher_of(model, name, {"samples": torch.zeros_like(latent["samples"])})
    assert pack.relative(ours, free) > 1e-2, "the mask has no effect, so the test could not fail"


def losses_of(latent, monkeypatch, **inputs):
    """The training losses of a short run."""
    seen, module = [], comfyui.pack_module("nodes.train")
    plot = module.plot_losses
    with monkeypatch.context() as patch:
        patch.setattr(module, "plot_losses", lambda given: seen.append(given.history) or plot(given))
        patch.setattr(comfyui.pack_module("nodes.host.training_run"), "preflight", lambda *_: ())  # all is masked
        patch.setattr(comfyui.pack_module("nodes.host.base_model"), "check_mask_lets_something_change", lambda _: None)
        train_node.train(tiny_models.build("flux"), "flux", latent=latent, **inputs)
    return seen[0].losses


@pytest.mark.parametrize("objective", ["teacher_forced", "on_policy"])
def test_student_and_teacher_agree_where_nothing_is_sampled(objective, loras, output, monkeypatch):
    """With a mask of zeros both stay at the latent, so there is nothing to learn; without one there is."""
    latent = masked("flux")
    latent["noise_mask"] = torch.zeros_like(latent["noise_mask"])
    inputs = {"objective": objective} | ({"learn": "adapters"} if objective == "on_policy" else {})
    kept = losses_of(latent, monkeypatch, name="kept", **inputs)
    free = losses_of({"samples": latent["samples"]}, monkeypatch, name="free", **inputs)
    assert max(kept) < 1e-8 < 1e-4 < min(free)


def test_a_mask_belongs_to_what_a_training_run_is_known_by(loras, output):
    model, latent = tiny_models.build("flux"), masked("flux")
    plans = [
        train_node.plan_of(model, "flux", latent=given).identity for given in (latent, {"samples": latent["samples"]})
    ]
    assert plans[0] != plans[1]


def test_a_mask_that_lets_nothing_change_is_refused_before_the_teacher_runs(loras, output):
    model, latent = tiny_models.build("flux"), masked("flux")
    latent["noise_mask"] = torch.zeros_like(latent["noise_mask"])
    message = r"^the mask of the latent is 0 everywhere, so nothing of it would be sampled; paint what may change"
    with pytest.raises(ValueError, match=message):
        train_node.train(model, "flux", latent=latent)
    inputs = {"model": [model], "positive": [tiny_models.conditioning("flux", 1)], "cfg": [1.0], "seed": [3]}
    inputs |= {"latent_image": [latent], "schedule": ["auto"]}
    with pytest.raises(ValueError, match=message):
        pack.node("GlancePhasePlot").execute(steps=[4], **inputs)
    with pytest.raises(ValueError, match=message):
        pack.node("CalibrateGlance").execute(model_calls=[4], seconds=[2.0], teacher_runs=[4], **inputs)


def test_masks_that_cannot_be_trained_are_refused(loras, output):
    model = tiny_models.build("flux")
    with pytest.raises(ValueError, match=r"flow_matching learns whole pictures; remove the mask of latent"):
        train_node.plan_of(model, "flux", latent=masked("flux"), objective="flow_matching")


@pytest.mark.parametrize("name", ["hunyuan-image21-distilled", "hunyuan-video15-meanflow"])
def test_a_model_that_needs_to_know_the_next_step_is_refused_before_it_runs(name):
    model = tiny_models.build(name)
    with pytest.raises(ValueError, match=r"is a MeanFlow model, made for few steps: what it answers depends on where"):
        teacher_of(model, name, tiny_models.empty_latent(name))


@pytest.mark.parametrize("name, scale", [("flux", 1.0), ("hidream-o1", 8.0), ("sd1", 1.0)])
def test_noise_of_the_papers_loss_is_as_large_as_the_models_own(name, scale):
    """HiDream-O1's model sampling scales noise by 8."""
    model = tiny_models.build(name)
    assert comfyui.pack_module("nodes.host.base_model").noise_scale(model) == scale
    objectives = comfyui.pack_module("glance_core.training.objectives")
    data = objectives.FlowMatching(torch.zeros(1, 1000), (1.0, 0.5), noise_scale=scale)
    drawn = data.draw(torch.zeros(1).long(), torch.zeros(1).long(), torch.Generator())
    sampling = model.get_model_object("model_sampling")
    noise = torch.randn((1, 1000), generator=torch.Generator())
    if name != "sd1":
        assert torch.equal(drawn.x, sampling.noise_scaling(torch.ones(1), noise, torch.zeros(1, 1000)))
