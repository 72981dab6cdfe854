"""Control nets, reference pictures and first frames reach teacher and student as they reach ComfyUI's own sampler."""

import re

import adapters
import comfy.controlnet
import comfy.ldm.flux.controlnet
import comfy.model_management
import comfy.ops
import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node
from test_trained_pairs import Pixels
from test_training_inputs import teacher_of


def random(*shape, seed=8):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompts_of(name):
    return [tiny_models.conditioning(name, seed) for seed in (1, 2)]


def with_control_net(name):
    """Both prompts through Apply ControlNet, with a tiny control net for FLUX that answers in the first 60 %."""
    device = comfy.model_management.get_torch_device()
    config = {key: value for key, value in tiny_models.MODELS[name].config.items() if key != "image_model"}
    net = comfy.ldm.flux.controlnet.ControlNetFlux(
        **config, operations=comfy.ops.disable_weight_init, device=device, dtype=torch.float32
    )
    for number, parameter in enumerate(net.parameters()):
        parameter.copy_(0.1 * random(*parameter.shape, seed=number))
    control = comfy.controlnet.ControlNet(net, load_device=device, extra_conds=["y", "guidance"])
    picture = random(1, 64, 64, 3).clamp(0, 1)
    apply = comfyui.all_nodes()["ControlNetApplyAdvanced"]().apply_controlnet
    return apply(*prompts_of(name), control, picture, 1.0, 0.0, 0.6)


def with_reference(name):
    """Both prompts through Reference Latent."""
    latent = {"samples": random(1, *tiny_models.tiny(name).latent)}
    reference = comfyui.all_nodes()["ReferenceLatent"]
    return [reference.execute(prompt, latent).args[0] for prompt in prompts_of(name)]


def with_first_frames(name):
    """Both prompts with a picture to begin with, as Wan Image to Video gives them."""
    latent = tiny_models.tiny(name).latent
    first = {"concat_latent_image": random(1, 16, *latent[1:]), "concat_mask": torch.zeros(1, 1, *latent[1:])}
    return [[[tokens, values | first] for tokens, values in prompt] for prompt in prompts_of(name)]


INPUTS = {
    "control net": ("flux", with_control_net),
    "reference, FLUX Kontext": ("flux", with_reference),
    "reference, Qwen-Image-Edit": ("qwen-image", with_reference),
    "reference, FLUX.2": ("flux2-klein", with_reference),
    "reference, OmniGen 2": ("omnigen2", with_reference),
    "first frames, Wan": ("wan21-i2v", with_first_frames),
}


@pytest.fixture(params=INPUTS)
def given(request, node_classes):
    name, wire = INPUTS[request.param]
    return name, wire(name)


def test_calibration_plot_and_comparison_run_with_it(given):
    name, (positive, _) = given
    model = tiny_models.build(name)
    common = {"model": [model], "positive": [positive], "seed": [3], "schedule": ["auto"], "cfg": [1.0]}
    common["latent_image"] = [tiny_models.empty_latent(name)]
    calibrated = pack.node("CalibrateGlance").execute(model_calls=[4], seconds=[2.0], teacher_runs=[4], **common)
    plotted = pack.node("GlancePhasePlot").execute(steps=[4], **common)
    plain = pack.node("GlancePhasePlot").execute(steps=[4], **common | {"positive": [prompts_of(name)[0]]})
    assert plotted.args[3] != plain.args[3], "the plot did not see it"
    for found in (calibrated, plotted):
        samples = pack.phase_split(model, name, sampler="auto", settings=found.args[0], positive=positive)
        assert samples.isfinite().all()


def test_teacher_ends_where_comfyuis_own_sampler_ends(given):
    name, prompts = given
    model, latent = tiny_models.build(name), tiny_models.empty_latent(name)
    ours, theirs = teacher_of(model, name, latent, prompts=prompts)
    assert pack.relative(ours, theirs) < 1e-5
    free, _ = teacher_of(model, name, latent)
    assert pack.relative(ours, free) > 1e-3, "the input has no effect, so the test could not fail"


def test_comparison_gives_every_row_the_same(given, loras):
    """An idle pair is the base on the same steps, so that its row tells whether both saw the input."""
    name, (positive, negative) = given
    model = tiny_models.build(name)
    with_pair, _ = pack.load_pair(model, *adapters.save_pair(model, loras), 0.0, 0.0)
    compare, latent = pack.node("GlanceCompare"), tiny_models.empty_latent(name)
    inputs = (latent, Pixels(), 7, 1.0, "euler")
    table = compare.execute(model, with_pair, positive, negative, *inputs).args[1]
    plain = compare.execute(model, with_pair, *prompts_of(name), *inputs).args[1]
    found, free = (re.findall(r"^\| (?:pair|base, euler) .* \| (\S+) ", each, re.M) for each in (table, plain))
    assert len(found) == 3 and found != free, "the comparison did not see it"


def test_student_learns_with_it_and_the_loaded_pair_is_the_trained_one(given, loras, output):
    name, (positive, negative) = given
    model = tiny_models.build(name)
    before = tiny_models.state(model)
    inputs = {"objective": "on_policy", "steps": 3, "learning_rate": 0.02, "gradient_checkpointing": True}
    trained, slow, fast, losses, _ = train_node.train(model, name, positive=positive, **inputs)
    *_, without, _ = train_node.train(model, name, name="without", **inputs)
    assert not torch.equal(losses, without), "training did not see it"
    with_pair, _ = pack.load_pair(model, slow, fast)
    steps = {"slow": 2, "fast": 2, "sampler": "auto", "positive": positive, "negative": negative}
    ours, loaded, bare = (pack.phase_split(each, name, **steps) for each in (trained, with_pair, model))
    assert torch.equal(ours, loaded) and pack.relative(loaded, bare) > 1e-4
    tiny_models.assert_bit_exact(model, before)


def test_rows_at_other_noise_levels_get_the_control_net_of_their_own(node_classes):
    """ComfyUI asks only the first row of a call whether the control net still applies."""
    model, (positive, _) = tiny_models.build("flux"), with_control_net("flux")
    host = comfyui.pack_module("nodes.host.host_teacher")
    teacher = host.host_teacher(
        model, [positive], None, host.TeacherChoices(tiny_models.empty_latent("flux"), 1.0, "model")
    )
    noise, rows, sigmas = teacher.noise(1, 5), torch.zeros(2).long(), torch.tensor([0.9, 0.1])

    def work(conditioned):
        velocity = conditioned.velocity(1.0)
        alone = [velocity(noise.clone(), sigmas[i : i + 1], rows[:1]) for i in (0, 1)]
        return velocity(noise.repeat(2, 1, 1, 1), sigmas, rows), torch.cat(alone)

    together, alone = teacher.run(5, work)
    assert pack.relative(together, alone) < 1e-5
