"""Conv4 against a loop over tasks with torch's own layers, and what a query's prediction depends on.

Shapes: M tasks, N examples, S support examples. All in float64, so that only mistakes differ.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from metarl.nets import Conv4, Normalized
from metarl.nets.normalization import NORMALIZATIONS
from metarl.rules import head
from tests.nets.by_hand import by_hand

KINDS = [(kind, down) for kind in NORMALIZATIONS for down in ("stride", "pool")]


def _net(kind, down="stride", size=17, filters=4):
    return Conv4((2, size, size - 1), 3, filters, down, kind)


def _params(net, tasks=3, seed=0):
    """Every task's own, far from the start: gamma 1, beta 0 and mix 0 would hide a mistake."""
    random = torch.Generator().manual_seed(seed)
    fresh = net.init(random)
    noise = {n: 0.3 * torch.randn(tasks, *v.shape, generator=random, dtype=torch.float64) for n, v in fresh.items()}
    return {n: v.double() + noise[n] for n, v in fresh.items()}


def _images(net, tasks, examples, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(tasks, examples, *net.input_shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "down"), KINDS)
@pytest.mark.parametrize("tasks", [1, 3])
def test_outputs_are_those_of_torchs_layers_task_by_task(kind, down, tasks):
    """Catches tasks that share a statistic or a filter, moments over the wrong axes, and queries that count as support."""
    net = _net(kind, down, filters=16 if kind == "group" else 4)  # 8 groups of 2
    params, support, query = _params(net, tasks), _images(net, tasks, 5), _images(net, tasks, 7, seed=2)
    wanted_support, wanted_query = by_hand(net, params, support, query)
    torch.testing.assert_close(net(params, support), wanted_support, rtol=1e-9, atol=1e-9)
    found = net.relative(params, query, support) if net.refers else net(params, query)
    torch.testing.assert_close(found, wanted_query, rtol=1e-9, atol=1e-9)
    assert wanted_query.std() > 0.05, "nothing to compare"


@pytest.mark.parametrize(("kind", "down"), KINDS)
@pytest.mark.parametrize(("channels", "tasks"), [(1, 1), (3, 1), (1, 3)])
def test_channels_last_changes_nothing_but_the_order_in_memory(kind, down, channels, tasks):
    """Catches maps read in the wrong order, statistics of the wrong task, and derivatives of either; tasks share their filters."""
    net = Conv4((channels, 17, 18), 3, 16, down, kind)
    other = dataclasses.replace(net, channels_last=True)
    params = _params(net, tasks=1)
    images, reference = _images(net, tasks, 4), _images(net, tasks, 5, seed=2) if net.refers else None
    expected, got = (one.body(params, images, reference) for one in (net, other))
    torch.testing.assert_close(got, expected)

    if (
        tasks > 1
    ):  # with a gradient of filters that tasks share the usual order is taken, so that nothing would be compared
        leaves = [images.requires_grad_(), params["2.weight"].requires_grad_()]
    else:
        names = [n for n in params if not n.startswith("head") and not n.endswith("mix")]
        leaves = [params[n].requires_grad_() for n in names]

    def derivatives(one):
        first = torch.autograd.grad(one.body(params, images, reference).square().sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    torch.testing.assert_close(derivatives(other), derivatives(net))


@pytest.mark.parametrize("down", ["stride", "pool"])
def test_a_gradient_that_overwrites_another_is_the_same_as_often_as_it_is_asked_for(down):
    """Catches a step of the way back that writes on what was kept, or on a gradient that someone else reads."""
    net = Conv4((3, 17, 18), 3, 16, down)
    params, images = _params(net, tasks=1), _images(net, 1, 4).requires_grad_()
    names = [n for n in params if not n.startswith("head")]
    leaves = [images, *(params[n].requires_grad_() for n in names)]
    expected = torch.autograd.grad(net.body(params, images, None).square().sum(), leaves)
    loss = dataclasses.replace(net, channels_last=True).body(params, images, None).square().sum()
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(loss, leaves, retain_graph=True), expected)
    found = torch.autograd.grad(loss, leaves, create_graph=True)
    torch.testing.assert_close(tuple(g.detach() for g in found), expected)


def test_one_number_to_a_channel_is_refused_in_either_order():
    """Catches a single example of one position, whose variance is 0, that is normalised to nothing without a word."""
    net = Conv4((1, 16, 16), 3, 16)
    for channels_last in (False, True):
        with pytest.raises(ValueError, match="more than 1 value"):
            dataclasses.replace(net, channels_last=channels_last).body(_params(net, 1), _images(net, 1, 1), None)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("tasks", [1, 2])
