"""Whatever a run does, the base model is bit-identical and unwrapped afterwards, and its other clones are the base."""

import copy
import gc

import adapters
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import pack
import pytest
import tiny_models
import torch
from safetensors.torch import load_file

NAMES = ["flux", "qwen-image", "sd1"]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return tiny_models.build(name)


@pytest.fixture
def with_pair(model, loras):
    return pack.load_pair(model, *adapters.save_pair(model, loras))[0]


def test_base_is_bit_exact_after_a_normal_run(name, model, with_pair):
    before, base = tiny_models.state(model), pack.phase_split(model, name)
    assert not torch.equal(pack.phase_split(with_pair, name), base)
    tiny_models.assert_bit_exact(model, before)


def test_sibling_clone_sampled_right_after_is_bitwise_the_base(name, model, with_pair):
    before, base = tiny_models.state(model), pack.phase_split(model, name)
    pack.phase_split(with_pair, name)
    assert torch.equal(pack.phase_split(model.clone(), name), base)
    pack.phase_split(with_pair, name)
    assert torch.equal(pack.phase_split(model, name), base)
    tiny_models.assert_bit_exact(model, before)


def test_two_pairs_on_siblings_do_not_mix(name, model, with_pair, loras):
    slow, fast = adapters.save_pair(model, loras, size=0.2)  # under the same names, as after another training run
    other = pack.load_pair(model, slow, fast)[0]
    first, second = pack.phase_split(with_pair, name), pack.phase_split(other, name)
    assert not torch.equal(first, second)
    assert torch.equal(pack.phase_split(with_pair, name), first)
    assert torch.equal(pack.phase_split(other, name), second)


