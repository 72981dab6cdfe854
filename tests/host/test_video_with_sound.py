"""Latents of several parts, like video with sound, train, calibrate and plot as ComfyUI samples them."""

import comfy.nested_tensor
import comfy.samplers
import comfy.utils
import comfyui
import folder_paths
import pack
import pytest
import tiny_models
import torch
import train_node

from glance_core.lora.reader import read_adapter
from glance_core.sampling.solver import Solver

NAMES = ["ltxav", "minimax-h3", "triposplat"]
STEPS = 5


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def parts(samples):
    assert samples.is_nested and len(samples.unbind()) == 2
    return samples.unbind()


def test_the_teacher_ends_where_comfyuis_own_sampler_ends(name):
    model, latent = tiny_models.build(name), tiny_models.empty_latent(name)
    host = comfyui.pack_module("nodes.host.host_teacher")
    rollout = comfyui.pack_module("glance_core.sampling.rollout")
    sigmas = pack.scheduler(model, name, 2, STEPS - 2)
    prompts, negative = ([tiny_models.conditioning(name, seed)] for seed in (1, 2))
    teacher = host.host_teacher(model, prompts, negative, host.TeacherChoices(latent, 2.0, "auto"))
    noise = teacher.noise(1, 5)

    def run(conditioned):
        core = rollout.Teacher(conditioned.velocity(2.0), tuple(sigmas.tolist()))
        return rollout.rollout(core, sigmas[0] * unit, range(STEPS)).states[-1]

    unit = torch.randn(noise.shape, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(noise, teacher.sigmas.values[0] * unit)
    found = teacher.run(5, run)
    shapes = [part.shape for part in parts(latent["samples"])]
    theirs = comfy.sample.sample_custom(
        model,
        comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(unit, shapes)),
        2.0,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        prompts[0],
        negative[0],
        latent["samples"],
        disable_pbar=True,
        seed=5,
    )
    assert pack.relative(model.model.process_latent_out(found), theirs) < 1e-5


@pytest.mark.parametrize("objective", ["teacher_forced", "on_policy", "end_to_end"])
def test_a_trained_pair_changes_both_parts(name, objective, loras, node_classes):
    model = tiny_models.build(name)
    before = tiny_models.state(model)
    inputs = {"steps": 6, "learning_rate": 0.02, "gradient_checkpointing": objective != "end_to_end"}
    trained, slow, fast, losses, _ = train_node.train(model, name, objective=objective, **inputs)
    with_pair, _ = pack.load_pair(model, slow, fast)
    steps = {"slow": 2, "fast": 2, "sampler": "auto"}
    ours, loaded, bare = (pack.phase_split(each, name, **steps) for each in (trained, with_pair, model))
    assert torch.equal(pack.flat(ours), pack.flat(loaded)) and losses.std() > 0
    for with_it, without in zip(parts(loaded), parts(bare), strict=True):
        assert with_it.isfinite().all() and pack.relative(with_it, without) > 1e-4
    tiny_models.assert_bit_exact(model, before)


def test_a_solver_keeps_its_sigmas_where_a_model_has_no_gradient_for_them(loras, node_classes, recwarn):
    """MiniMax H3 computes with the sigma as a plain number, so a gradient through it would be wrong."""
    scales = {}
    for each in ("minimax-h3", "ltxav"):
        inputs = {"steps": 6, "learning_rate": 0.02, "gradient_checkpointing": False, "name": each}
        _, slow, *_ = train_node.train(tiny_models.build(each), each, objective="end_to_end", **inputs)
        solver = read_adapter(folder_paths.get_full_path("loras", slow)).pair.solver
        scales[each] = Solver.loads(solver).sigma_scale
    assert all(scale == pytest.approx(1, abs=1e-6) for scale in scales["minimax-h3"])
    assert any(scale != pytest.approx(1, abs=1e-6) for scale in scales["ltxav"])
    assert not [each for each in recwarn if "requires_grad=True to a scalar" in str(each.message)]


def test_calibration_and_plot_run_and_their_settings_are_sampled_with(name, node_classes):
    model = tiny_models.build(name)
    common = {
        "model": [model],
        "positive": [tiny_models.conditioning(name, 1)],
        "schedule": ["auto"],
        "seed": [3],
        "latent_image": [tiny_models.empty_latent(name)],
        "cfg": [1.0],
    }
    calibrated = pack.node("CalibrateGlance").execute(model_calls=[4], seconds=[2.0], teacher_runs=[4], **common)
    plotted = pack.node("GlancePhasePlot").execute(steps=[4], **common)
    for found in (calibrated, plotted):
        samples = pack.phase_split(model, name, sampler="auto", settings=found.args[0])
        assert all(part.isfinite().all() for part in parts(samples))


def test_latents_whose_sounds_differ_in_length_are_rejected(node_classes):
    model = tiny_models.build("ltxav")
    one = tiny_models.empty_latent("ltxav")
    video, sound = parts(one["samples"])
    other = {"samples": comfy.nested_tensor.NestedTensor([video, sound[:, :, :-1]])}
    plan = comfyui.pack_module("nodes.host.training_choices")
    choices = plan.TrainingChoices(
        model, [one, other], [tiny_models.conditioning("ltxav", 1)], None, None, "on_policy", 2, 2, 1.0, "x"
    )
    with pytest.raises(ValueError, match=r"latents differ in size, .* and \(8, 6, 16\) and .* and \(8, 5, 16\)"):
        plan.training_plan(choices, plan.TrainingOptions())
