"""aimed and end to end inside ComfyUI: on models nobody tuned anything for, resumed, saved, loaded, and sampled as they were trained."""

import comfyui
import folder_paths
import pack
import pytest
import tiny
import torch
import training

from glance_core.lora_file import read_adapter

ARCHITECTURES = ["qwen-image", "flux", "wan"]
KINDS = {"aimed": True, "aimed, fold guidance": True, "end to end": False, "end to end, fold guidance": False}


@pytest.fixture
def output(tmp_path, monkeypatch, loras):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def train(model, architecture, objective, **more):
    inputs = {"objective": objective, "gradient_checkpointing": KINDS[objective], "schedule": "model", "cfg": 2.5, "steps": 3, **more}
    return training.train(model, architecture, **inputs)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("objective", KINDS)
def test_what_is_trained_is_saved_with_its_solver_and_sampled(name, objective, loras, output):
    model = tiny.build(name)
    before = tiny.state(model)
    carrying, slow, fast, losses, report = train(model, name, objective)
    tiny.assert_bit_exact(model, before)
    assert training.files(output) == [] and losses.std() > 0
    assert ", 0 unmatched" in report and "solver: fitted for these teacher steps" in report and "3 steps of" in report
    trained = [read_adapter(loras / file).trained for file in (slow, fast)]
    solver = comfyui.pack_module("glance_core.solver").Solver.loads(trained[0].solver)
    assert trained[0].solver == trained[1].solver
    assert solver.forwards == (4 if "fold" in objective else 8)
    positive, negative = tiny.conditioning(name, 1), tiny.conditioning(name, 2)
    results = [
        pack.node("PhaseSplitSampler")
        .execute(each, positive, negative, tiny.empty_latent(name), 5, 2.5, sampler, "auto", 2, 2, 1.0, "")
        .args[0]["samples"]
        for each, sampler in ((carrying, "auto"), (carrying, "euler"), (model, "euler"))
    ]
    assert all(torch.isfinite(result).all() for result in results)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_the_solver_alone_is_trained_and_the_files_have_no_other_effect(loras, output):
    trained = []
    for learn in ("solver", "adapters"):
        train(tiny.build("flux"), "flux", "aimed", learn=learn, name=learn)
        trained.append(read_adapter(loras / f"{learn}_slow.safetensors"))
    assert not any(factor.up.any() for factor in trained[0].factors.values())
    assert any(factor.up.any() for factor in trained[1].factors.values())
    assert trained[0].trained.solver != trained[1].trained.solver  # the second's is the one that training began with


@pytest.mark.parametrize("objective", ["aimed", "end to end"])
def test_training_brings_the_result_nearer_to_the_teacher(objective, loras, output):
    """On the very run of the teacher that it learns from, so that few steps will do."""
    told = train(tiny.build("flux"), "flux", objective, steps=50, learning_rate=0.01, teacher_runs=1)[4]
    trained = read_adapter(loras / "tiny_slow.safetensors").trained
    assert trained.psnr_pair > trained.psnr_base + 0.4, told


@pytest.mark.parametrize("objective", ["aimed", "end to end"])
def test_an_interrupted_run_goes_on_to_the_same_bits(objective, loras, output, monkeypatch):
    model = tiny.build("flux")
    before = tiny.state(model)
    train(model, "flux", objective, name="whole")
    previews = comfyui.pack_module("nodes.training_run")._Previews
    after, seen = previews.after, []

    def stopping(self, done):
        after(self, done)
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(previews, "after", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(model, "flux", objective, name="broken")
    tiny.assert_bit_exact(model, before)
    assert training.files(output / "glance_training") == ["broken.run.safetensors", "broken.teacher.safetensors"]
    train(model, "flux", objective, name="broken")
    for phase in ("slow", "fast"):
        one, other = (read_adapter(loras / f"{name}_{phase}.safetensors") for name in ("whole", "broken"))
        assert one.trained.solver == other.trained.solver
        assert all(torch.equal(factor.up, other.factors[key].up) for key, factor in one.factors.items())


def test_a_calibrations_settings_are_what_training_begins_with(loras, output):
    model = tiny.build("flux")
    inputs = {"forwards": 8, "cfg": 2.5, "seconds": 2.0, "schedule": "auto", "seed": 3, "teacher_runs": 4, "batch_size": 4}
    with torch.inference_mode():
        settings = pack.node("CalibrateGlance").execute(
            [model], [tiny.conditioning("flux", 1)], latent_image=[tiny.empty_latent("flux")], negative=[tiny.conditioning("flux", 2)],
            **{key: [value] for key, value in inputs.items()},
        ).args[0]  # fmt: skip
    solvers = []
    for learn in ("adapters", "both"):
        train(model, "flux", "aimed", settings=settings, learning_rate=1e-9, learn=learn, name=learn)
        trained = read_adapter(loras / f"{learn}_slow.safetensors").trained
        assert trained.steps == str(settings.split) and trained.ladder == settings.kind
        solvers.append(comfyui.pack_module("glance_core.solver").Solver.loads(trained.solver))
    assert solvers[0] == settings.solver
    assert solvers[1].told == settings.solver.told and solvers[1] != settings.solver  # fitted to the teacher's runs before the first step
    with pytest.raises(ValueError, match=r"cfg is 3, but settings were found for a teacher at 2.5; set cfg to it"):
        train(model, "flux", "aimed", settings=settings, cfg=3.0)


def test_end_to_end_asks_for_checkpointing_to_be_off(loras, output):
    with pytest.raises(ValueError, match="keeps the activations of all steps; set gradient_checkpointing to false, or choose aimed"):
        train(tiny.build("flux"), "flux", "end to end", gradient_checkpointing=True)


def test_many_runs_of_the_teacher_are_walked_by_a_third_of_its_steps_where_that_is_near_enough(loras, output, monkeypatch):
    """And a run that is taken up again says the same of them."""
    monkeypatch.setattr(comfyui.pack_module("glance_core.teacher"), "NEAR_ENOUGH", 30.0)  # random weights are rougher than a trained model
    report = train(tiny.build("flux"), "flux", "aimed", name="whole", teacher_runs=12, steps=2)[4]
    told = next(line for line in report.splitlines() if "12 runs of the teacher" in line)
    assert "every 3rd step in second order comes to " in told and told.endswith("near enough to learn from"), told
    previews = comfyui.pack_module("nodes.training_run")._Previews
    after = previews.after

    def stopping(self, done):
        after(self, done)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(previews, "after", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(tiny.build("flux"), "flux", "aimed", name="broken", teacher_runs=12, steps=2)
    again = train(tiny.build("flux"), "flux", "aimed", name="broken", teacher_runs=12, steps=2)[4]
    assert told.split(", by ")[1] in again
