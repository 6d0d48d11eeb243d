"""Adapting the last layer alone: the body evaluated once, against the long way and a loop over tasks, in float64.

Shapes: M tasks, N examples.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

import metarl
from metarl import families
from metarl.core import GradientStep, LearnedRates, Objective, adapt
from metarl.core.params import expand, ravel, unravel
from metarl.fewshot import ShotBatch, ShotDomain
from metarl.fewshot.losses import Features, features_of
from metarl.nets import MLP, ContextNet, Conv4, Flat, Split, from_module
from metarl.nets.normalization import NORMALIZATIONS
from tests.nets.by_hand import by_hand

STEPS = 3
SEEDS = np.arange(3, dtype=np.uint32)
NETS = {
    **{kind: Conv4((1, 8, 8), 3, 16 if kind == "group" else 4, normalization=kind) for kind in NORMALIZATIONS},
    "pool": Conv4((1, 16, 16), 3, 4, "pool"),
    "mlp": Flat(MLP((64, 7, 5, 3), "tanh")),
}


def _double(batch, size=8):
    """In float64, of a size; several support sets are copies, as those that a learner collects are."""
    images = batch.inputs.double() if size == 8 else batch.inputs.double().repeat(1, 1, 1, size // 8, size // 8)
    return ShotBatch(images, batch.targets)


def _problem(patterns, name, rates=None):
    """A network, its parameters, rule, three equal support sets and a query set."""
    net = NETS[name]
    domain = ShotDomain(patterns(), net)
    random = torch.Generator().manual_seed(0)
    meta = {n: v.double() for n, v in domain.init(random).items()}
    meta = {n: v + 0.1 * torch.randn(v.shape, generator=random, dtype=torch.float64) for n, v in meta.items()}
    rule = GradientStep(domain.inner_loss, 0.4, subset=tuple(list(meta)[-2:]), rates=rates)
    meta |= rule.init(meta)
    tasks = domain.sample_tasks(3, "train", (0,))
    drawn = [_double(batch, 16 if name == "pool" else 8) for batch in domain.draw(tasks, SEEDS)]
    support, query = drawn
    if getattr(net, "refers", False):
        query = dataclasses.replace(query, reference=support.inputs)
    supports = [dataclasses.replace(support, inputs=support.inputs.clone()) for _ in range(STEPS)]
    return domain, meta, rule, supports, query


def _both(domain, meta, rule, supports, query, chunk):
    once = domain.once(rule.adapting(meta))
    assert isinstance(once, Features)
    long = Objective(rule, supports, query, domain.query, chunk_tasks=chunk)
    return long, dataclasses.replace(long, once=once)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("rates", [None, LearnedRates(0.4), LearnedRates(0.4, False, 2)], ids=["fixed", "sgd", "steps"])
def test_the_short_way_gives_the_meta_gradient_of_the_long_one(patterns, name, chunk, rates):
    """Through three steps. Catches statistics of the whole batch, features cut from their graph, and tasks that are swapped."""
    long, short = _both(*_problem(patterns, name, rates), chunk)
    meta = _problem(patterns, name, rates)[1]
    (wanted, gradient), (found, other) = long.gradient(meta), short.gradient(meta)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-12)
    assert short.value(meta).loss == pytest.approx(wanted.loss, rel=1e-12)
    torch.testing.assert_close(ravel(other), ravel(gradient), rtol=1e-9, atol=1e-12)
    assert other["head.weight" if "head.weight" in meta else "2.weight"].norm() > 1e-3
    assert other["0.weight"].norm() > 1e-3, "the body learns"
    (value, adapted), (expected, mean) = short.adapted(meta), long.adapted(meta)
    assert (value.loss, value.scores) == (pytest.approx(expected.loss, rel=1e-12), expected.scores)
    torch.testing.assert_close(ravel(adapted), ravel(mean), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, None])
def test_the_meta_gradient_is_that_of_a_loop_over_tasks(patterns, chunk):
    """With torch's own layers, task by task: long way and short way could be wrong alike."""
    domain, meta, rule, supports, query = _problem(patterns, "transductive")
    _, short = _both(domain, meta, rule, supports, query, chunk)
    theta, total = {n: v.clone().requires_grad_() for n, v in meta.items()}, 0.0
    for i in range(3):
        phi, (s, q) = theta, (b.inputs[i : i + 1] for b in (supports[0], query))
        for _ in range(STEPS):
            logits, _ = by_hand(domain.net, {n: v[None] for n, v in phi.items()}, s, s)
            loss = functional.cross_entropy(logits[0], supports[0].targets[i])
            last = [phi["head.weight"], phi["head.bias"]]
            gradients = torch.autograd.grad(loss, last, create_graph=True)
            phi = {**phi, "head.weight": last[0] - 0.4 * gradients[0], "head.bias": last[1] - 0.4 * gradients[1]}
        _, logits = by_hand(domain.net, {n: v[None] for n, v in phi.items()}, s, q)
        total = total + functional.cross_entropy(logits[0], query.targets[i]) / 3
    wanted = dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))
    outcome, gradient = short.gradient(meta)
    assert outcome.loss == pytest.approx(float(total.detach()), rel=1e-10)
    torch.testing.assert_close(ravel(gradient), ravel(wanted), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["transductive", "support"])
