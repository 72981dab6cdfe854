"""TrainGlanceAdapter inside ComfyUI: what it trains, writes and reports; the base and the host as they were, whatever happens."""

from pathlib import Path

import comfy.model_management
import comfy.samplers
import comfy.sd
import comfyui
import folder_paths
import pack
import pytest
import tiny
import torch
import training
from comfy.patcher_extension import WrappersMP
from safetensors.torch import load_file

from glance_core.lora_file import check_pair, read_adapter


@pytest.fixture
def output(tmp_path, monkeypatch, loras):
    """ComfyUI's output folder for this test."""
    folder = tmp_path / "output"
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


def run_folder(output):
    return output / "glance_training"


def host(name):
    return comfyui.pack_module(f"nodes.{name}")


def stop_at(monkeypatch, step, error):
    """Let the `step`-th training step of a run end in `error`."""
    previews = host("training_run")._Previews
    after, seen = previews.after, []

    def stopping(self, done):
        after(self, done)
        seen.append(done)
        if len(seen) == step:
            raise error

    monkeypatch.setattr(previews, "after", stopping)
    return lambda: monkeypatch.setattr(previews, "after", after)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_pair_is_trained_saved_and_loaded_and_the_base_is_bit_exact(name, loras, output):
    model = tiny.build(name)
    before = tiny.state(model)
    carrying, slow, fast, losses, report = training.train(model, name, schedule="model")
    tiny.assert_bit_exact(model, before)
    assert sorted([slow, fast]) == training.files(loras) == ["tiny_fast.safetensors", "tiny_slow.safetensors"]
    assert training.files(output) == []  # what an unfinished run keeps is gone
    adapters = [read_adapter(loras / file) for file in (slow, fast)]
    assert check_pair(*adapters) == ()
    assert {a.trained.base for a in adapters} == {host("host").architecture(model)}
    assert losses.shape[0] == 1 and losses.shape[-1] == 3 and 0 <= float(losses.min()) < float(losses.max()) <= 1
    assert ", 0 unmatched" in report and "assumed" not in report and "bare base on the same ladder" in report
    assert host("pair").pair_of(carrying) is not None and host("pair").pair_of(model) is None
    assert not comfy.model_management.in_training


