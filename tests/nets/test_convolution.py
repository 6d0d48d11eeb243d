"""Our derivatives of convolution against torch's own, and against central differences."""

from __future__ import annotations

import pytest
import torch

from metarl.nets import Conv4, convolution, normalization
from metarl.nets.convolution import convolved, once

CASES = [
    pytest.param(groups, stride, images, id=f"{groups}-groups-stride-{stride}-{'images' if images else 'maps'}")
    for groups in (1, 2, 3)
    for stride in (1, 2)
    for images in (False, True)
]


def _arguments(groups, images, size=(5, 4)):
    random = torch.Generator().manual_seed(0)
    shapes = (2, groups * 2, *size), (groups * 3, 2, 3, 3), (groups * 3,)
    x, weight, bias = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    return x.requires_grad_(not images), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize(("groups", "stride", "images"), CASES)
def test_derivatives_of_two_orders(groups, stride, images):
    """Every cotangent at once; odd and even sizes, whose last row a stride of two sees or does not."""
    x, weight, bias = _arguments(groups, images)
    torch.testing.assert_close(
        convolved(x, weight, bias, stride, groups), once(x, weight, bias, stride, groups), rtol=0, atol=1e-12
    )
    asked = (weight, bias) if images else (x, weight, bias)

    def of(*given):
        return convolved(*(given if len(given) == 3 else (x, *given)), stride, groups)

    assert torch.autograd.gradcheck(of, asked)
    assert torch.autograd.gradgradcheck(of, asked)


@pytest.mark.parametrize(("groups", "stride", "images"), CASES)
def test_third_derivatives(groups, stride, images):
    """A Fisher product of a meta-gradient goes through the second derivative's graph."""
    found = []
    for function in (convolved, once):
        x, weight, _ = _arguments(groups, images)
        asked = [weight] if images else [x, weight]
        value = function(x, weight, None, stride, groups).sin().sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, asked, create_graph=True)
            value = sum(one.square().sum() for one in gradients)
        found.append(gradients)
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_no_gradient_of_an_image_is_taken(monkeypatch):
    """Catches the first layer on the way of the others, five times as slow."""
    asked = []
    real = torch.ops.aten.convolution_backward

    def seen(*arguments):
        asked.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(torch.ops.aten, "convolution_backward", seen)
    x, weight, _ = _arguments(3, True)
    first = torch.autograd.grad(convolved(x, weight, None, 2, 3).sin().sum(), weight, create_graph=True)[0]
    torch.autograd.grad(first.square().sum(), weight)
    assert asked
    assert all(mask == (False, True, False) for mask in asked)


@pytest.mark.parametrize("adapting", ["0.gamma", "0.weight", "1.weight"])
def test_some_parameters_of_some_tasks(adapting, monkeypatch):
    """Whoever adapts one of them sends back nothing for the others: of filters, of maps, or of either's second derivative."""
    net = Conv4((1, 16, 16), 3, filters=4, blocks=2, downsampling="pool")
    drawn = net.init(torch.Generator().manual_seed(1))
    params = {k: v.double().expand(2, *v.shape).clone().requires_grad_() for k, v in drawn.items()}
    images = torch.rand(2, 5, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for way in (convolved, once):
        with monkeypatch.context() as patch:
            patch.setattr("metarl.nets.conv.convolved", way)
            (first,) = torch.autograd.grad(net(params, images).sin().sum(), params[adapting], create_graph=True)
            loss = net(params | {adapting: params[adapting] - 0.1 * first}, images).square().sum()
            found.append(torch.autograd.grad(loss, list(params.values())))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(
    ("tasks", "channels_last", "own"), [(3, False, True), (1, False, False), (3, True, False), (1, True, False)]
)
def test_several_tasks_that_may_be_differentiated_twice_take_our_way(tasks, channels_last, own, monkeypatch):
    """Catches a network that silently goes back to the slow way, and one that waits for Python where there is nothing to gain."""
    used = []
    for module, name in ((convolution, "_OfMaps"), (convolution, "_OfImages")):
        real = getattr(module, name).apply
        monkeypatch.setattr(getattr(module, name), "apply", lambda *a, n=name, r=real: used.append(n) or r(*a))
    real = normalization.batch_norm
    monkeypatch.setattr(normalization, "batch_norm", lambda *a: used.append("batch_norm") or real(*a))
    net = Conv4((1, 16, 16), 3, filters=4, channels_last=channels_last)
    params = {k: v.expand(tasks, *v.shape).clone().requires_grad_() for k, v in net.init(torch.Generator()).items()}
    net(params, torch.rand(tasks, 5, 1, 16, 16))
    layers = ["_OfImages", *["_OfMaps"] * 3] if own and not channels_last else []
    assert [name for name in used if name != "batch_norm"] == layers
    assert used.count("batch_norm") == (4 if tasks > 1 else 0)
