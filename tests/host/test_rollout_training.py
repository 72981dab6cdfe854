"""on_policy and end_to_end inside ComfyUI, on models that nothing was tuned for: trained, resumed, loaded, sampled."""

import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node

from glance_core.lora.reader import read_adapter

MODELS = ["qwen-image", "flux", "wan"]
CHECKPOINTING = {"on_policy": True, "end_to_end": False}  # objective -> gradient_checkpointing


def train(model, architecture, objective, **more):
    inputs = {"gradient_checkpointing": CHECKPOINTING[objective], "schedule": "model", "cfg": 2.5, "steps": 3} | more
    return train_node.train(model, architecture, objective=objective, **inputs)


def solver_of(adapter):
    return comfyui.pack_module("glance_core.sampling.solver").Solver.loads(adapter.pair.solver)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("objective", CHECKPOINTING)
@pytest.mark.parametrize("fold_guidance", [False, True])
def test_a_pair_is_saved_with_its_solver_and_sampled_with_it(name, objective, fold_guidance, loras, output):
    model = tiny_models.build(name)
    before = tiny_models.state(model)
    carrying, slow, fast, losses, report = train(model, name, objective, fold_guidance=fold_guidance)
    tiny_models.assert_bit_exact(model, before)
    assert train_node.files(output) == [] and losses.std() > 0
    assert ", 0 unmatched" in report and "solver: fitted for these teacher steps" in report and "3 steps of" in report
    adapters = [read_adapter(loras / file) for file in (slow, fast)]
    assert adapters[0].pair.solver == adapters[1].pair.solver
    assert solver_of(adapters[0]).nfe == (4 if fold_guidance else 8)
    assert {(each.pair.objective, each.pair.fold_guidance) for each in adapters} == {(objective, fold_guidance)}
    results = [
        pack.phase_split(each, name, 2, 2, 2.5, sampler, seed=5)
        for each, sampler in ((carrying, "auto"), (carrying, "euler"), (model, "euler"))
    ]
    assert all(torch.isfinite(result).all() for result in results)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_if_only_the_solver_is_trained_the_files_have_no_other_effect(loras, output):
    adapters = []
    for learn in ("solver", "adapters"):
        train(tiny_models.build("flux"), "flux", "on_policy", learn=learn, name=learn)
        adapters.append(read_adapter(loras / f"{learn}_slow.safetensors"))
    assert not any(factor.up.any() for factor in adapters[0].factors.values())
    assert any(factor.up.any() for factor in adapters[1].factors.values())
    assert adapters[0].pair.solver != adapters[1].pair.solver  # the second's is the one that training began with


@pytest.mark.parametrize("objective", CHECKPOINTING)
def test_training_brings_the_result_closer_to_the_teacher(objective, loras, output):
    """On the very run of the teacher that it learns from, so that few steps are enough."""
    report = train(tiny_models.build("flux"), "flux", objective, steps=50, learning_rate=0.01, teacher_runs=1)[4]
    pair = read_adapter(loras / "tiny_slow.safetensors").pair
    assert pair.psnr_pair > pair.psnr_base + 0.4, report


@pytest.mark.parametrize("objective", CHECKPOINTING)
def test_an_interrupted_run_resumes_to_the_same_bits(objective, loras, output):
    model = tiny_models.build("flux")
    before = tiny_models.state(model)
    train(model, "flux", objective, name="whole")
    with train_node.stopped_at(2, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        train(model, "flux", objective, name="broken")
    tiny_models.assert_bit_exact(model, before)
    assert train_node.files(output / "glance_training") == ["broken.run.safetensors", "broken.teacher.safetensors"]
    train(model, "flux", objective, name="broken")
    for phase in ("slow", "fast"):
        one, other = (read_adapter(loras / f"{name}_{phase}.safetensors") for name in ("whole", "broken"))
        assert one.pair.solver == other.pair.solver
        assert all(torch.equal(factor.up, other.factors[key].up) for key, factor in one.factors.items())


def calibrated_settings(model, name, cfg):
    inputs = {"model_calls": 8, "cfg": cfg, "seconds": 2.0, "schedule": "auto", "seed": 3, "batch_size": 4}
    lists = {key: [value] for key, value in (inputs | {"teacher_runs": 4}).items()} | {
        "positive": [tiny_models.conditioning(name, 1)],
        "negative": [tiny_models.conditioning(name, 2)],
        "latent_image": [tiny_models.empty_latent(name)],
    }
    return pack.node("CalibrateGlance").execute(model=[model], **lists).args[0]


def test_training_begins_with_the_settings_of_a_calibration(loras, output):
    model = tiny_models.build("flux")
    settings = calibrated_settings(model, "flux", 2.5)
    solvers = []
    for learn in ("adapters", "both"):
        train(model, "flux", "on_policy", settings=settings, learning_rate=1e-9, learn=learn, name=learn)
        adapter = read_adapter(loras / f"{learn}_slow.safetensors")
        assert adapter.pair.steps == str(settings.split) and adapter.pair.sigma_rule == settings.rule
        solvers.append(solver_of(adapter))
    assert solvers[0] == settings.solver
    # The second was fitted to the teacher's runs before the first step.
    assert solvers[1].sigma_scale == settings.solver.sigma_scale and solvers[1] != settings.solver
    with pytest.raises(ValueError, match=r"cfg is 3, but the settings were found at cfg 2.5; set cfg to that"):
        train(model, "flux", "on_policy", settings=settings, cfg=3.0)


def test_end_to_end_with_gradient_checkpointing_is_rejected(loras, output):
    message = "keeps the activations of all steps; switch gradient_checkpointing off, or choose on_policy"
    with pytest.raises(ValueError, match=message):
        train(tiny_models.build("flux"), "flux", "end_to_end", gradient_checkpointing=True)


def test_many_teacher_runs_take_every_third_step_if_that_is_close_enough(loras, output, monkeypatch):
    """And a resumed run reports the same."""
    # Random weights are rougher than a trained model.
    monkeypatch.setattr(comfyui.pack_module("glance_core.sampling.cheap_teacher"), "CLOSE_ENOUGH", 30.0)
    inputs = {"teacher_runs": 12, "steps": 2}
    report = train(tiny_models.build("flux"), "flux", "on_policy", name="whole", **inputs)[4]
    line = next(line for line in report.splitlines() if "12 teacher runs" in line)
    assert "every 3rd step in second order reaches " in line and line.endswith("so only these steps"), line
    with train_node.stopped_at(1, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        train(tiny_models.build("flux"), "flux", "on_policy", name="broken", **inputs)
    again = train(tiny_models.build("flux"), "flux", "on_policy", name="broken", **inputs)[4]
    assert line.split("; ")[1] in again
