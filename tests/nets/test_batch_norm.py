"""Normalisation by batch statistics against torch's own, and its derivatives of three orders against central differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from metarl.nets.batch_norm import batch_norm

EPS = 1e-2  # large enough to matter to a derivative that forgets it


def _arguments(shape=(3, 2, 2, 3), dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    draw = [torch.randn(s, generator=random, dtype=dtype) for s in (shape, shape[1:2], shape[1:2])]
    return [(2 + one).requires_grad_() for one in draw]


def test_values_are_torchs():
    x, gamma, beta = _arguments()
    wanted = functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
    torch.testing.assert_close(batch_norm(x, gamma, beta, EPS), wanted)


def test_first_and_second_derivatives():
    """Every cotangent at once: of the maps, of gamma and of beta, each of which a meta-gradient sends back.

    The derivative is checked as it is when nobody differentiates it again, which is another branch: values of both are the same.
    """
    assert torch.autograd.gradcheck(lambda *a: batch_norm(*a, EPS), _arguments())
    assert torch.autograd.gradgradcheck(lambda *a: batch_norm(*a, EPS), _arguments())


def test_third_derivatives():
    """A Fisher product differentiates a meta-gradient: statistics that were constants of the second derivative would fail."""

    def squared_gradient(*arguments):
        outputs = batch_norm(*arguments, EPS).sin()
        gradients = torch.autograd.grad(outputs.square().sum(), arguments, create_graph=True)
        return torch.stack([one.square().sum() for one in gradients])

    assert torch.autograd.gradgradcheck(squared_gradient, _arguments((2, 2, 1, 2)))


def _defined(x, gamma, beta, eps):
    """Normalise as it is written down."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * gamma[:, None, None] + beta[:, None, None]


@pytest.mark.parametrize("again", [False, True], ids=["last", "differentiable"])
def test_three_orders_are_those_of_the_definition(again):
    """Catches wrong values in the branch of a derivative that is differentiated again; torch's own third order is wrong."""
    found = []
    for function in (batch_norm, _defined):
        arguments = _arguments()
        value, orders = function(*arguments, EPS).sin().square().sum(), []
        for order in range(3):
            gradients = torch.autograd.grad(value, arguments, create_graph=again or order < 2)
            value = sum(one.square().sum() for one in gradients)
            orders += [one.detach() for one in gradients]
        found.append(orders)
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_a_second_derivative_is_the_same_whether_it_is_differentiated_or_not():
    found = []
    for again in (False, True):
        arguments = _arguments()
        first = torch.autograd.grad(batch_norm(*arguments, EPS).sin().sum(), arguments, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), arguments, create_graph=again))
    for last, differentiable in zip(*found, strict=True):
        torch.testing.assert_close(last, differentiable.detach())


def test_a_single_number_to_a_channel_is_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(*_arguments((1, 4, 1, 1)), EPS)


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 2)])
def test_second_derivatives_of_some_first_ones(asked):
    """Whoever adapts gamma alone sends back nothing for the maps."""
    found = []
    for function in (
        batch_norm,
        lambda x, gamma, beta, eps: functional.batch_norm(x, None, None, gamma, beta, training=True, eps=eps),
    ):
        arguments = _arguments()
        loss = function(*arguments, EPS).sin().sum()
        first = torch.autograd.grad(loss, [arguments[i] for i in asked], create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), arguments))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_single_precision_with_a_mean_far_from_zero():
    """Sums of squares about zero would lose the variance: a mean of a thousand deviations, float32 beside float64."""

    def second(x, gamma, beta):
        g = torch.autograd.grad(batch_norm(x, gamma, beta, 1e-5).sin().sum(), x, create_graph=True)[0]
        return torch.autograd.grad((g * torch.linspace(-1, 1, g.numel(), dtype=g.dtype).view_as(g)).sum(), x)[0]

    x, gamma, beta = _arguments((20, 2, 5, 5))
    x = (x.detach() + 1000).float().double().requires_grad_()
    wanted = second(x, gamma, beta)
    found = second(*(one.detach().float().requires_grad_() for one in (x, gamma, beta)))
    assert (found.double() - wanted).norm() < 1e-2 * wanted.norm()
