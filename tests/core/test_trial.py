"""A few calls of a model before a long run: what would spoil it is refused with a sentence."""

import pytest
import torch

from glance_core.errors import ModelError
from glance_core.sampling.trial import try_model
from glance_core.sampling.velocity import NO_PROMPT

SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)
X = torch.ones(1, 4, 2, 2)


class Model:
    """A velocity by guidance that records its calls."""

    def __init__(self, answer=lambda x, sigma, calls: x * sigma):
        self.answer, self.calls = answer, []

    def __call__(self, cfg):
        def velocity(x, sigma, rows):
            self.calls.append((cfg, float(sigma), int(rows)))
            found = self.answer(x, float(sigma), len(self.calls))
            x.zero_()  # models may write into their input
            return found

        return velocity


def test_a_right_model_is_called_with_and_without_guidance_and_prompt():
    model = Model()
    try_model(model, 3.0, X, SIGMAS)
    assert model.calls == [(3.0, 1.0, 0), (1.0, 0.5, 0), (1.0, 0.5, NO_PROMPT), (3.0, 1.0, 0)]
    assert torch.equal(X, torch.ones(1, 4, 2, 2))
    model = Model()
    try_model(model, 1.0, X, SIGMAS)
    assert model.calls == [(1.0, 1.0, 0), (1.0, 0.5, 0), (1.0, 1.0, 0)]


def test_an_answer_of_another_shape_is_refused():
    with pytest.raises(ModelError) as error:
        try_model(Model(lambda x, sigma, calls: x[:, :2].clone()), 1.0, X, SIGMAS)
    assert str(error.value) == (
        "the model answers a latent of shape (1, 4, 2, 2) with one of (1, 2, 2, 2), so it cannot be sampled by its "
        "noise levels; use another model"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [1.0, 0.5])
def test_an_answer_that_is_not_finite_is_refused(value, at):
    def answer(x, sigma, calls):
        return x * (value if sigma == at else 1.0)

    with pytest.raises(ModelError) as error:
        try_model(Model(answer), 1.0, X, SIGMAS)
    assert str(error.value) == (
        f"the model's answer at noise level {at:g} is not finite; load it in another precision, such as bfloat16"
    )


def test_an_answer_that_earlier_calls_change_is_refused():
    with pytest.raises(ModelError) as error:
        try_model(Model(lambda x, sigma, calls: x * (1.0 if calls == 1 else 1.25)), 1.0, X, SIGMAS)
    assert str(error.value) == (
        "the model's answer to the same input changed by 25 % after a call at another noise level, so it keeps values "
        "between calls; remove nodes that cache or skip steps from it"
    )


def test_rounding_that_differs_between_calls_is_accepted():
    try_model(Model(lambda x, sigma, calls: x * (1 + 0.002 * calls)), 1.0, X, SIGMAS)
