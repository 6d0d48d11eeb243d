"""One run judged by several protocols: against predictions one query, one task at a time with torch's own layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from metarl.analysis.curves import update_curve
from metarl.analysis.shots import shot_curves
from metarl.core import Adam, GradientStep
from metarl.fewshot import OneByOne, ShotDomain, protocol, protocols
from metarl.learner import MetaLearner
from metarl.nets import MLP, Conv4, Flat

SEED = (0, 2, 1)


def _alone(net, params, support, query):
    """Logits of one query: torch's layers on a batch of the support set and this query."""
    x = torch.cat([support, query[None]])
    for block in range(net.blocks):
        x = functional.conv2d(x, params[f"{block}.weight"], stride=2, padding=1)
        gamma, beta = params[f"{block}.gamma"], params[f"{block}.beta"]
        x = functional.relu(functional.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-5))
    return (x.mean((2, 3)) @ params["head.weight"] + params["head.bias"])[-1]


def _learner(patterns, net, chunk=None):
    domain = ShotDomain(patterns(), net, chunk_tasks=chunk)
    return MetaLearner(domain, GradientStep(domain.inner_loss, 0.4), Adam(1e-3), inner_steps=1, meta_batch_size=4)


@pytest.mark.parametrize("images", [1, 20, 2048])
def test_one_by_one_is_a_loop_over_queries(monkeypatch, images):
    """Catches queries that see each other, another task's support set or parameters, and parts put together wrongly."""
    monkeypatch.setattr(protocol, "_IMAGES", images)
    net, generator = Conv4((1, 8, 8), 3, 4), torch.Generator().manual_seed(0)
    fresh = [net.init(generator) for _ in range(2)]
    params = {name: torch.stack([one[name] for one in fresh]).double() for name in fresh[0]}
    support, query = (torch.rand(2, n, 1, 8, 8, generator=generator, dtype=torch.float64) for n in (6, 5))
    found = OneByOne(net).relative(params, query, support)
    for task in range(2):
        own = {name: value[task] for name, value in params.items()}
        wanted = torch.stack([_alone(net, own, support[task], one) for one in query[task]])
        torch.testing.assert_close(found[task], wanted, rtol=1e-9, atol=1e-12)


def test_which_protocols_a_network_has():
    """Its own comes first; a network without batch statistics has no other, and one without normalisation no name."""
    net = Conv4((1, 8, 8), 3, 16, normalization="transductive")
    assert list(protocols(net)) == ["transductive", "support", "one-by-one"]
    assert list(protocols(dataclasses.replace(net, normalization="support"))) == [
        "support",
        "transductive",
        "one-by-one",
    ]
    assert list(protocols(dataclasses.replace(net, normalization="group"))) == ["group"]
    assert list(protocols(Flat(MLP((64, 3))))) == [""]
    assert all(other.normalization == name for name, other in protocols(net).items())


@pytest.mark.parametrize("kind", ["transductive", "support"])
def test_curves_are_those_of_the_evaluation(patterns, monkeypatch, kind):
    """Each protocol as if it alone had been evaluated, in blocks that do not fit the number of tasks.

    Catches other examples than ``metarl.evaluate`` has, blocks in the wrong rows, and points that are off by one.
    """
    monkeypatch.setattr("metarl.analysis.shots._TASKS", 3)
    learner = _learner(patterns, Conv4((1, 8, 8), 3, 4, normalization=kind))
    meta, nets = learner.init(0).meta, protocols(learner.domain.net)
    tasks = learner.domain.sample_tasks(7, "test", (0, 2))
    curves = shot_curves(learner, meta, tasks, SEED, (0, 2), nets)
    for name, net in nets.items():
        own = dataclasses.replace(learner, domain=dataclasses.replace(learner.domain, net=net))
        wanted = update_curve(own, meta, tasks, SEED, 2)
        np.testing.assert_allclose(curves[name].values, wanted.values[[0, 2]], atol=1e-6)
        assert (curves[name].updates, curves[name].rollouts) == ((0, 2), (0, 6))
    assert len({curve.values.tobytes() for curve in curves.values()}) == 3, "the protocols do not differ here"
