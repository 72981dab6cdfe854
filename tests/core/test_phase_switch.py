"""The switch on plain torch modules: against merged weights, exactly undone, and cheap where it should be."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import Conv2d, Linear

from glance_core.errors import SwitchError
from glance_core.phase_switch import LowRank, PhaseSwitch, PhaseWeights, check_update, find_module, phase_index

CPU = torch.device("cpu")


class Foreign(nn.Module):
    """A Linear the switch has never heard of: no in_features, a forward with more arguments, weights in a private form."""

    def __init__(self, inside, outside):
        super().__init__()
        self.packed = nn.Parameter(torch.randn(outside * inside))
        self.outside = outside

    def forward(self, x, offset=0.0):
        return x @ self.packed.view(self.outside, -1).t() + offset


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = Linear(8, 24)
        self.proj = Linear(24, 8, bias=False)
        self.foreign = Foreign(8, 6)
        self.conv = Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return self.foreign(self.proj(self.qkv(x)), offset=2.0)


def low_rank(seed, outside, inside, rank=3, start=0):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, inside, generator=generator), torch.randn(outside, rank, generator=generator), start)


def two_phases():
    return [
        {"qkv": [low_rank(seed, 8, 8, start=start) for seed, start in ((s, 0), (s + 1, 8), (s + 2, 16))], "proj": [low_rank(s + 3, 8, 24)],
         "foreign": [low_rank(s + 4, 6, 8)]}
        for s in (1, 10)
    ]  # fmt: skip


def merged(phase):
    """The same model with the phase added to its weights: the outside truth for every branch."""
    model = Model()
    with torch.no_grad():
        for name, updates in phase.items():
            for update in updates:
                delta = update.up @ update.down
                if name == "foreign":
                    model.foreign.packed += delta.flatten()
                else:
                    getattr(model, name).weight[update.start : update.start + len(delta)] += delta
    return model


def installed(phases, model, dtype=torch.float32):
    switch = PhaseSwitch(PhaseWeights(phases, dtype))
    switch.install(model, CPU)
    return switch


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8), (2, 3, 5, 8), (0, 8)])
def test_each_phase_equals_merged_weights_and_none_is_bitwise_the_base(shape):
    x, model, phases = torch.randn(shape), Model(), two_phases()
    bare = model(x)
    switch = installed(phases, model)
    with torch.no_grad():
        assert torch.equal(model(x), bare)
        for phase in (0, 1, 0):
            switch.select(phase)
            assert torch.allclose(model(x), merged(phases[phase])(x), rtol=1e-5, atol=1e-4)
        switch.select(None)
        assert torch.equal(model(x), bare)


def test_a_convolution_equals_merged_weights():
    generator = torch.Generator().manual_seed(3)
    update = LowRank(torch.randn(2, 3, 3, 3, generator=generator), torch.randn(4, 2, 1, 1, generator=generator))
    model, x = Model(), torch.randn(2, 3, 9, 9)
    check_update(model.conv, "conv", update)
    switch = installed([{"conv": [update]}], model)
    switch.select(0)
    with torch.no_grad():
        result = model.conv(x)
        switch.remove()
        model.conv.weight += torch.einsum("or,rikl->oikl", update.up.flatten(1), update.down)
        assert torch.allclose(result, model.conv(x), atol=1e-5)


def test_the_base_output_is_written_in_place_by_one_mm_and_one_addmm():
    model, x = Model(), torch.randn(4, 24)
    switch = installed([{"proj": [low_rank(1, 8, 24)]}], model)
    switch.select(0)
    calls = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Count():
        model.proj(x)
    work = [name for name in calls if name not in ("t", "view", "_unsafe_view", "reshape", "detach")]
    assert work == ["mm", "mm", "addmm_"]  # the base's own, then the branch


def test_a_fused_qkv_takes_one_mm_for_its_three_slices():
    model = Model()
    switch = installed(two_phases(), model)
    assert switch.weights.branch(0, "qkv").down.shape == (9, 8)


def test_install_and_remove_are_exact_inverses():
    model = Model()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    switch = installed(two_phases(), model)
    assert switch.installed
    switch.install(model, CPU)
    switch.select(1)
    switch.remove()
    switch.remove()
    assert not switch.installed
    assert switch.phase is None
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


def test_a_forward_set_on_the_instance_before_comes_back():
    model = Model()
    own = model.proj.forward = lambda x: nn.functional.linear(x, model.proj.weight) * 3
    x = torch.randn(2, 8)
    bare = model(x)
    switch = installed(two_phases(), model)
    assert torch.equal(model(x), bare)
    switch.remove()
    assert model.proj.__dict__["forward"] is own


def test_two_switches_come_off_last_in_first_out_and_add_up():
    model, x = Model(), torch.randn(3, 8)
    first, second = [{"proj": [low_rank(1, 8, 24)]}], [{"proj": [low_rank(2, 8, 24)]}]
    one, two = installed(first, model), installed(second, model)
    one.select(0)
    two.select(0)
    with torch.no_grad():
        both = merged({"proj": [*first[0]["proj"], *second[0]["proj"]]})(x)
        assert torch.allclose(model(x), both, atol=1e-4)
        two.remove()
        assert torch.allclose(model(x), merged(first[0])(x), atol=1e-4)
    one.remove()
    assert "forward" not in model.proj.__dict__


def test_a_switch_removed_from_below_another_is_silent_and_is_cleared_away_later():
    model, x = Model(), torch.randn(3, 8)
    phases = [{"proj": [low_rank(1, 8, 24)]}]
    bare = model(x)
    below, above = installed(phases, model), installed([{"proj": [low_rank(2, 8, 24)]}], model)
    below.select(0)
    below.remove()
    assert torch.equal(model(x), bare)
    above.remove()
    assert torch.equal(model(x), bare)
    below.install(model, CPU)  # finds its own stranded hook, takes it off and starts clean
    below.select(0)
    with torch.no_grad():
        assert torch.allclose(model(x), merged(phases[0])(x), atol=1e-4)
    below.remove()
    assert "forward" not in model.proj.__dict__


def test_a_hook_that_somebody_else_dropped_is_not_put_back():
    model = Model()
    switch = installed(two_phases(), model)
    del model.proj.__dict__["forward"]
    switch.remove()
    assert not any("forward" in module.__dict__ for module in model.modules())
    switch.install(model, CPU)
    switch.remove()
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_an_exception_while_installing_leaves_nothing_behind():
    model = Model()
    phases = two_phases()
    phases[0]["no.such.module"] = phases[0]["proj"]
    with pytest.raises(SwitchError, match=r"no\.such\.module"):
        installed(phases, model)

    class Refuses(nn.Linear):
        def __setattr__(self, name, value):
            if name == "forward":
                raise RuntimeError("locked")
            super().__setattr__(name, value)

    model.foreign = Refuses(8, 6)
    with pytest.raises(RuntimeError, match="locked"):
        installed(two_phases(), model)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_an_exception_in_a_forward_leaves_the_switch_removable():
    model = Model()
    switch = installed(two_phases(), model)
    switch.select(0)
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 7))
    switch.remove()
    assert not any("forward" in module.__dict__ for module in model.modules())


class Interrupted(Linear):
    """The user's interrupt falls between the first of the targets and this one, just as its forward is set."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "forward":
            raise KeyboardInterrupt


