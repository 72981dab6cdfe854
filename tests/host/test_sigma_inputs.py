"""`auto` equals the scheduler nodes of ComfyUI, and a wired list is the teacher's in every node that has one."""

from types import SimpleNamespace

import adapters
import comfyui
import folder_paths
import pack
import pytest
import tiny_models
import torch
import train_node
from comfy_extras.nodes_custom_sampler import BasicScheduler
from comfy_extras.nodes_flux import Flux2Scheduler
from comfy_extras.nodes_ideogram4 import Ideogram4Scheduler
from comfy_extras.nodes_lt import LTXVScheduler
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from glance_core.lora.metadata import PairMetadata, written_metadata
from glance_core.lora.reader import read_adapter
from glance_core.schedule.split import split_steps

OF_50 = [*split_steps(5, 5).steps, 50]


def latent(*shape):
    return {"samples": torch.zeros(shape)}


def basic(model, scheduler="simple", steps=50):
    return BasicScheduler.execute(model, scheduler, steps, 1.0).args[0]


def flux2(side):
    return latent(1, 128, side // 16, side // 16), Flux2Scheduler.execute(50, side, side).args[0]


def ltx(width, height, frames):
    made = latent(1, 128, (frames - 1) // 8 + 1, height // 32, width // 32)
    return made, LTXVScheduler.execute(50, 2.05, 0.95, True, 0.1, made).args[0]


def ideogram(width, height):
    return latent(1, 128, height // 16, width // 16), Ideogram4Scheduler.execute(50, width, height, 0.5, 1.75).args[0]


OWN_RULES = [
    *(("flux2-klein", *flux2(side)) for side in (512, 1024, 2048)),
    *(("flux2-dev", *flux2(side)) for side in (512, 1024, 2048)),
    *(("ltxv", *ltx(*size)) for size in ((768, 512, 97), (1216, 704, 121), (512, 512, 9))),
    *(("ltxav-video", *ltx(*size)) for size in ((768, 512, 97), (1280, 704, 121), (512, 512, 9))),
    *(("ideogram4", *ideogram(*size)) for size in ((512, 512), (1024, 1024), (1536, 640))),
]


@pytest.mark.parametrize("name, made, official", OWN_RULES)
def test_auto_equals_the_models_own_scheduler_node(name, made, official):
    found = pack.scheduler(tiny_models.build(name), name, latent=made)
    assert found.tolist() == pytest.approx(official[OF_50].tolist(), abs=1e-5)


def test_auto_equals_the_linear_quadratic_scheduler_on_mochi():
    model = tiny_models.build("mochi")
    official = basic(model, "linear_quadratic")
    assert pack.scheduler(model, "mochi").tolist() == pytest.approx(official[OF_50].tolist(), abs=1e-6)


# Shifts that the official workflows and model cards give these models.
@pytest.mark.parametrize("name, shift", [
    ("wan", 5.0), ("wan", 3.0), ("wan", 12.0), ("hidream", 3.0), ("hidream", 6.0), ("hunyuan-video15", 5.0),
])  # fmt: skip
def test_auto_follows_a_model_sampling_node(name, shift):
    model = ModelSamplingSD3().patch(tiny_models.build(name), shift, 1000.0)[0]
    shifted = [shift * s / (1 + (shift - 1) * s) for s in torch.linspace(1, 0, 51, dtype=torch.float64).tolist()]
    found = pack.scheduler(model, name)
    assert found.tolist() == pytest.approx([shifted[i] for i in OF_50], abs=1e-6)
    assert torch.equal(found, pack.scheduler(model, name, sigmas=basic(model)))


def test_the_models_own_list_stays_its_rule_and_another_becomes_a_list():
    model_sigmas = comfyui.pack_module("nodes.host.model_sigmas").model_sigmas
    metadata = comfyui.pack_module("glance_core.lora.metadata").PairMetadata
    model = tiny_models.build("flux2-klein")
    made, own = flux2(1024)
    shape = tuple(made["samples"].shape)
    for sigmas, rule in ((own, "flux2"), (flux2(512)[1], "list"), (basic(model), "list")):
        found = model_sigmas(model, shape, "auto", metadata(), sigmas)
        assert found.rule == rule and found.values == pytest.approx(sigmas.tolist(), abs=1e-5)
        assert found.listed == (found.values if rule == "list" else None)


def test_splits_count_the_steps_of_a_wired_list():
    model = tiny_models.build("wan")
    sigmas = basic(model, "beta", 30)
    assert torch.equal(pack.scheduler(model, "wan", 3, 5, sigmas=sigmas), sigmas[[0, 2, 4, 6, 12, 18, 24, 29, 30]])
    exact = pack.scheduler(model, "wan", teacher_steps="1,4|9,30", sigmas=sigmas)
    assert torch.equal(exact, sigmas[[0, 3, 8, 29, 30]])
    with pytest.raises(ValueError, match=r"teacher step 31 is not in 1\.\.30"):
        pack.scheduler(model, "wan", teacher_steps="1,4|9,31", sigmas=sigmas)


def test_the_sampler_takes_the_wired_steps_as_comfyuis_own_does():
    model = tiny_models.build("wan")
    sigmas = basic(model, "beta", 20)
    steps = [*split_steps(2, 3, 20).steps, 20]
    expected = pack.host_sample(model, "wan", sigmas[steps])
    assert torch.equal(pack.phase_split(model, "wan", 2, 3, sigmas=sigmas), expected)


@pytest.mark.parametrize("sigmas, sentence", [
    (torch.tensor([1.0, 0.5, 0.6, 0.0]), r"sigmas must fall, but sigma 3 is 0\.6 after 0\.5"),
    (torch.tensor([1.0, 0.5, 0.1]), r"sigmas must end with 0"),
    (torch.tensor([0.7, 0.5, 0.0]), r"begin at 0\.7, but the model's highest noise level is 1; wire .* a whole run"),
    (torch.tensor([1.0, 0.9, 0.8, 0.5, 0.0]), r"slow_steps is 5, but only 1 teacher steps come before Fast"),
])  # fmt: skip
def test_a_list_that_no_teacher_can_take_is_rejected(sigmas, sentence):
    with pytest.raises(ValueError, match=sentence):
        pack.scheduler(tiny_models.build("wan"), "wan", sigmas=sigmas)


def stated(**values):
    return {phase: written_metadata(PairMetadata(phase=phase, **values), phase) for phase in ("slow", "fast")}


@pytest.fixture
def wan():
    return tiny_models.build("wan")


def test_a_pair_brings_its_list(wan, loras, caplog):
    sigmas = tuple(basic(wan, "beta", 20).tolist())
    facts = stated(sigma_rule="list", teacher_steps=20, teacher_sigmas=sigmas, steps="1,3|5,10,20", resolution="64x64")
    with_pair, report = pack.load_pair(wan, *adapters.save_pair(wan, loras, metadata=facts))
    assert "schedule: a list in the file, made at 64x64, teacher steps 1,3|5,10,20 of 20" in report
    found = pack.scheduler(with_pair, "wan", 2, 3, latent=latent(1, 16, 1, 8, 8))
    assert found.tolist() == pytest.approx([sigmas[i] for i in (0, 2, 4, 9, 19, 20)])
    assert "made at" not in caplog.text
    pack.scheduler(with_pair, "wan", 2, 3, latent=latent(1, 16, 1, 16, 8))
    assert "noise levels are a list made at 64x64, and this run is 64x128" in caplog.text
    other = basic(wan, "simple", 20)
    assert torch.equal(pack.scheduler(with_pair, "wan", 2, 3, sigmas=other), other[[0, 2, 4, 9, 19, 20]])
    with pytest.raises(
        ValueError, match=r"^sigmas have 30 teacher steps, but the pair was trained on 20; wire as many"
    ):
        pack.scheduler(with_pair, "wan", 2, 3, sigmas=basic(wan, "beta", 30))


def test_a_list_that_differs_from_the_pairs_rule_is_rejected(loras):
    flux = tiny_models.build("flux")
    facts = stated(sigma_rule="flux", teacher_steps=50, steps="1,3|11,21,50")
    with_pair, _ = pack.load_pair(flux, *adapters.save_pair(flux, loras, metadata=facts))
    with pytest.raises(
        ValueError, match=r"^the noise levels of sigmas differ by 0\.\d+ from the flux sigmas .*; leave"
    ):
        pack.scheduler(with_pair, "flux", 2, 3, sigmas=basic(flux, "beta"))


@pytest.mark.parametrize("change, sentence", [
    ({"teacher_sigmas": None}, "the list rule needs the list itself"),
    ({"teacher_sigmas": (1.0, 0.5, 0.0)}, "the list gave 2 teacher steps instead of 3"),
    ({"teacher_sigmas": (1.0, 0.5, 0.6, 0.0)}, "sigmas must fall"),
])  # fmt: skip
def test_a_damaged_list_in_a_file_is_rejected(wan, loras, change, sentence):
    whole = {"sigma_rule": "list", "teacher_steps": 3, "steps": "1|2", "teacher_sigmas": (1.0, 0.5, 0.2, 0.0)}
    with pytest.raises(ValueError, match=rf"slow\.safetensors: glance\.sigma_rule is list.*{sentence}"):
        pack.load_pair(wan, *adapters.save_pair(wan, loras, metadata=stated(**(whole | change))))


def test_a_pair_whose_model_sampling_is_missing_warns(wan, loras, caplog):
    """The files say `model`: the host's own sigmas, which a ModelSampling node in the training graph had changed."""
    shifted = ModelSamplingSD3().patch(wan, 3.0, 1000.0)[0]
    slow = tuple(basic(shifted)[[0, 2]].tolist())
    facts = stated(sigma_rule="model", teacher_steps=50, steps="1,3|11,21,50", sigmas=slow)
    files = adapters.save_pair(wan, loras, metadata=facts)
    pack.scheduler(pack.load_pair(shifted, *files)[0], "wan", 2, 3)
    assert "other noise levels" not in caplog.text
    pack.scheduler(pack.load_pair(wan, *files)[0], "wan", 2, 3)
    assert "this MODEL has other noise levels than the one that the pair was trained on" in caplog.text


def test_sigmas_of_another_length_or_of_fast_alone_do_not_warn(wan, loras, caplog):
    own = basic(wan)
    common = {"sigma_rule": "model", "teacher_steps": 50, "steps": "1,3|11,21,50"}
    for slow, fast in (((*own[[0, 2, 10, 20, 49, 50]].tolist(), 0.0), None), (None, (0.5, 0.2, 0.1))):
        facts = {
            phase: written_metadata(PairMetadata(phase=phase, sigmas=sigmas, **common), phase)
            for phase, sigmas in (("slow", slow), ("fast", fast))
        }
        pack.scheduler(pack.load_pair(wan, *adapters.save_pair(wan, loras, metadata=facts))[0], "wan", 2, 3)
    assert "other noise levels" not in caplog.text


RULED = {"sigma_rule": "shift", "shift": 3.0, "teacher_steps": 50, "steps": "1,3|11,21,50"}
LEVELS = tuple((torch.linspace(1, 0, 51) ** 2).tolist())
OTHER = "; calibrate this model again, or leave settings unwired"
SETTINGS = {
    "a list that the pair was not trained on": (
        "wan", RULED, "list", LEVELS, r"the noise levels of settings differ by 0\.\d+ from the shift sigmas",
    ),
    "a list of another length": (
        "wan", RULED, "list", (*LEVELS[:30], 0.0), "settings have 30 teacher steps, but the pair was trained on 50",
    ),
    "a list of another kind of model": (
        "sd1", None, "list", LEVELS, "settings begin at 1, but the model's highest noise level is 14.6",
    ),
    "another rule": ("wan", RULED, "model", None, "settings are for model sigmas, but the pair was trained on shift"),
}  # fmt: skip


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_of_another_model_are_named_and_not_sigmas(what, loras):
    name, facts, rule, levels, message = SETTINGS[what]
    model = tiny_models.build(name)
    if facts:
        model, _ = pack.load_pair(model, *adapters.save_pair(model, loras, metadata=stated(**facts)))
    settings = SimpleNamespace(rule=rule, sigmas=levels, split=split_steps(2, 3, 50))
    with pytest.raises(ValueError, match=f"^{message}.*{OTHER}$"):
        pack.scheduler(model, name, settings=settings)


def test_a_list_in_files_of_another_kind_of_model_is_rejected(loras):
    facts = {"sigma_rule": "list", "teacher_steps": 50, "steps": "1,3|11,21,50", "teacher_sigmas": LEVELS}
    model = tiny_models.build("sd1")
    with_pair, _ = pack.load_pair(model, *adapters.save_pair(model, loras, metadata=stated(**facts)))
    with pytest.raises(ValueError, match=r"^the noise levels in the pair's files begin at 1, .*; load the pair on the"):
        pack.scheduler(with_pair, "sd1", 2, 3)


def teacher_inputs(model, sigmas):
    return {
        "model": [model],
        "positive": [tiny_models.conditioning("wan", 1)],
        "cfg": [1.0],
        "schedule": ["auto"],
        "latent_image": [tiny_models.empty_latent("wan")],
        "seed": [3],
        "sigmas": [sigmas],
    }


def test_calibration_and_plot_hand_the_list_to_the_sampler(wan):
    sigmas = basic(wan, "beta", 20)
    calibrated = pack.node("CalibrateGlance").execute(
        model_calls=[4], seconds=[2.0], teacher_runs=[4], **teacher_inputs(wan, sigmas)
    )
    plotted = pack.node("GlancePhasePlot").execute(steps=[4], **teacher_inputs(wan, sigmas))
    for found in (calibrated, plotted):
        settings, report = found.args[0], found.args[-1]
        assert settings.rule == "list" and settings.sigmas == tuple(sigmas.tolist())
        assert "20 steps on list sigmas" in report
        taken = pack.scheduler(wan, "wan", settings=settings)
        assert torch.equal(taken, sigmas[[*settings.split.steps, 20]])
        with pytest.raises(
            ValueError, match="settings bring their own noise levels; wire settings or sigmas, not both"
        ):
            pack.scheduler(wan, "wan", settings=settings, sigmas=sigmas)


def test_a_trained_pair_stores_the_list(wan, loras, node_classes):
    sigmas = basic(wan, "beta", 20)
    _, slow, fast, *_ = train_node.train(wan, "wan", steps=2, sigmas=sigmas)
    metadata = read_adapter(folder_paths.get_full_path("loras", slow)).pair
    assert metadata.sigma_rule == "list" and metadata.teacher_sigmas == tuple(sigmas.tolist())
    with_pair, _ = pack.load_pair(wan, slow, fast)
    steps = [*metadata.split.steps, 20]
    assert torch.equal(pack.scheduler(with_pair, "wan", 2, 2), sigmas[steps])
