"""Similarity of representations: closed forms, layers by hand, and what head-only adaptation must leave as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

import metarl
from metarl.analysis import curves, similarity
from metarl.nets import MLP, ContextNet, Conv4, Flat, from_module
from metarl.settings import SettingsError

SEED = (0, 2, 1)


def numbers(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def test_cka_is_kornbliths_by_kernels():
    """The other side of the identity: traces of centred N x N kernels, one task at a time."""
    x, y = numbers(3, 20, 4), numbers(3, 20, 6, seed=1) + numbers(3, 20, 1)
    centre = torch.eye(20, dtype=torch.float64) - 1 / 20
    for task, found in enumerate(similarity.cka(x, y)):
        k, own = ((centre @ z[task]) @ (centre @ z[task]).T for z in (x, y))
        wanted = torch.trace(k @ own) / (torch.trace(k @ k) * torch.trace(own @ own)).sqrt()
        assert float(found) == pytest.approx(float(wanted), rel=1e-10)


def test_cka_knows_what_is_the_same():
    """Without centring a shift counts; without normalising a scale does; of one feature it is the squared correlation."""
    x = numbers(2, 50, 5)
    turned = torch.linalg.qr(numbers(5, 5, seed=2))[0]
    np.testing.assert_allclose(similarity.cka(x, 3 * x @ turned + 7), 1.0)
    a, b = numbers(1, 40, 1), numbers(1, 40, 1, seed=3)
    correlation = np.corrcoef(a[0, :, 0], b[0, :, 0])[0, 1]
    assert float(similarity.cka(a, b)) == pytest.approx(correlation**2)
    assert similarity.cka(numbers(1, 9, 2), torch.ones(1, 9, 2)).isnan().all()


def test_layers_of_an_mlp_by_hand():
    """A layer before its activation, a layer left out, another task's weights; vectors, contexts and flattened arrays."""
    net = MLP((4, 7, 5, 2), "relu")
    params = {n: torch.stack([v, 2 * v + 0.1]) for n, v in net.init(torch.Generator().manual_seed(0)).items()}
    inputs = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    found = similarity.representations(net, params, inputs)
    assert [x.shape[-1] for x in found] == [7, 5, 2]
    for task in range(2):
        x = inputs[task]
        for layer in range(3):
            x = x @ params[f"{layer}.weight"][task] + params[f"{layer}.bias"][task]
            x = x.relu() if layer < 2 else x
            torch.testing.assert_close(found[layer][task], x)
    flat = similarity.representations(Flat(net), params, inputs.view(2, 6, 2, 2))
    inner = MLP((4, 7, 5, 2), "relu")
    context = {"context": inputs[:, 0, 2:], **params}
    known = similarity.representations(ContextNet(inner, 2), context, inputs[..., :2])
    whole = torch.cat([inputs[..., :2], inputs[:, :1, 2:].expand(-1, 6, -1)], -1)
    for ours, theirs in zip([*flat, *known], [*found, *similarity.representations(net, params, whole)], strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(SettingsError, match="ModuleNet has layers that only it knows"):
        similarity.representations(from_module(torch.nn.Linear(2, 2)), params, inputs)


@pytest.mark.parametrize("downsampling", ["stride", "pool"])
def test_blocks_of_conv4_by_hand(downsampling):
    """A block more or less, or features of another task in the group."""
    net = Conv4((1, 16, 16), 3, filters=4, downsampling=downsampling, normalization="none")
    params = {n: torch.stack([v, v.flip(0)]) for n, v in net.init(torch.Generator().manual_seed(0)).items()}
    inputs = torch.randn(2, 5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = similarity.representations(net, params, inputs)
    assert len(found) == 5
    torch.testing.assert_close(found[-1], net(params, inputs))
    for task in range(2):
        x = inputs[task]
        for block in range(4):
            stride = 2 if downsampling == "stride" else 1
            x = functional.conv2d(x, params[f"{block}.weight"][task], params[f"{block}.bias"][task], stride, 1).relu()
            x = x if stride == 2 else functional.max_pool2d(x, 2)
            wanted = x.mean((2, 3)) if stride == 2 else x.flatten(1)
            torch.testing.assert_close(found[block][task], wanted)


def test_a_network_that_looks_at_its_support_set_is_asked_with_it():
    """Queries normalised by themselves where training normalises them by the support set."""
    net = Conv4((1, 16, 16), 3, filters=4, normalization="support")
    params = {n: v[None] for n, v in net.init(torch.Generator().manual_seed(0)).items()}
    inputs, reference = (torch.randn(1, 5, 1, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    found = similarity.representations(net, params, inputs, reference)
    torch.testing.assert_close(found[-1], net.relative(params, inputs, reference))


@pytest.fixture(scope="module")
def sinusoid(runs):
    return metarl.load(runs["sinusoid"])


def test_only_what_adapts_changes(sinusoid):
    """Layers before and after that are the wrong way round, or of other data: ANIL leaves its body alone."""
    learner, tasks = sinusoid.learner, sinusoid.learner.domain.sample_tasks(5, "test", (0,))
    whole = similarity.similarities(learner, sinusoid.meta, tasks, SEED, 3)
    assert whole.shape == (2, 5)
    assert (whole[0] < 1 - 1e-9).all()
    head = dataclasses.replace(learner, inner=dataclasses.replace(learner.inner, subset=("1.*",), lr=0.2))
    found = similarity.similarities(head, sinusoid.meta, tasks, SEED, 3)
    np.testing.assert_allclose(found[0], 1.0, rtol=1e-12)
    assert (found[1] < 1 - 1e-6).all()
    none = similarity.similarities(learner, sinusoid.meta, tasks, SEED, 0)
    np.testing.assert_allclose(none, 1.0, rtol=1e-12)


def test_states_of_policies_are_compared(runs):
    """States behind an episode's end, which are zeros, or as many as the longest episode has."""
    agent = metarl.load(runs["maml"])
    tasks = agent.learner.domain.sample_tasks(4, "test", (0,))
    found = similarity.similarities(agent.learner, agent.meta, tasks, SEED, 2)
    assert found.shape == (2, 4)
    assert ((found > 0) & (found <= 1 + 1e-9)).all()
    observations = torch.arange(12.0).view(2, 6, 1)
    weights = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0.2, 0.2, 0.2, 0.2, 0.2]])
    assert similarity._states(observations, weights)[..., 0].tolist() == [[0.0, 1.0], [7.0, 11.0]]


def test_parts_adapt_what_they_say(sinusoid):
    """Head and body mixed up, or a rate that adapts neither."""
    learner, tasks = sinusoid.learner, sinusoid.learner.domain.sample_tasks(6, "test", (0,))
    found = similarity.parts(learner, sinusoid.meta, tasks, SEED, 2)
    assert list(found) == ["all", "head", "body"]
    for label, subset in (("all", ("*",)), ("head", ("1.*",)), ("body", ("0.*",))):
        rule = dataclasses.replace(learner.inner, subset=subset)
        wanted = curves.update_curve(dataclasses.replace(learner, inner=rule), sinusoid.meta, tasks, SEED, 2)
        np.testing.assert_array_equal(found[label].values, wanted.values)
    assert similarity.head(["context", "0.weight", "1.weight", "1.bias", "log_std"]) == (
        "1.weight",
        "1.bias",
        "log_std",
        "context",
    )
    rule = dataclasses.replace(learner.inner, subset=("0.*",))
    with pytest.raises(SettingsError, match="a step of all parameters"):
        similarity.parts(dataclasses.replace(learner, inner=rule), sinusoid.meta, tasks, SEED, 1)