def test_fisher_products_are_the_same(patterns, name):
    domain, meta, rule, supports, query = _problem(patterns, name)
    query = dataclasses.replace(query, predicted=domain.query.judge(expand(meta, 3), query).predicted)
    long, short = _both(domain, meta, rule, supports, query, 2)
    random = torch.Generator().manual_seed(1)
    v = unravel(torch.randn(len(ravel(meta)), generator=random, dtype=torch.float64), meta)
    wanted = ravel(long.fisher(meta)(v))
    torch.testing.assert_close(ravel(short.fisher(meta)(v)), wanted, rtol=1e-8, atol=1e-10)
    assert wanted.norm() > 1e-3


def test_the_body_is_evaluated_once_for_all_steps(patterns):
    """Catches the long way in disguise: support sets are equal, but not the same object."""
    domain, meta, rule, supports, query = _problem(patterns, "transductive")
    seen = []

    class Watched:
        adaptable = domain.net.adaptable

        def __call__(self, params, inputs):
            raise AssertionError("the long way")

        def init(self, generator):
            raise NotImplementedError

        def body(self, params, inputs, reference):
            seen.append((len(params["0.weight"]), *inputs.shape[:2]))
            return domain.net.body(params, inputs, reference)

        def last(self, params, features):
            return domain.net.last(params, features)

    watched = ShotDomain(domain.family, Watched())
    rule = dataclasses.replace(rule, loss=watched.inner_loss)
    objective = Objective(rule, supports, query, watched.query, once=watched.once(rule.adapting(meta)))
    objective.gradient(meta)
    assert seen == [(1, 3, 6), (1, 3, 12)], "one set of filters for all tasks; 2 shots, then 4 queries, of 3 ways"
    other = dataclasses.replace(supports[2], inputs=supports[2].inputs + 1)
    dataclasses.replace(objective, supports=[*supports[:2], other]).gradient(meta)
    assert len(seen) == 2 + 3, "another support set has features of its own"


@pytest.mark.parametrize("name", NETS)
def test_body_and_last_layer_are_the_network(patterns, name):
    """For tasks of their own and for shared parameters, whatever a query refers to."""
    domain, meta, _, _, query = _problem(patterns, name)
    net = domain.net.net if isinstance(domain.net, Flat) else domain.net
    assert isinstance(net, Split)
    inputs = query.inputs.flatten(2) if isinstance(domain.net, Flat) else query.inputs
    rows, one = expand(meta, 3), {n: v[None] for n, v in meta.items()}
    wanted = net(rows, inputs) if query.reference is None else net.relative(rows, inputs, query.reference)
    for params in (rows, one):
        features = net.body(params, inputs, query.reference)
        torch.testing.assert_close(net.last(rows, features), wanted, rtol=1e-11, atol=1e-12)


def test_other_rules_go_the_long_way():
    """Where the body adapts its features do not stay what they are; a module or a context has none that are known."""
    net = NETS["transductive"]
    assert features_of(net, ["head.bias"]) == Features(net)
    assert features_of(net, ["head.bias", "3.gamma"]) is None
    assert features_of(from_module(torch.nn.Linear(2, 2)), ["weight"]) is None
    assert features_of(ContextNet(MLP((3, 2)), 1), ["context"]) is None
    assert features_of(Flat(ContextNet(MLP((3, 2)), 1)), ["context"]) is None


@pytest.mark.parametrize("settings", [{}, {"rates": "weight"}], ids=["anil", "meta-sgd"])
def test_an_iteration_is_that_of_the_long_way(patterns, monkeypatch, settings):
    """Exploring too: adapted parameters step by step, chunk by chunk, on two threads."""
    monkeypatch.setattr(families, "_registered", {**families._registered, "patterns": patterns})
    sizes = {"filters": 4, "meta_batch_size": 5, "inner_steps": 3, "inner_lr": 0.4, "chunk_tasks": 2, "threads": 2}
    learner = metarl.build("patterns", "anil-adam", algo_settings=settings, **sizes)
    state = learner.init(0)
    tasks = learner.domain.sample_tasks(5, "train", (0,))
    short = learner.explore(state.meta, tasks, (0, 0), 3)
    (moved, metrics) = learner.iteration(state)
    supports = [sample.data for sample in short.supports]
    assert all(data.features is None for data in supports), "the objective needs features with a graph"
    torch.testing.assert_close(short.params, adapt(learner.inner, expand(state.meta, 5), supports))
    monkeypatch.setattr(ShotDomain, "once", lambda self, adapting: None)
    (other, wanted) = learner.iteration(state)
    assert metrics["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-4)
    assert metrics["post_accuracy"] == pytest.approx(wanted["post_accuracy"])
    assert moved.meta.keys() == other.meta.keys()