@pytest.mark.parametrize("name", ["flux", "qwen-image", "sd1"])
@pytest.mark.parametrize("stored", ["fp32", "fp8-stored"])
def test_the_function_trained_is_the_function_loaded(name, stored, loras, output, monkeypatch):
    """The last loss's model, differentiable, and the saved pair in a sampler agree on a velocity to 1e-5."""
    built = {} if stored == "fp32" else {"dtype": torch.float8_e4m3fn, "manual_cast": torch.float32}
    model = tiny.build(name, **built)
    glue, core = host("student"), {m: comfyui.pack_module(f"glance_core.{m}") for m in ("lora_layers", "student", "frozen")}
    training.train(model, name, schedule="model", learning_rate=0.02, steps=6)
    adapter = read_adapter(loras / "tiny_slow.safetensors")
    x = torch.randn((1, *tiny.MODELS[name].latent), generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([adapter.trained.sigmas[0]])
    found = {}

    def trained_way(conditioned, latents):
        learner = glue.student(model, conditioned, 1.0, glue.slots(model, "attention"), False)
        layers = core["lora_layers"].LoraLayers(learner.slots, core["lora_layers"].Lora(2, 4.0), "slow", 0)
        for slot in learner.slots:
            down, up = layers.pair(slot)
            down.detach().copy_(adapter.factors[slot].down)
            up.detach().copy_(adapter.factors[slot].up)
        found["bare"] = learner.velocity(x, sigma, torch.tensor([0]))
        with core["frozen"].forwards(core["student"].changed_forwards(learner, layers)):
            found["trained"] = learner.velocity(x, sigma, torch.tensor([0])).detach()

    latents = tiny.empty_latent(name)["samples"]
    glue.run(model, tiny.conditioning(name, 1), [], latents, 0, "auto", 0, trained_way)
    carrying, _ = pack.load_pair(model, "tiny_slow.safetensors", "tiny_fast.safetensors")
    merged = comfy.sd.load_lora_for_models(model, None, load_file(loras / "tiny_slow.safetensors"), 1.0, 0)[0]
    for way, tolerance in ((carrying, 1e-5), (merged, 1e-5 if stored == "fp32" else None)):
        seen = {}

        def one_step(inner, noise, sigmas, extra_args=None, seen=seen, **_):
            denoised = inner(x, sigma, **(extra_args or {}))
            seen["velocity"] = (x - denoised) / sigma
            return noise

        pack.host_sample(way, name, torch.tensor([1.0, 0.0]), sampler=comfy.samplers.KSAMPLER(one_step))
        far = (found["trained"] - seen["velocity"]).norm() / seen["velocity"].norm()
        moved = (found["bare"] - seen["velocity"]).norm() / seen["velocity"].norm()
        assert moved > 1e-3
        if tolerance:
            assert far < tolerance


@pytest.mark.parametrize("objective", ["trajectory", "trajectory, fold guidance"])
def test_the_loss_falls_at_every_sigma(objective, loras, output, monkeypatch):
    seen = []
    plans = host("train")
    monkeypatch.setattr(plans, "plot_losses", lambda history, *more, plot=plans.plot_losses: seen.append(history) or plot(history, *more))
    training.train(tiny.build("flux"), "flux", objective=objective, cfg=2.0, teacher_runs=1, steps=40, learning_rate=0.02)
    for point in range(4):
        own = [loss for at, loss in zip(seen[0].points, seen[0].losses, strict=True) if at == point]
        assert len(own) == 20
        assert sum(own[-5:]) < 0.9 * sum(own[:5])


@pytest.mark.parametrize("kind", ["exception", "interrupt", "out of memory"])
@pytest.mark.parametrize("step", [1, 6])
def test_what_ends_a_run_leaves_the_base_and_the_host_as_they_were_and_the_run_goes_on_bit_for_bit(kind, step, loras, output, monkeypatch):
    model = tiny.build("flux")
    before = tiny.state(model)
    training.train(model, "flux", name="whole")
    error = {"exception": RuntimeError("stop"), "interrupt": comfy.model_management.InterruptProcessingException(),
             "out of memory": torch.OutOfMemoryError("stop")}[kind]  # fmt: skip
    mend = stop_at(monkeypatch, step, error)
    with pytest.raises(type(error)):
        training.train(model, "flux", name="broken")
    mend()
    tiny.assert_bit_exact(model, before)
    assert not comfy.model_management.in_training
    assert training.files(run_folder(output)) == ["broken.run.safetensors", "broken.teacher.safetensors"]
    training.train(model, "flux", name="broken")
    assert training.files(output) == []
    for phase in ("slow", "fast"):
        whole, broken = (load_file(loras / f"{name}_{phase}.safetensors") for name in ("whole", "broken"))
        assert whole.keys() == broken.keys() and all(torch.equal(whole[key], broken[key]) for key in whole)


def with_forward(model, number, act):
    """A clone of the model whose forward of this number, from 1, is act(forward)."""
    seen = []

    def acting(executor, *args, **kwargs):
        seen.append(1)
        return act(lambda: executor(*args, **kwargs)) if len(seen) == number else executor(*args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", acting)
    return patched


def test_an_interrupt_inside_a_forward_keeps_what_was_done(loras, output):
    """The host's own interrupt is raised by its layers, in the middle of a step."""
    model = tiny.build("flux")
    before = tiny.state(model)

    def interrupted(forward):
        comfy.model_management.interrupt_current_processing()
        return forward()

    patched = with_forward(model, 57, interrupted)  # 50 forwards of the teacher, then the seventh step
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        training.train(patched, "flux")
    comfy.model_management.interrupt_current_processing(False)
    tiny.assert_bit_exact(model, before)
    tensors = load_file(run_folder(output) / "tiny.run.safetensors")
    assert len(tensors["history/losses"]) == 6


def test_a_loss_that_is_no_number_stops_with_the_last_good_state_kept(loras, output):
    model = tiny.build("flux")
    before = tiny.state(model)
    patched = with_forward(model, 56, lambda forward: forward() * float("nan"))
    with pytest.raises(
        ValueError, match=r"stopped at step 2 of fast: the loss is nan; the last good state is kept in tiny.run.safetensors; lower"
    ):
        training.train(patched, "flux")
    tiny.assert_bit_exact(model, before)
    kept = load_file(run_folder(output) / "tiny.run.safetensors")
    assert len(kept["history/losses"]) == 4 and all(torch.isfinite(value).all() for value in kept.values())


def test_no_file_is_overwritten_and_resume_off_starts_beside_an_unfinished_run(loras, output, monkeypatch):
    model = tiny.build("flux")
    first = training.train(model, "flux")[1:3]
    kept = {name: (loras / name).read_bytes() for name in first}
    assert training.train(model, "flux", seed=1)[1:3] == ("tiny-2_slow.safetensors", "tiny-2_fast.safetensors")
    assert {name: (loras / name).read_bytes() for name in first} == kept
    mend = stop_at(monkeypatch, 2, RuntimeError("stop"))
    with pytest.raises(RuntimeError):
        training.train(model, "flux", name="other")
    mend()
    unfinished = (run_folder(output) / "other.run.safetensors").read_bytes()
    training.train(model, "flux", name="other", resume=False, seed=5)
    assert (run_folder(output) / "other.run.safetensors").read_bytes() == unfinished
    with pytest.raises(ValueError, match=r"other\.run\.safetensors holds a run with rank 2, this one has 3"):
        training.train(model, "flux", name="other", rank=3)


def test_a_pair_worse_than_the_bare_base_is_called_so(loras, output):
    model = tiny.build("flux")
    *_, report = training.train(model, "flux", objective="flow_matching", latent=training.picture("flux"), learning_rate=0.1, steps=20)
    assert report.startswith("WORSE THAN THE BARE BASE")
    trained = read_adapter(loras / "tiny_slow.safetensors").trained
    assert trained.psnr_pair < trained.psnr_base
    assert trained.image_sha256 is not None
    assert "WORSE than the bare base" in pack.load_pair(model, "tiny_slow.safetensors", "tiny_fast.safetensors")[1]


def test_a_pair_that_does_not_help_is_kept_from_doing_harm(loras, output):
    """The files load, and sample as the bare base does, bit for bit."""
    model = tiny.build("flux")
    wrong = {"objective": "flow_matching", "latent": training.picture("flux"), "learning_rate": 0.1, "steps": 20, "keep": "what helps"}
    carrying, *_, report = training.train(model, "flux", **wrong)
    assert report.startswith("NOTHING OF IT HELPED, so the files have no effect: all that was trained comes to -")
    assert "kept when trained: nothing" in report
    trained = read_adapter(loras / "tiny_fast.safetensors").trained
    assert trained.kept == "nothing" and trained.verdict == report.splitlines()[0]
    assert trained.psnr_pair == trained.psnr_base
    inputs = (tiny.conditioning("flux", 1), tiny.conditioning("flux", 2), tiny.empty_latent("flux"), 5, 1.0, "euler", "auto", 2, 2, 1.0, "")
    pair, bare = (pack.node("PhaseSplitSampler").execute(each, *inputs).args[0]["samples"] for each in (carrying, model))
    assert torch.equal(pair, bare)


def test_what_is_not_kept_can_be_had_all_the_same(loras, output):
    """Hours of training are not thrown away because a check of few pictures was not sure."""
    wrong = {"objective": "flow_matching", "latent": training.picture("flux"), "learning_rate": 0.1, "steps": 20}
    *_, report = training.train(tiny.build("flux"), "flux", **wrong, keep="what helps")
    whole = [Path(line) for line in report.splitlines() if "_whole_" in line]
    assert [path.name for path in whole] == ["tiny_whole_slow.safetensors", "tiny_whole_fast.safetensors"]
    assert {path.parent for path in whole} == {run_folder(output)} and sorted(run_folder(output).iterdir()) == sorted(whole)
    training.train(tiny.build("flux"), "flux", **wrong, keep="everything", name="all")
    for path, phase in zip(whole, ("slow", "fast"), strict=True):
        kept, found = read_adapter(loras / f"all_{phase}.safetensors"), read_adapter(path)
        assert all(torch.equal(found.factors[name].up, kept.factors[name].up) for name in kept.factors)
        assert found.trained.verdict.startswith("WORSE THAN THE BARE BASE")


@pytest.mark.parametrize("wrong, told", [
    ({"objective": "flow_matching"}, "flow_matching needs a picture, and latent is empty"),
    ({"cfg": 4.0, "negative": []}, "cfg is 4, which needs a negative prompt"),
    ({"targets": "nothing_like_this"}, "finds none of the model's"),
    ({"learn": "solver"}, "learn is solver, and trajectory has no solver to learn; choose aimed or "),
    ({"targets": "(("}, "nor a regular expression"),
    ({"caption_dropout": 0.5, "negative": []}, "caption_dropout is 0.5, which needs a negative prompt"),
    ({"positive": []}, "positive is empty"),
    ({"optimizer": "adamw8bit"}, "needs bitsandbytes"),
    ({"objective": "flow_matching", "latent": {"samples": torch.ones(3, 16, 8, 8)}, "positive": tiny.conditioning("flux", 1) * 2}, "3 pictures and positive 2 captions"),
    ({"schedule": "qwen-image", "slow_steps": 20}, "slow_steps = 20 does not fit"),
])  # fmt: skip
def test_what_cannot_work_is_refused_in_one_sentence(wrong, told, loras, output):
    model = tiny.build("flux")
    before = tiny.state(model)
    with pytest.raises(ValueError, match=told) as refused:
        training.train(model, "flux", **wrong)
    assert "\n" not in str(refused.value)
    tiny.assert_bit_exact(model, before)
    assert training.files(loras) == []


def test_a_model_that_carries_a_pair_is_refused(loras, output):
    model = tiny.build("flux")
    carrying = training.train(model, "flux")[0]
    with pytest.raises(ValueError, match="carries a Glance pair already"):
        training.train(carrying, "flux")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "con\n", "x" * 200])
