"""Installing and removing the switch are exact inverses, also after exceptions, interrupts and other people's hooks."""

import gc
import weakref

import pytest
import torch
from switched_model import CPU, Model, has_own_forward, install, low_rank, merged, two_phases
from torch import nn
from torch.nn import Linear

from glance_core.errors import SwitchError
from glance_core.switch import PhaseSwitch, PhaseWeights


def test_install_and_remove_are_exact_inverses():
    model = Model()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    switch = install(two_phases(), model)
    assert switch.installed
    switch.install(model, CPU)
    switch.select(1)
    switch.remove()
    switch.remove()
    assert not switch.installed
    assert switch.phase is None
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


def test_a_forward_that_was_set_on_the_instance_comes_back():
    model = Model()
    own = model.proj.forward = lambda x: nn.functional.linear(x, model.proj.weight) * 3
    x = torch.randn(2, 8)
    base = model(x)
    switch = install(two_phases(), model)
    assert torch.equal(model(x), base)
    switch.remove()
    assert model.proj.__dict__["forward"] is own


def test_a_switch_removed_from_below_another_has_no_effect_and_is_cleaned_up_later():
    model, x = Model(), torch.randn(3, 8)
    phases = [{"proj": [low_rank(1, 8, 24)]}]
    base = model(x)
    below, above = install(phases, model), install([{"proj": [low_rank(2, 8, 24)]}], model)
    below.select(0)
    below.remove()
    assert torch.equal(model(x), base)
    above.remove()
    assert torch.equal(model(x), base)
    below.install(model, CPU)  # finds its own stranded hook, removes it and starts clean
    below.select(0)
    with torch.no_grad():
        assert torch.allclose(model(x), merged(phases[0])(x), atol=1e-4)
    below.remove()
    assert "forward" not in model.proj.__dict__


def test_a_hook_that_somebody_else_removed_is_not_put_back():
    model = Model()
    switch = install(two_phases(), model)
    del model.proj.__dict__["forward"]
    switch.remove()
    assert not has_own_forward(model)
    switch.install(model, CPU)
    switch.remove()
    assert not has_own_forward(model)


def test_an_exception_during_install_leaves_nothing_behind():
    model = Model()
    phases = two_phases()
    phases[0]["no.such.module"] = phases[0]["proj"]
    with pytest.raises(SwitchError, match=r"no\.such\.module"):
        install(phases, model)

    class Locked(nn.Linear):
        def __setattr__(self, name, value):
            if name == "forward":
                raise RuntimeError("locked")
            super().__setattr__(name, value)

    model.unknown = Locked(8, 6)
    with pytest.raises(RuntimeError, match="locked"):
        install(two_phases(), model)
    assert not has_own_forward(model)


def test_an_exception_in_a_forward_leaves_the_switch_removable():
    model = Model()
    switch = install(two_phases(), model)
    switch.select(0)
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 7))
    switch.remove()
    assert not has_own_forward(model)


class Interrupted(Linear):
    """The user's interrupt comes between the first target and this one, just after its forward was set."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "forward":
            raise KeyboardInterrupt


def test_an_interrupt_during_install_removes_the_branches_that_were_installed():
    model = Model()
    model.proj = Interrupted(24, 8, bias=False)
    switch = PhaseSwitch(PhaseWeights(two_phases(), torch.float32))
    with pytest.raises(KeyboardInterrupt):
        switch.install(model, CPU)
    assert not switch.installed
    assert not has_own_forward(model)


def test_targets_that_the_model_never_calls_are_named():
    model = Model()
    switch = install([{"proj": [low_rank(1, 8, 24)], "conv": [low_rank(2, 4, 3)]}], model)
    assert switch.never_called == ("proj", "conv")
    model(torch.randn(3, 8))
    assert switch.never_called == ("conv",)
    switch.remove()
    switch.install_again(model, CPU)  # a host removed them in the middle of a run
    assert switch.never_called == ("conv",)
    switch.remove()
    switch.install(model, CPU)
    assert switch.never_called == ("proj", "conv")


def test_no_tensor_of_the_weights_is_held_after_removal():
    """A host moves the weights off the device between runs; tensors that the hooks hold would stay there."""
    model = Model()
    switch = install(two_phases(), model)
    tensor = weakref.ref(switch._installed[0].bound[0][0].down)
    switch.remove()
    gc.collect()
    assert tensor() is None


def test_the_switch_does_not_keep_a_model_alive():
    model = Model()
    alive = weakref.ref(model)
    switch = install(two_phases(), model)
    switch.remove()
    del model
    gc.collect()
    assert alive() is None
    assert not switch.installed
