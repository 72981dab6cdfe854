"""LoadPhaseLoRA equals whole models with merged LoRAs that are swapped by hand at the same noise levels."""

import adapters
import comfy.model_patcher
import comfy.samplers
import pack
import pytest
import swapped
import tiny_models
import torch
import train_node
from safetensors.torch import save_file
from test_training_inputs import teacher_of

NAMES = ["flux", "wan", "qwen-image", "sd1"]
STEPS = 6
SAMPLERS = ["euler", "heun", "dpmpp_2m", "res_multistep", "uni_pc", "euler_ancestral", "er_sde"]


def load(model, file, strength=1.0, **inputs):
    """(MODEL, report) of the node. inputs: its others."""
    given = {"when": "whole run", "start": 0.0, "end": 2.0, "unit": "steps"} | inputs
    return pack.node("LoadPhaseLoRA").execute(model, file, strength, **given).args


def saved(model, folder, seeds=(1,)):
    """The LoRAs' tensors, saved as 1.safetensors, ..."""
    found = [adapters.state_dict(model, seed) for seed in seeds]
    for seed, tensors in zip(seeds, found, strict=True):
        save_file(tensors, folder / f"{seed}.safetensors")
    return found


def sigmas_of(model, steps=STEPS, denoise=1.0):
    every = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", round(steps / denoise))
    return every[-(steps + 1) :]


def share(model, sigma):
    """The share of the noise schedule at which this sigma is, by ComfyUI's own function."""
    sampling, low, high = model.get_model_object("model_sampling"), 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) > sigma else (low, middle)
    return low


def whens(model, sigmas):
    """Each way to say in which steps, and the strengths by step that it means."""
    mid = [float(sigmas[i] + sigmas[i + 1]) / 2 for i in range(STEPS)]
    return {
        "whole run": ({}, [1] * STEPS),
        "steps": ({"when": "custom", "end": 2.0}, [1, 1, 0, 0, 0, 0]),
        "later steps": ({"when": "custom", "start": 3.0, "end": 99.0}, [0, 0, 0, 1, 1, 1]),
        "sigma": ({"when": "custom", "start": mid[0], "end": mid[3], "unit": "sigma"}, [0, 1, 1, 1, 0, 0]),
        "share": (
            {"when": "custom", "start": 0.0, "end": share(model, mid[1]), "unit": "share"},
            [1, 1, 0, 0, 0, 0],
        ),
        "strengths": ({"strengths": "1, 1, 0.5, 0"}, [1, 1, 0.5, 0, 0, 0]),
    }


def check(name, loras, when, sampler="euler", cfg=1.0, denoise=1.0):
    model = tiny_models.build(name)
    before, (tensors,) = tiny_models.state(model), saved(model, loras)
    sigmas = sigmas_of(model, denoise=denoise)
    inputs, strengths = whens(model, sigmas)[when]
    bare = pack.host_sample(model, name, sigmas, cfg=cfg, sampler=sampler)
    ours = pack.host_sample(load(model, "1.safetensors", **inputs)[0], name, sigmas, cfg=cfg, sampler=sampler)
    merged = {s: swapped.merged_model(name, [(tensors, s)]) for s in set(strengths)}
    theirs = swapped.swapped(name, sigmas, [merged[s] for s in strengths], sampler=sampler, cfg=cfg)
    assert pack.relative(ours, theirs) < 1e-5 < 1e-3 < pack.relative(ours, bare)
    assert torch.equal(pack.host_sample(model, name, sigmas, cfg=cfg, sampler=sampler), bare)
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("when", ["whole run", "steps", "later steps", "sigma", "share", "strengths"])
@pytest.mark.parametrize("name", NAMES)
def test_every_when_equals_models_swapped_by_hand(name, when, loras):
    check(name, loras, when)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", NAMES)
def test_samplers_with_history_and_noise_equal_models_swapped_by_hand(name, sampler, loras):
    check(name, loras, "strengths", sampler, cfg=3.0)