def test_an_interrupt_while_the_branches_are_put_on_takes_off_those_that_are():
    model = Model()
    model.proj = Interrupted(24, 8, bias=False)
    switch = PhaseSwitch(PhaseWeights(two_phases(), torch.float32))
    with pytest.raises(KeyboardInterrupt):
        switch.install(model, CPU)
    assert not switch.installed
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_targets_the_model_never_calls_are_named():
    model = Model()
    switch = installed([{"proj": [low_rank(1, 8, 24)], "conv": [low_rank(2, 4, 3)]}], model)
    assert switch.never_called == ("proj", "conv")
    model(torch.randn(3, 8))
    assert switch.never_called == ("conv",)
    switch.remove()
    switch.install(model, CPU, again=True)  # a host took them off in the middle of a run
    assert switch.never_called == ("conv",)
    switch.remove()
    switch.install(model, CPU)
    assert switch.never_called == ("proj", "conv")


def test_nothing_of_the_weights_is_held_after_removal():
    """A host moves the weights off the device between runs; tensors kept by the hooks would stay there."""
    model = Model()
    switch = installed(two_phases(), model)
    tensor = weakref.ref(switch._installed[0].bound[0].down)
    switch.remove()
    gc.collect()
    assert tensor() is None


def test_an_absent_phase_leaves_its_target_bitwise_alone():
    model, x = Model(), torch.randn(3, 8)
    bare = model(x)
    switch = installed([{}, {"proj": [low_rank(1, 8, 24)]}], model)
    switch.select(0)
    assert torch.equal(model(x), bare)
    nothing = installed([{}, {}], Model())
    assert nothing.weights.targets == ()
    assert nothing.weights.nbytes == 0


