"""Gradients of functions that write into tensors which autograd saved."""

import weakref

import pytest
import torch

from glance_core.errors import TrainingError
from glance_core.training.autograd.inplace import InplaceTracker


def residuals(x, w, calls):
    """Each product saves h, and the next line writes into h; the last one saves what stays."""
    calls.append(1)
    h = x * 1
    for i in range(3):
        h += torch.sin(h * w) * (i + 1)
    return (h * w).sum()


def test_gradients_are_right_if_saved_tensors_are_written_into():
    x, w = torch.linspace(-1, 1, 7, dtype=torch.float64), torch.full((7,), 0.7, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        residuals(x, w, []).backward()
    tracker, calls = InplaceTracker(), []
    for step in range(3):
        w.grad = None
        tracker.run("part", lambda: residuals(x, w, calls)).backward()
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


def test_only_tensors_that_are_written_into_are_copied():
    w = torch.ones(4, requires_grad=True)
    x, y = torch.rand(4), torch.rand(4)
    tracker = InplaceTracker()
    for _ in range(2):
        inputs = []

        def forward(inputs=inputs):
            a, b = x + 0, y + 0
            out = a * w + b * w
            a += 1
            inputs += [a, b]
            return out.sum()

        out = tracker.run("part", forward)
    nodes = [edge[0] for edge in out.grad_fn.next_functions[0][0].next_functions]
    places = [node._saved_self.data_ptr() for node in nodes]
    assert places[0] != inputs[-2].data_ptr() and places[1] == inputs[-1].data_ptr()
    out.backward()
    assert torch.equal(w.grad, x + y)


def test_a_write_after_forward_raises_in_backward():
    w, x = torch.ones(3, requires_grad=True), torch.ones(3)
    out = InplaceTracker().run("part", lambda: (x * w).sum())
    x += 1
    with pytest.raises(
        TrainingError, match=r"the model wrote into a tensor of shape \(3,\) before backward had used it"
    ):
        out.backward()


def test_backward_frees_what_it_has_used():
    """The graph holds its hooks. Hooks that held tensors would keep all of them until backward ends."""
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
    tracker = InplaceTracker()
    tracker.run("part", forward).backward()
    assert alive == [None]


def test_inputs_stay_unchanged_and_are_copied_only_if_written_into():
    tracker, x, y = InplaceTracker(), torch.zeros(2), torch.zeros(2)
    given = []

    def forward(inputs):
        given[:] = inputs
        inputs[1].add_(1)
        return inputs[0] + inputs[1]

    for _ in range(2):
        assert torch.equal(tracker.on_copies("block", (x, y), forward), torch.ones(2))
        assert not y.any()
    assert given[0] is x and given[1] is not y
    with pytest.raises(TrainingError, match="wrote into an input that it had not changed before"):
        tracker.on_copies("block", (x, y), lambda inputs: inputs[0].add_(1))