@pytest.mark.parametrize("when", ["steps", "share"])
@pytest.mark.parametrize("name", NAMES)
def test_denoise_below_1_counts_the_steps_of_its_own_run(name, when, loras):
    check(name, loras, when, "dpmpp_2m", cfg=3.0, denoise=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_four_loras_equal_their_merged_sum_by_steps(name, loras):
    model = tiny_models.build(name)
    files, sigmas = saved(model, loras, (1, 2, 3, 4)), sigmas_of(model)
    texts = ["1, 1, 1, 0", "0, 0.5, 1", "0.3", "0, -1, 0"]
    carrying = model
    for number, text in enumerate(texts):
        carrying, _ = load(carrying, f"{number + 1}.safetensors", 0.5, strengths=text)
    padded = [[float(part) for part in text.split(",")] for text in texts]
    by_lora = [(own + [own[-1]] * STEPS)[:STEPS] for own in padded]
    models = [
        swapped.merged_model(name, [(file, 0.5 * own[step]) for file, own in zip(files, by_lora, strict=True)])
        for step in range(STEPS)
    ]
    ours = pack.host_sample(carrying, name, sigmas, sampler="res_multistep", cfg=2.0)
    assert pack.relative(ours, swapped.swapped(name, sigmas, models, sampler="res_multistep", cfg=2.0)) < 1e-5


def test_it_composes_with_a_pair_and_with_loras_of_comfyui(loras):
    model = tiny_models.build("flux")
    slow, fast, style, other = saved(model, loras, (1, 2, 3, 4))
    with_pair, _ = pack.load_pair(pack.merged(model, other, 0.4), "1.safetensors", "2.safetensors", 0.9, 0.8)
    carrying, _ = load(with_pair, "3.safetensors", strengths="0, 0.7, 0.7, 0")
    sigmas = pack.scheduler(model, "flux", 2, 3)
    ours = pack.host_sample(carrying, "flux", sigmas, cfg=2.0)
    by_step = [(slow, 0.9, 0), (slow, 0.9, 0.7), (fast, 0.8, 0.7), (fast, 0.8, 0), (fast, 0.8, 0)]
    models = [
        swapped.merged_model("flux", [(other, 0.4), (half, strength), (style, third)])
        for half, strength, third in by_step
    ]
    assert pack.relative(ours, swapped.swapped("flux", sigmas, models, cfg=2.0)) < 1e-5


def test_steps_are_those_of_each_run_after_split_sigmas(loras):
    model = tiny_models.build("flux")
    (tensors,) = saved(model, loras)
    carrying, _ = load(model, "1.safetensors", when="custom", end=1.0)
    sigmas = sigmas_of(model)
    middle = pack.host_sample(carrying, "flux", sigmas[:4])
    ours = pack.host_sample(carrying, "flux", sigmas[3:], start=middle)
    bare, merged = (swapped.merged_model("flux", [(tensors, s)]) for s in (0, 1))
    halfway = swapped.swapped("flux", sigmas[:4], [merged, bare, bare])
    theirs = swapped.swapped("flux", sigmas[3:], [merged, bare, bare], start=halfway)
    assert pack.relative(ours, theirs) < 1e-5


def test_sigmas_that_rise_again_are_refused_for_steps_and_taken_for_sigmas(loras):
    model = tiny_models.build("flux")
    (tensors,) = saved(model, loras)
    sigmas = torch.tensor([1.0, 0.6, 0.3, 0.7, 0.2, 0.0])
    with pytest.raises(ValueError, match="steps cannot be counted if the run's sigmas do not fall; set unit to share"):
        pack.host_sample(load(model, "1.safetensors", when="custom")[0], "flux", sigmas)
    carrying, _ = load(model, "1.safetensors", when="custom", start=2.0, end=0.5, unit="sigma")
    bare, merged = (swapped.merged_model("flux", [(tensors, s)]) for s in (0, 1))
    guider = swapped.SwappingGuider(bare, lambda sigma: (merged if sigma > 0.5 else bare, None))
    assert pack.relative(pack.host_sample(carrying, "flux", sigmas), swapped.guided(guider, "flux", sigmas)) < 1e-5
    assert [each is merged for each in guider.calls] == [True, True, False, True, False]


@pytest.mark.parametrize("inputs, message", [
    ({"start": 2.0, "end": 2.0}, "start is 2 and end 2, which leaves nothing; end must be the higher one"),
    ({"end": 1.5}, "steps 0 to 1.5 are no whole numbers; write whole ones, or set unit to share"),
    ({"end": 2.0, "unit": "share"}, "end is 2, but a share is at most 1; write one, or set unit to steps"),
    ({"start": 0.1, "end": 0.9, "unit": "sigma"}, "sigmas fall, but start is 0.1 and end 0.9; write the higher one as"),
])  # fmt: skip
def test_ranges_that_mean_nothing_are_refused(inputs, message, loras):
    model = tiny_models.build("flux")
    saved(model, loras)
    with pytest.raises(ValueError, match=f"^{message}"):
        load(model, "1.safetensors", when="custom", **inputs)


def test_the_report_says_when_it_acts_and_the_log_at_which_sigmas(loras, caplog):
    model = tiny_models.build("flux")
    saved(model, loras)
    _, whole = load(model, "1.safetensors", 0.5)
    assert "acts: in the whole run, strength 0.5" in whole and "x LoRA" in whole and ", 0 unmatched" in whole
    carrying, report = load(model, "1.safetensors", when="custom")
    assert "acts: with strength 1, 1 in the first steps, then 0, of each sampling run; the log says" in report
    shared = load(model, "1.safetensors", when="custom", end=0.5, unit="share")[1]
    assert "acts: from 0 to 0.5 of the noise schedule, sigma 1.0000 down to 0.7595, strength 1" in shared
    sigmas = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.0])
    with caplog.at_level("INFO", logger="glance"):
        pack.host_sample(carrying, "flux", sigmas)
    assert "Glance: 1.safetensors acted in 2 of 4 model calls; strength 1 -> 0 at sigma 0.60" in caplog.text
    with caplog.at_level("WARNING", logger="glance"):
        late, _ = load(model, "1.safetensors", when="custom", start=0.1, end=0.0, unit="sigma")
        pack.host_sample(late, "flux", sigmas)
    assert "Glance: 1.safetensors had no effect, since no model call lay in its range of noise levels" in caplog.text