def test_three_phases_are_chosen_by_two_thresholds():
    assert [phase_index(sigma, (0.8, 0.3)) for sigma in (1.0, 0.81, 0.8, 0.5, 0.3, 0.0)] == [0, 0, 1, 1, 2, 2]
    switch = installed([{"proj": [low_rank(seed, 8, 24)]} for seed in range(3)], Model())
    for phase in range(3):
        switch.select(phase)
        assert switch.phase == phase
    with pytest.raises(SwitchError, match="3"):
        switch.select(3)
    with pytest.raises(SwitchError, match="-1"):
        switch.select(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_another_precision_than_the_branch_is_served(dtype):
    model = Model()
    switch = installed([{"proj": [low_rank(1, 8, 24)]}], model, dtype=dtype)
    switch.select(0)
    assert model.proj(torch.randn(2, 24)).dtype == torch.float32


def test_gradients_flow_through_the_branch_and_the_base():
    """Against central differences, in float64."""
    model = Model().double()
    phases = [{"qkv": [low_rank(1, 8, 8, start=8)], "proj": [low_rank(2, 8, 24)]}]
    switch = installed(phases, model, dtype=torch.float64)
    switch.select(0)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))


def test_a_base_output_that_is_not_contiguous_gets_its_update():
    class Transposed(nn.Linear):
        def forward(self, x):
            return super().forward(x).t().contiguous().t()

    model = nn.Module()
    model.layer = Transposed(5, 4, bias=False)
    update = low_rank(1, 4, 5)
    switch = installed([{"layer": [update]}], model)
    switch.select(0)
    x = torch.randn(3, 5)
    with torch.no_grad():
        assert torch.allclose(model.layer(x), x @ (model.layer.weight + update.up @ update.down).t(), atol=1e-5)


def test_an_update_of_another_size_is_refused_with_the_sizes():
    model = Model()
    for name, update in (
        ("proj", low_rank(1, 8, 23)),
        ("proj", low_rank(1, 9, 24)),
        ("qkv", low_rank(1, 8, 8, start=17)),
        ("conv", low_rank(1, 4, 3)),
    ):
        with pytest.raises(SwitchError, match=name):
            check_update(find_module(model, name), name, update)
    check_update(model.foreign, "foreign", low_rank(1, 99, 99))  # of unknown kind: its forward will tell


def test_the_switch_keeps_no_model_alive():
    model = Model()
    alive = weakref.ref(model)
    switch = installed(two_phases(), model)
    switch.remove()
    del model
    gc.collect()
    assert alive() is None
    assert not switch.installed


def test_weights_are_cast_once_and_moved_only_where_they_are_not():
    weights = PhaseWeights(two_phases(), torch.bfloat16)
    assert {p.dtype for p in weights.parameters()} == {torch.bfloat16}
    branch = weights.branch(0, "proj")
    assert branch.on(CPU).down.data_ptr() == branch.down.data_ptr()
    assert branch.on(torch.device("meta")).down.is_meta
    assert weights.nbytes == sum(2 * p.numel() for p in weights.parameters())
    assert weights.branch(1, "conv") is None