class Fails:
    """Raises in call number `at`."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, executor, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return executor(*args, **kwargs)


OF_EACH_STEP = ["DIFFUSION_MODEL", "APPLY_MODEL", "PREDICT_NOISE"]  # wrappers that are called once per step


@pytest.mark.parametrize("step", [1, 5, 6, 10])
@pytest.mark.parametrize("where", [*OF_EACH_STEP, "SAMPLER_SAMPLE", "OUTER_SAMPLE"])
def test_base_is_bit_exact_after_an_exception_in_mid_sampling(name, model, with_pair, where, step):
    before, base, good = tiny_models.state(model), pack.phase_split(model, name), pack.phase_split(with_pair, name)
    failing = with_pair.clone()
    at = step if where in OF_EACH_STEP else 1
    failing.add_wrapper(getattr(comfy.patcher_extension.WrappersMP, where), Fails(at, RuntimeError("injected")))
    with pytest.raises(RuntimeError, match="injected"):
        pack.phase_split(failing, name)
    tiny_models.assert_bit_exact(model, before)
    assert torch.equal(pack.phase_split(model, name), base)
    assert torch.equal(pack.phase_split(with_pair, name), good)


def test_base_is_bit_exact_after_an_interrupt_by_the_user(name, model, with_pair):
    before, base, good = tiny_models.state(model), pack.phase_split(model, name), pack.phase_split(with_pair, name)
    sigmas = pack.scheduler(with_pair, name)
    for step in range(10):

        def interrupt(i, *_, step=step):
            if i == step:
                comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

        with pytest.raises(comfy.model_management.InterruptProcessingException):
            pack.host_sample(with_pair, name, sigmas, callback=interrupt)
        tiny_models.assert_bit_exact(model, before)
    assert torch.equal(pack.phase_split(model, name), base)
    assert torch.equal(pack.phase_split(with_pair, name), good)


def test_strength_zero_is_bitwise_the_base_and_wraps_nothing(name, model, loras):
    before, base = tiny_models.state(model), pack.phase_split(model, name)
    slow, fast = adapters.save_pair(model, loras)
    silent, _ = pack.load_pair(model, slow, fast, 0.0, 0.0)
    assert torch.equal(pack.phase_split(silent, name), base)
    assert silent.wrappers == model.wrappers
    assert silent.additional_models == {}
    slow_only, _ = pack.load_pair(model, slow, fast, 1.0, 0.0)
    both, _ = pack.load_pair(model, slow, fast)
    assert not torch.equal(pack.phase_split(slow_only, name), base)
    assert not torch.equal(pack.phase_split(slow_only, name), pack.phase_split(both, name))
    tiny_models.assert_bit_exact(model, before)


def test_base_is_bit_exact_after_loading_with_little_memory(name, model, with_pair, monkeypatch):
    before, base, good = tiny_models.state(model), pack.phase_split(model, name), pack.phase_split(with_pair, name)
    comfy.model_management.unload_all_models()
    partially_load = comfy.model_patcher.ModelPatcher.partially_load

    def with_little_memory(self, device_to, extra_memory=0, **kwargs):
        return partially_load(self, device_to, min(extra_memory, 200_000), **kwargs)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "partially_load", with_little_memory)
    assert torch.equal(pack.phase_split(with_pair, name), good)
    assert model.model.model_lowvram, "there was enough memory, so this test shows nothing"
    assert torch.equal(pack.phase_split(model, name), base)
    monkeypatch.undo()
    comfy.model_management.unload_all_models()
    tiny_models.assert_bit_exact(model, before)


def test_model_that_comfyui_unloads_in_mid_run_keeps_its_pair(name, model, with_pair):
    good = pack.phase_split(with_pair, name)

    def unload(i, *_):
        if i in (2, 7):
            comfy.model_management.unload_all_models()

    assert torch.equal(pack.host_sample(with_pair, name, pack.scheduler(with_pair, name), callback=unload), good)


def test_block_replaced_between_two_runs_gets_its_branches(loras):
    model = tiny_models.build("flux")
    with_pair = pack.load_pair(model, *adapters.save_pair(model, loras))[0]
    good = pack.phase_split(with_pair, "flux")
    replaced, block = with_pair.clone(), copy.deepcopy(model.model.diffusion_model.double_blocks[0])
    replaced.add_object_patch("diffusion_model.double_blocks.0", block)
    assert torch.equal(pack.phase_split(replaced, "flux"), good)


def test_clone_deleted_in_mid_run_takes_nothing_off_the_model(name, model, with_pair):
    """ModelPatcher.__del__ ejects injections, and a clone counts as injected if its parent was."""
    good = pack.phase_split(with_pair, name)
    sigmas = pack.scheduler(with_pair, name)

    def clone_and_delete(i, *_):
        with_pair.clone()
        gc.collect()

    assert torch.equal(pack.host_sample(with_pair, name, sigmas, callback=clone_and_delete), good)


def test_pair_survives_when_comfyui_renews_its_injections_in_mid_run(name, model, with_pair, loras):
    """Weight hooks and partial unloading eject and inject in mid-run. A bypass LoRA below drops whatever wrapped it."""
    before = tiny_models.state(model)
    style = adapters.state_dict(model, 5)
    bypassed = comfy.sd.load_bypass_lora_for_models(with_pair, None, style, 0.5, 0)[0]
    expected = pack.phase_split(bypassed, name)
    sigmas = pack.scheduler(bypassed, name)

    def renew(i, *_):
        with bypassed.use_ejected():
            pass

    assert torch.equal(pack.host_sample(bypassed, name, sigmas, callback=renew), expected)
    comfy.model_management.unload_all_models()
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("order", ["merged below", "merged above", "bypass below", "bypass above"])
def test_style_lora_and_pair_add_up(name, model, loras, order):
    slow, fast = adapters.save_pair(model, loras)
    style = adapters.state_dict(model, 5)
    how, where = order.split()
    load_style = {"merged": comfy.sd.load_lora_for_models, "bypass": comfy.sd.load_bypass_lora_for_models}[how]
    if where == "below":
        both = pack.load_pair(load_style(model, None, style, 0.5, 0)[0], slow, fast)[0]
    else:
        both = load_style(pack.load_pair(model, slow, fast)[0], None, style, 0.5, 0)[0]
    sigmas = pack.scheduler(model, name)
    with_style = pack.merged(model, style, 0.5)
    merged = [pack.merged(with_style, load_file(loras / file)) for file in (slow, fast)]
    truth = pack.chained(*merged, name, sigmas, 5)
    comfy.model_management.unload_all_models()
    before = tiny_models.state(model)
    assert pack.relative(pack.phase_split(both, name), truth) < 1e-5
    comfy.model_management.unload_all_models()
    tiny_models.assert_bit_exact(model, before)


def test_two_pairs_on_one_model_add_up(name, model, loras):
    slow, fast = adapters.save_pair(model, loras, size=0.05)
    once = pack.load_pair(model, slow, fast)[0]
    twice = pack.load_pair(once, slow, fast)[0]
    double = pack.load_pair(model, slow, fast, 2.0, 2.0)[0]
    assert pack.relative(pack.phase_split(twice, name), pack.phase_split(double, name)) < 1e-5


def test_file_that_changes_after_loading_changes_nothing(name, model, with_pair, loras):
    """Tensors of a safetensors file are mapped, not read. A loaded pair must not depend on the file any more."""
    good = pack.phase_split(with_pair, name)
    for file in loras.iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)
    assert torch.equal(pack.phase_split(with_pair, name), good)


def test_comfyui_places_and_counts_the_memory_of_a_pair(name, model, with_pair):
    pack.phase_split(with_pair, name)
    loaded = [type(patcher.model).__name__ for patcher in comfy.model_management.loaded_models()]
    assert "PhaseWeights" in loaded


def test_hundred_runs_leave_no_models_wrappers_or_tensors(loras):
    model = tiny_models.build("qwen-image")
    names = adapters.save_pair(model, loras)
    counts = []
    for i in range(100):
        pack.phase_split(pack.load_pair(model, *names)[0], "qwen-image", 1, 1)
        if i in (20, 99):
            gc.collect()
            counts.append(sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects()))
    assert counts[1] <= counts[0] + 5
    assert len(comfy.model_management.current_loaded_models) <= 2