@pytest.mark.parametrize("strength, text", [(0.0, ""), (1.0, "0, 0")])
def test_without_strength_the_base_answers_bit_by_bit(strength, text, loras):
    model = tiny_models.build("flux")
    saved(model, loras)
    idle, _ = load(model, "1.safetensors", strength, strengths=text)
    sigmas = sigmas_of(model)
    assert torch.equal(pack.host_sample(idle, "flux", sigmas), pack.host_sample(model, "flux", sigmas))


def test_text_that_is_not_strengths_is_refused_before_anything_runs():
    validate = pack.node("LoadPhaseLoRA").validate_inputs
    assert validate(strengths="1, x") == "strengths: 'x' is not a strength. Write numbers like 1, 1, 0.5, 0"
    assert validate(strengths=" ") is True and validate(strengths="1, 0") is True


@pytest.mark.parametrize("inputs", [
    {}, {"when": "custom", "start": 0.2, "end": 0.7, "unit": "share"}, {"strengths": "0.5"},
])  # fmt: skip
@pytest.mark.parametrize("sampled_before", [False, True])
def test_a_pair_is_trained_on_a_model_with_it(inputs, sampled_before, loras, output):
    """Teacher, student, and the loaded pair see the LoRA where it acts. Its tensors may be of inference mode."""
    model = tiny_models.build("flux")
    saved(model, loras)
    carrying, _ = load(model, "1.safetensors", **inputs)
    before = tiny_models.state(model)
    if sampled_before:
        pack.host_sample(carrying, "flux", sigmas_of(model))
    settings = {"objective": "on_policy", "steps": 3, "learning_rate": 0.02, "cfg": 1.0}
    trained, slow, fast, losses, _ = train_node.train(carrying, "flux", **settings)
    *_, without, _ = train_node.train(model, "flux", name="without", **settings)
    assert not torch.equal(losses, without), "training did not see it"
    ours, theirs = (
        pack.phase_split(each, "flux", 2, 2, sampler="auto")
        for each in (trained, pack.load_pair(carrying, slow, fast)[0])
    )
    assert torch.equal(ours, theirs)
    assert pack.relative(*teacher_of(carrying, "flux", tiny_models.empty_latent("flux"))) < 1e-5
    tiny_models.assert_bit_exact(model, before)


def test_training_calibration_and_plot_refuse_a_lora_that_counts_steps(loras, output):
    """A full run has other steps than a few-step run."""
    model = tiny_models.build("flux")
    saved(model, loras)
    carrying, _ = load(model, "1.safetensors", when="custom")
    message = (
        r"^1\.safetensors acts in some steps of a run, but all steps are needed here; set its unit to sigma or share"
    )
    with pytest.raises(ValueError, match=message):
        train_node.train(carrying, "flux")
    inputs = {"model": [carrying], "positive": [tiny_models.conditioning("flux", 1)], "cfg": [1.0], "seed": [3]}
    inputs |= {"latent_image": [tiny_models.empty_latent("flux")], "schedule": ["auto"]}
    with pytest.raises(ValueError, match=message):
        pack.node("GlancePhasePlot").execute(steps=[4], **inputs)
    with pytest.raises(ValueError, match=message):
        pack.node("CalibrateGlance").execute(model_calls=[4], seconds=[2.0], teacher_runs=[4], **inputs)


def test_another_lora_or_strength_does_not_load_or_change_the_base_again(loras, monkeypatch):
    model = tiny_models.build("flux")
    saved(model, loras, (1, 2))
    sigmas = sigmas_of(model)
    pack.host_sample(load(model, "1.safetensors")[0], "flux", sigmas)
    done = []
    for name in ("load", "patch_weight_to_device", "unpatch_model"):
        own = getattr(comfy.model_patcher.ModelPatcher, name)

        def watched(self, *args, name=name, own=own, **kwargs):
            if self.model is model.model and kwargs.get("unpatch_weights", True):  # else it only exchanges clones
                done.append(name)
            return own(self, *args, **kwargs)

        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, name, watched)
    for file, strength in (("1.safetensors", 0.5), ("2.safetensors", 1.0), ("2.safetensors", -1.0)):
        pack.host_sample(load(model, file, strength)[0], "flux", sigmas)
    assert done == []
    pack.host_sample(pack.merged(model, adapters.state_dict(model, 1)), "flux", sigmas)
    assert "patch_weight_to_device" in done, "a merge is not seen, so the test could not fail"
