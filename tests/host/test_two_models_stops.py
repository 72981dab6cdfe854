"""Interrupts, errors and missing memory at any step of a run of two models; and what it loads."""

import random
import threading

import adapters
import comfy.model_management
import comfy.samplers
import latent_preview
import pack
import pytest
import tiny_models
import torch
import two_models
from faults import AtOperation, left_on

ERRORS = [comfy.model_management.InterruptProcessingException, torch.OutOfMemoryError, ValueError, KeyboardInterrupt]


@pytest.fixture
def models(loras):
    """Two models, each with a pair of its own."""
    plain = two_models.both()
    return plain, [pack.load_pair(each, *adapters.save_pair(each, loras))[0] for each in plain]


def sample(pairs, **options):
    return pack.phase_split(pairs[0], "wan", 2, 2, 3.0, "res_multistep", late_model=pairs[1], late_cfg=1.0, **options)


def assert_untouched(plain, pairs, states, traces):
    for each, with_pair, state, trace in zip(plain, pairs, states, traces, strict=True):
        tiny_models.assert_bit_exact(each, state)
        assert left_on(each, state) == ""
        assert trace == traces_of(with_pair)
    assert not any(thread.name == "glance sampler" for thread in threading.enumerate())


def traces_of(model):
    """What a run adds to a MODEL and takes away again."""
    wrappers = {(kind, key): len(found) for kind, keys in model.wrappers.items() for key, found in keys.items()}
    return wrappers, sorted(model.injections), model.is_injected, model.hook_mode, model.model.current_patcher


class FailingCall:
    """The network of one of the models raises instead of its `at`-th answer, counted over both."""

    def __init__(self, plain, at, error):
        self.left, self.error = at, error
        self.handles = [each.model.diffusion_model.register_forward_pre_hook(self._called) for each in plain]

    def _called(self, *_):
        self.left -= 1
        if self.left == 0:
            raise self.error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def test_a_hundred_broken_runs_leave_both_models_as_they_were_and_the_next_run_right(models):
    plain, pairs = models
    unbroken = sample(pairs)
    states, traces = [tiny_models.state(each) for each in plain], [traces_of(each) for each in pairs]
    rng = random.Random(0)
    with AtOperation() as operations:
        sample(pairs)
    for number in range(100):
        error = ERRORS[number % len(ERRORS)]("broken")
        if number < 80:
            fault = FailingCall(plain, 1 + number // len(ERRORS) % 4, error)
        else:
            fault = AtOperation(rng.randrange(1, operations.count), error)
        with pytest.raises(type(error)), fault:
            sample(pairs)
        assert_untouched(plain, pairs, states, traces)
        if number % 10 == 9:
            assert torch.equal(sample(pairs), unbroken), number


@pytest.mark.parametrize("error", ERRORS)
def test_error_of_the_callback_ends_the_run(error, models, monkeypatch):
    """An interrupt comes up in the preview too."""
    plain, pairs = models
    unbroken = sample(pairs)
    states, traces = [tiny_models.state(each) for each in plain], [traces_of(each) for each in pairs]
    for at in range(4):

        def prepared(*_, at=at):
            def callback(step, *_):
                if step == at:
                    raise error("broken")

            return callback

        with monkeypatch.context() as patch:
            patch.setattr(latent_preview, "prepare_callback", prepared)
            with pytest.raises(error):
                sample(pairs)
        assert_untouched(plain, pairs, states, traces)
    assert torch.equal(sample(pairs), unbroken)


@pytest.mark.parametrize("error", ERRORS)
def test_error_of_the_sampler_itself_ends_the_run_on_either_side(error, models):
    """And a sampler that handles an error of the model goes on, as in a run of one model."""
    plain, pairs = models
    sigmas = two_models.sigmas_of(plain[0])
    sample(pairs)  # ComfyUI marks a MODEL as injected while it is loaded
    states, traces = [tiny_models.state(each) for each in plain], [traces_of(each) for each in pairs]

    def failing(model, x, sigmas, extra_args=None, stop=0, **_):
        for sigma in sigmas[:stop]:
            x = model(x, sigma * x.new_ones(len(x)), **extra_args)
        raise error("broken")

    def patient(model, x, sigmas, extra_args=None, **_):
        for sigma in (sigmas[0], sigmas[0], sigmas[4]):
            try:
                x = model(x, sigma * x.new_ones(len(x)), **extra_args)
            except ValueError:
                handled.append(float(sigma))
        return x

    handled = []
    for stop in (0, 2, 5):
        sampler = comfy.samplers.KSAMPLER(failing, {"stop": stop})
        with pytest.raises(error, match="broken"):
            two_models.run(two_models.guider(pairs, "wan", 3), "wan", sigmas, sampler)
        assert_untouched(plain, pairs, states, traces)
    with FailingCall(plain, 1, ValueError()):
        two_models.run(two_models.guider(pairs, "wan", 3), "wan", sigmas, comfy.samplers.KSAMPLER(patient))
    assert handled == [float(sigmas[0])]
    assert_untouched(plain, pairs, states, traces)


def test_late_model_that_cannot_be_loaded_leaves_both_as_they_were(models, monkeypatch):
    plain, pairs = models
    unbroken = sample(pairs)
    states, traces = [tiny_models.state(each) for each in plain], [traces_of(each) for each in pairs]
    load = comfy.model_management.load_models_gpu

    def without_memory(models, *args, **kwargs):
        if any(each.model is plain[1].model for each in models):
            raise torch.OutOfMemoryError("no room")
        return load(models, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", without_memory)
        with pytest.raises(torch.OutOfMemoryError):
            sample(pairs)
    assert_untouched(plain, pairs, states, traces)
    assert torch.equal(sample(pairs), unbroken)


def test_each_model_is_loaded_once_and_the_late_one_only_at_the_boundary(models, monkeypatch):
    plain, pairs = models
    events = []
    handles = [
        each.model.diffusion_model.register_forward_pre_hook(lambda *_, at=at: events.append(f"call {at}"))
        for at, each in enumerate(plain)
    ]
    with two_models.Loads(monkeypatch, plain) as loads:
        loads.order = events
        sample(pairs)
    for handle in handles:
        handle.remove()
    assert events == [0, "call 0", "call 0", 1, "call 1", "call 1"]
    for denoise, only in ((0.5, 1), (1.0, None)):
        with two_models.Loads(monkeypatch, plain) as loads:
            sample(pairs, denoise=denoise)
        assert loads.order == ([only] if only is not None else [0, 1])
