"""What autograd keeps, of functions that write into it."""

import weakref

import pytest
import torch

from glance_core.errors import TrainingError
from glance_core.saved import Saves


def residuals(x, w, calls):
    """Each product keeps h, into which the next line writes; the last one keeps what stays."""
    calls.append(1)
    h = x * 1
    for i in range(3):
        h += torch.sin(h * w) * (i + 1)
    return (h * w).sum()


def test_gradients_of_a_function_that_writes_into_what_is_kept():
    x, w = torch.linspace(-1, 1, 7, dtype=torch.float64), torch.full((7,), 0.7, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        residuals(x, w, []).backward()
    saves, calls = Saves(), []
    for step in range(3):
        w.grad = None
        saves.run("part", lambda: residuals(x, w, calls)).backward()
        assert len(calls) == 2 + step  # only the first step runs twice
        with torch.no_grad():
            h = 1e-6
            for i in range(7):
                ends = []
                for sign in (1, -1):
                    moved = w.detach().clone()
                    moved[i] += sign * h
                    ends.append(residuals(x, moved, []))
                assert torch.isclose(w.grad[i], (ends[0] - ends[1]) / (2 * h), rtol=1e-6)


def test_only_what_is_written_into_is_copied():
    w = torch.ones(4, requires_grad=True)
    x, y = torch.rand(4), torch.rand(4)
    saves = Saves()
    for _ in range(2):
        kept = []

        def forward(kept=kept):
            a, b = x + 0, y + 0
            out = a * w + b * w
            a += 1
            kept += [a, b]
            return out.sum()

        out = saves.run("part", forward)
    nodes = [edge[0] for edge in out.grad_fn.next_functions[0][0].next_functions]
    places = [node._saved_self.data_ptr() for node in nodes]
    assert places[0] != kept[-2].data_ptr() and places[1] == kept[-1].data_ptr()
    out.backward()
    assert torch.equal(w.grad, x + y)


def test_what_is_written_into_after_the_forward_pass_is_told_in_the_backward_pass():
    w, x = torch.ones(3, requires_grad=True), torch.ones(3)
    out = Saves().run("part", lambda: (x * w).sum())
    x += 1
    with pytest.raises(TrainingError, match=r"a tensor of \(3,\) that autograd keeps was written into"):
        out.backward()


def test_the_backward_pass_lets_go_of_what_it_has_used():
    """The graph holds its hooks: were the hooks to hold what they kept, a backward pass would free nothing until its end."""
    w, alive = torch.ones(3, requires_grad=True), []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            alive.append(storage())
            return grad

    def forward():
        nonlocal storage
        early = Watch.apply(w)
        late = torch.rand(3)
        storage = weakref.ref(late.untyped_storage())
        return (early * late).sum()

    storage = None
    saves = Saves()
    saves.run("part", forward).backward()
    assert alive == [None]


def test_inputs_are_left_as_they_are_and_copied_only_where_written_into():
    saves, x, y = Saves(), torch.zeros(2), torch.zeros(2)
    given = []

    def forward(inputs):
        given[:] = inputs
        inputs[1].add_(1)
        return inputs[0] + inputs[1]

    for _ in range(2):
        assert torch.equal(saves.on_copies("block", (x, y), forward), torch.ones(2))
        assert not y.any()
    assert given[0] is x and given[1] is not y
    with pytest.raises(TrainingError, match="wrote into an input that it had left alone before"):
        saves.on_copies("block", (x, y), lambda inputs: inputs[0].add_(1))