def test_channels_last_reaches_every_convolution(channels, tasks, monkeypatch):
    """Catches an order that is lost at the first layer, whose images of one channel have both orders at once."""
    seen, convolve = [], functional.conv2d

    def watched(*args, **kwargs):
        maps = convolve(*args, **kwargs)
        seen.append(maps.stride(1) == 1)
        return maps

    monkeypatch.setattr("metarl.nets.conv.functional.conv2d", watched)
    net = Conv4((channels, 32, 32), 3, 8, channels_last=True)
    net.body(_params(net, tasks=1), _images(net, tasks, 4), None)
    assert seen == [True] * net.blocks


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_what_a_query_depends_on(kind):
    """The table of the documentation: the other queries, the support set, or neither. Read off derivatives."""
    net = _net(kind)
    params, support, query = (
        _params(net),
        _images(net, 3, 5).requires_grad_(),
        _images(net, 3, 7, seed=2).requires_grad_(),
    )
    found = net.relative(params, query, support) if net.refers else net(params, query)
    by_query, by_support = torch.autograd.grad(found[1, 0].sum(), [query, support], allow_unused=True)
    others = by_query.clone()
    others[1, 0] = 0
    assert bool(by_query[1, 0].any())
    assert bool(others[1].any()) == (kind == "transductive")
    assert (by_support is not None and bool(by_support[1].any())) == (kind in ("support", "task"))
    assert not bool(others[[0, 2]].any()), "tasks are mixed"


@pytest.mark.parametrize(("kind", "down"), [*((kind, "stride") for kind in NORMALIZATIONS), ("support", "pool")])
def test_first_and_second_derivatives(kind, down):
    """Against central differences: what the meta-gradient goes through, the support set's statistics included."""
    net = Conv4((1, 17, 17), 2, 2, down, kind)
    params = _params(net, tasks=2)
    names = [n for n in params if n.startswith("2.") or n == "head.weight"]
    support, query = _images(net, 2, 2), _images(net, 2, 2, seed=2)

    def function(*values):
        mine = {**params, **dict(zip(names, values, strict=True))}
        return net.relative(mine, query, support) if net.refers else net(mine, query)

    leaves = [params[n].clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(function, leaves, atol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize(
    ("shape", "filters", "down", "features"),
    [((1, 28, 28), 64, "stride", 64), ((1, 28, 28), 64, "pool", 64), ((3, 84, 84), 32, "pool", 800)],
)
def test_features_are_the_papers(shape, filters, down, features):
    """64 for Omniglot, 5 x 5 x 32 = 800 for 84x84 images (Finn et al., 2017, and their code)."""
    net = Conv4(shape, 5, filters, down)
    assert net.features == features
    params = net.init(torch.Generator().manual_seed(0))
    assert params["head.weight"].shape == (features, 5)
    assert net({n: v[None] for n, v in params.items()}, torch.zeros(1, 2, *shape)).shape == (1, 2, 5)


def test_parameters_begin_as_torchs_layers_do():
    """Uniform within 1 / sqrt(fan in), as ``torch.nn.Conv2d`` and ``Linear``; with a normalisation, no bias that it removes."""
    net = Conv4((1, 28, 28), 5)
    params = net.init(torch.Generator().manual_seed(0))
    assert [n for n in params if n.startswith("1.")] == ["1.weight", "1.gamma", "1.beta"]
    assert head(list(params)) == ["head.weight", "head.bias"], "ANIL adapts the last layer"
    for name, fan_in in (("0.weight", 9), ("1.weight", 9 * 64), ("head.weight", 64)):
        bound, value = fan_in**-0.5, params[name]
        assert bound * 0.95 < value.abs().max() <= bound
        assert abs(float(value.std()) / bound - 3**-0.5) < 0.05
    assert "0.bias" in Conv4((1, 28, 28), 5, normalization="none").init(torch.Generator())
    assert not torch.equal(params["0.weight"], net.init(torch.Generator().manual_seed(1))["0.weight"])


def test_it_says_how_it_normalises():
    net = Conv4((1, 28, 28), 5, normalization="group")
    assert isinstance(net, Normalized)
    assert (net.normalization, net.refers) == ("group", False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"normalization": "batch"},
            "normalization must be one of transductive, support, task, group, none, got 'batch'",
        ),
        ({"downsampling": "mean"}, "downsampling must be one of stride, pool, got 'mean'"),
        (
            {"input_shape": (1, 8, 8), "filters": 8, "normalization": "group"},
            "groups of a single number in the last layer",
        ),
        ({"input_shape": (1, 15, 40), "downsampling": "pool"}, "15x40 are too small to be halved 4 times: 16 at least"),
    ],
)
def test_impossible_networks_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Conv4(**{"input_shape": (1, 28, 28), "outputs": 5, **settings})
