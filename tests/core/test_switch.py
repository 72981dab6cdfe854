"""The switch on plain torch modules: its results equal merged weights, and it costs little."""

import pytest
import torch
from switched_model import CPU, Model, install, low_rank, merged, two_phases
from torch import nn

from glance_core.errors import SwitchError
from glance_core.low_rank import LowRank, check_update
from glance_core.schedule.phase_schedule import phase_index
from glance_core.switch import PhaseWeights, find_module

EACH = [[1, 0], [0, 1]]  # both adapters have a phase of their own


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8), (2, 3, 5, 8), (0, 8)])
def test_each_phase_equals_merged_weights_and_no_phase_equals_the_base_bit_for_bit(shape):
    x, model, phases = torch.randn(shape), Model(), two_phases()
    base = model(x)
    switch = install(phases, model)
    with torch.no_grad():
        assert torch.equal(model(x), base)
        for phase in (0, 1, 0):
            switch.select(phase)
            assert torch.allclose(model(x), merged(phases[phase])(x), rtol=1e-5, atol=1e-4)
        switch.select(None)
        assert torch.equal(model(x), base)


def test_a_convolution_equals_merged_weights():
    generator = torch.Generator().manual_seed(3)
    update = LowRank(torch.randn(2, 3, 3, 3, generator=generator), torch.randn(4, 2, 1, 1, generator=generator))
    model, x = Model(), torch.randn(2, 3, 9, 9)
    check_update(model.conv, "conv", update)
    switch = install([{"conv": [update]}], model)
    switch.select(0)
    with torch.no_grad():
        result = model.conv(x)
        switch.remove()
        model.conv.weight += torch.einsum("or,rikl->oikl", update.up.flatten(1), update.down)
        assert torch.allclose(result, model.conv(x), atol=1e-5)


def test_a_branch_is_one_mm_and_one_addmm_in_place_on_the_base_output():
    model, x = Model(), torch.randn(4, 24)
    switch = install([{"proj": [low_rank(1, 8, 24)]}], model)
    switch.select(0)
    calls = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Record():
        model.proj(x)
    work = [name for name in calls if name not in ("t", "view", "_unsafe_view", "reshape", "detach")]
    assert work == ["mm", "mm", "addmm_"]  # the base's own, then the branch


def test_a_fused_qkv_needs_one_mm_for_its_three_parts():
    model = Model()
    switch = install(two_phases(), model)
    for (bound,) in switch.weights.on(CPU, EACH)["qkv"]:
        assert bound.down.shape == (9, 8) and len(bound.terms) == 3


def test_two_switches_add_up_and_come_off_last_in_first_out():
    model, x = Model(), torch.randn(3, 8)
    first, second = [{"proj": [low_rank(1, 8, 24)]}], [{"proj": [low_rank(2, 8, 24)]}]
    one, two = install(first, model), install(second, model)
    one.select(0)
    two.select(0)
    with torch.no_grad():
        both = merged({"proj": [*first[0]["proj"], *second[0]["proj"]]})(x)
        assert torch.allclose(model(x), both, atol=1e-4)
        two.remove()
        assert torch.allclose(model(x), merged(first[0])(x), atol=1e-4)
    one.remove()
    assert "forward" not in model.proj.__dict__


def test_a_target_without_an_update_in_this_phase_stays_the_base_bit_for_bit():
    model, x = Model(), torch.randn(3, 8)
    base = model(x)
    switch = install([{}, {"proj": [low_rank(1, 8, 24)]}], model)
    switch.select(0)
    assert torch.equal(model(x), base)
    nothing = install([{}, {}], Model())
    assert nothing.weights.targets == ()
    assert nothing.weights.nbytes == 0


def test_two_thresholds_select_one_of_three_phases():
    assert [phase_index(sigma, (0.8, 0.3)) for sigma in (1.0, 0.81, 0.8, 0.5, 0.3, 0.0)] == [0, 0, 1, 1, 2, 2]
    switch = install([{"proj": [low_rank(seed, 8, 24)]} for seed in range(3)], Model())
    for phase in range(3):
        switch.select(phase)
        assert switch.phase == phase
    with pytest.raises(SwitchError, match="3"):
        switch.select(3)
    with pytest.raises(SwitchError, match="-1"):
        switch.select(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_another_dtype_than_the_branch_keeps_its_dtype(dtype):
    model = Model()
    switch = install([{"proj": [low_rank(1, 8, 24)]}], model, dtype=dtype)
    switch.select(0)
    assert model.proj(torch.randn(2, 24)).dtype == torch.float32


def test_gradients_through_the_branch_and_the_base_equal_finite_differences():
    model = Model().double()
    phases = [{"qkv": [low_rank(1, 8, 8, start=8)], "proj": [low_rank(2, 8, 24)]}]
    switch = install(phases, model, dtype=torch.float64)
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
    switch = install([{"layer": [update]}], model)
    switch.select(0)
    x = torch.randn(3, 5)
    with torch.no_grad():
        assert torch.allclose(model.layer(x), x @ (model.layer.weight + update.up @ update.down).t(), atol=1e-5)


def test_an_update_of_another_size_is_rejected():
    model = Model()
    for name, update in (
        ("proj", low_rank(1, 8, 23)),
        ("proj", low_rank(1, 9, 24)),
        ("qkv", low_rank(1, 8, 8, start=17)),
        ("conv", low_rank(1, 4, 3)),
    ):
        with pytest.raises(SwitchError, match=name):
            check_update(find_module(model, name), name, update)
    check_update(model.unknown, "unknown", low_rank(1, 99, 99))  # only its forward can tell


def test_weights_are_cast_once_and_moved_only_if_they_are_elsewhere():
    weights = PhaseWeights(two_phases(), torch.bfloat16)
    assert {p.dtype for p in weights.parameters()} == {torch.bfloat16}
    branch = weights.updates[weights.targets.index("proj")]
    ((first,), (second,)) = weights.on(CPU, EACH)["proj"]
    assert first.down.data_ptr() == branch.down.data_ptr()
    assert second.down.untyped_storage().data_ptr() == branch.down.untyped_storage().data_ptr()
    assert all(bound.down.is_meta for (bound,) in weights.on(torch.device("meta"), EACH)["proj"])
    assert weights.nbytes == sum(2 * p.numel() for p in weights.parameters())
    assert "conv" not in weights.on(CPU, EACH)