def test_a_name_that_is_no_file_name_is_refused_before_anything_runs(name):
    told = pack.node("TrainGlanceAdapter").validate_inputs(name=[name])
    assert told is not True and "is no file name" in told


def test_the_papers_settings_are_the_defaults_of_its_models(loras, output):
    plans = host("train")
    for name, expected in (("flux", (16, 64.0, 5e-4, 60, 0.01, 14)), ("qwen-image", (32, 128.0, 3e-4, 60, 0.0, 24))):
        model = tiny.build(name)
        inputs = training.INPUTS | {"rank": 0, "alpha": 0.0, "learning_rate": 0.0, "steps": 0, "targets": "auto", "optimizer": "auto"}
        plan = plans._plan(model, [tiny.empty_latent(name)], tiny.conditioning(name), tiny.conditioning(name), [], inputs)
        s = plan.settings
        assert (s.lora.rank, s.lora.alpha, s.learning_rate, s.steps, s.weight_decay, len(plan.slots)) == expected
        assert s.lora.init == "gaussian"


def test_progress_and_pictures_reach_the_node(loras, output, monkeypatch):
    from server import PromptServer

    said, shown = [], []

    class Listener:
        def send_progress_text(self, text, node_id):
            said.append(text)

    monkeypatch.setattr(PromptServer, "instance", Listener(), raising=False)
    live = host("live")
    update = live.comfy.utils.ProgressBar.update_absolute
    monkeypatch.setattr(
        live.comfy.utils.ProgressBar,
        "update_absolute",
        lambda bar, v, t=None, p=None: (shown.append((v, t, p)), update(bar, v, t, None))[1],
    )
    monkeypatch.setattr(live.Live, "__init__", (lambda init: lambda self, node_id, total: init(self, "7", total))(live.Live.__init__))
    training.train(tiny.build("flux"), "flux", preview_every=3, steps=6)
    assert any("loss" in text and "/s" in text for text in said)
    values = [value for value, _, _ in shown]
    assert values == sorted(values) and values[-1] == shown[-1][1]
    pictures = [preview for _, _, preview in shown if preview is not None]
    assert len(pictures) == 5 and all(kind == "JPEG" and image.width > 0 for kind, image, _ in pictures)
