"""Classification on the meta-core: what a score, a loss and a meta-gradient are, against slow loops in float64.

Shapes: M tasks, N examples, C classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from metarl.core import SGD, TRPO, GradientStep, Objective, Workers
from metarl.core.params import expand, ravel, unravel
from metarl.fewshot import CrossEntropy, ShotBatch, ShotDomain
from metarl.learner import MetaLearner
from metarl.nets import MLP, Conv4, Flat, from_module
from metarl.nets.normalization import NORMALIZATIONS
from metarl.testing import check_family
from tests.nets.by_hand import by_hand

SEEDS = np.arange(3, dtype=np.uint32)


def _domain(family, net=None, **settings):
    net = net or Conv4(family.spec.input_shape, family.spec.target_size, filters=4, normalization="support")
    return ShotDomain(family, net, **settings)


def _double(batch):
    inputs, reference = (None if x is None else x.double() for x in (batch.inputs, batch.reference))
    return ShotBatch(inputs, batch.targets, reference)


def test_the_toy_keeps_the_contract(patterns):
    """The kit compares pool and pick with draw."""
    check_family(patterns())


@pytest.mark.parametrize("refers", [False, True])
def test_the_domain_finds_in_the_pool_what_the_family_draws(patterns, refers):
    """To the bit. Catches another scale, sets that are swapped, and labels of another row."""
    family = patterns()
    domain = _domain(family, Conv4((1, 8, 8), 3, 4, normalization="support" if refers else "none"))
    tasks = family.sample_tasks(3, "train", 0)
    for batch, shots in zip(domain.draw(tasks, SEEDS), family.draw(tasks, SEEDS), strict=True):
        assert batch.inputs.dtype == torch.float32
        assert batch.targets.dtype == torch.int64
        assert np.array_equal(batch.inputs.numpy(), shots.inputs)
        assert np.array_equal(batch.targets.numpy(), shots.targets)
    support, query = domain.draw(tasks, SEEDS)
    assert support.reference is None
    assert (query.reference is support.inputs) == refers
    assert domain.pool() is domain.pool(), "the pool is moved to the device once"


def test_loss_accuracy_and_kl_by_hand():
    """A mean over examples, not a sum, and not one over classes; KL from what was predicted then to what is now."""
    logits = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 0.5, 0.0], [0.0, 0.1, 0.0]]], dtype=torch.float64)
    targets = torch.tensor([[0, 1, 2, 0]])
    loss = CrossEntropy(lambda params, inputs: inputs + params["shift"].unsqueeze(1))
    params = {"shift": torch.zeros(1, 3, dtype=torch.float64)}
    scores, predicted = loss.judge(params, ShotBatch(logits, targets))
    assert scores.tolist() == [0.5]
    p = np.exp(logits[0].numpy()) / np.exp(logits[0].numpy()).sum(1, keepdims=True)
    expected = -np.mean([np.log(p[n, c]) for n, c in enumerate([0, 1, 2, 0])])
    assert float(loss.loss(params, ShotBatch(logits, targets))) == pytest.approx(expected, rel=1e-12)

    moved = {"shift": torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)}
    terms = loss(moved, ShotBatch(logits, targets, predicted=predicted))
    q = np.exp(logits[0].numpy() + np.array([0.3, -0.2, 0.1]))
    q /= q.sum(1, keepdims=True)
    assert float(terms.kl) == pytest.approx(np.mean((p * np.log(p / q)).sum(1)), rel=1e-12)
    assert float(terms.loss) == pytest.approx(-np.mean(np.log(q[range(4), [0, 1, 2, 0]])), rel=1e-12)


def test_a_score_of_infinite_logits_is_none():
    """The first class is right once in C times, which would hide that training has broken down."""
    loss = CrossEntropy(lambda params, inputs: inputs)
    inputs = torch.tensor([[[1.0, 0.0]], [[torch.nan, 0.0]], [[torch.inf, 0.0]]])
    scores = loss.judge({}, ShotBatch(inputs, torch.zeros(3, 1, dtype=torch.int64))).scores
    assert scores[0] == 1.0
    assert torch.isnan(scores[1:]).all()


def _meta_gradient_by_hand(net, meta, support, query, lr, steps):
    """Mean over tasks of the query loss after ``steps`` inner updates, and its gradient: one task after the other."""
    total = 0.0
    theta = {n: v.clone().requires_grad_() for n, v in meta.items()}
    for i in range(support.num_tasks):
        s, q, phi = support.inputs[i : i + 1], query.inputs[i : i + 1], theta
        for _ in range(steps):
            (logits, _) = by_hand(net, {n: v[None] for n, v in phi.items()}, s, s)
            loss = functional.cross_entropy(logits[0], support.targets[i])
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: v - lr * g for (n, v), g in zip(phi.items(), gradients, strict=True)}
        (_, logits) = by_hand(net, {n: v[None] for n, v in phi.items()}, s, q)
        total = total + functional.cross_entropy(logits[0], query.targets[i]) / support.num_tasks
    return float(total.detach()), dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("kind", ["transductive", "group", "none"])
def test_the_meta_gradient_is_that_of_a_loop_over_tasks(patterns, kind, chunk):
    """Through two inner steps, with torch's own convolution, normalisation and cross entropy; however tasks are cut.

    Catches tasks that share batch statistics, an inner rate that depends on M or N, and first-order gradients.
    """
    # the last layer has a single position: 16 filters make 8 groups of 2
    net = Conv4((1, 8, 8), 3, 16 if kind == "group" else 4, normalization=kind)
    domain = _domain(patterns(), net)
    support, query = (_double(b) for b in domain.draw(domain.sample_tasks(3, "train", (0,)), SEEDS))
    meta = {n: v.double() for n, v in domain.init(torch.Generator().manual_seed(0)).items()}
    objective = Objective(GradientStep(domain.inner_loss, 0.4), [support] * 2, query, domain.query, chunk_tasks=chunk)
    outcome, gradient = objective.gradient(meta)
    loss, wanted = _meta_gradient_by_hand(net, meta, support, query, 0.4, 2)
    assert outcome.loss == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(ravel(gradient), ravel(wanted), rtol=1e-8, atol=1e-10)
    assert float(ravel(wanted).norm()) > 0.1, "nothing to compare"


@pytest.mark.parametrize("vectorize", [True, False], ids=["vmap", "loop"])
def test_a_module_of_torchs_own_gives_the_same_meta_gradient(patterns, vectorize):
    """Three executors of one problem: grouped convolution, vmap and a loop over a module; all agree to rounding."""
    net = Conv4((1, 8, 8), 3, 4)
    layers = []
    for block in range(4):
        layers += [nn.Conv2d(4 if block else 1, 4, 3, stride=2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()
    ours = {n: v.double() for n, v in net.init(torch.Generator().manual_seed(0)).items()}
    names = dict(zip((n for n, _ in module.named_parameters()), ours, strict=True))
    theirs = {n: ours[own].T if own == "head.weight" else ours[own] for n, own in names.items()}
    gradients = []
    for which, meta in ((net, ours), (from_module(module, vectorize), theirs)):
        domain = _domain(patterns(), which)
        support, query = (_double(b) for b in domain.draw(domain.sample_tasks(3, "train", (0,)), SEEDS))
        objective = Objective(GradientStep(domain.inner_loss, 0.4), [support], query, domain.query)
        gradients.append(objective.gradient(meta)[1])
    for name, own in names.items():
        found = gradients[1][name]
        torch.testing.assert_close(found.T if own == "head.weight" else found, gradients[0][own], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("kind", ["support", "task"])
def test_the_meta_gradient_goes_through_the_support_sets_statistics(patterns, kind):
    """Central differences along a direction: a detached statistic of the support set changes the slope."""
    net = Conv4((1, 8, 8), 3, 4, normalization=kind)
    domain = _domain(patterns(), net)
    support, query = (_double(b) for b in domain.draw(domain.sample_tasks(2, "train", (0,)), SEEDS[:2]))
    meta = {n: v.double() for n, v in domain.init(torch.Generator().manual_seed(0)).items()}
    objective = Objective(GradientStep(domain.inner_loss, 0.4), [support], query, domain.query)
    gradient = ravel(objective.gradient(meta)[1])
    way = torch.randn(len(gradient), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    way /= way.norm()
    ends = [objective.value(unravel(ravel(meta) + h * way, meta)).loss for h in (1e-5, -1e-5)]
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient @ way), rel=1e-4)


def test_fisher_products_are_the_hessian_of_the_kl(patterns):
    """Against second differences of the mean KL(old||new) itself, through one inner step.

    Catches weights that do not average, and examples that are left out. (The p p' part adds nothing where the tangent is
    that of normalised log-probabilities; the test below sees it.)
    """
    domain = _domain(patterns(), Flat(MLP((64, 4, 3))))
    support, query = (_double(b) for b in domain.draw(domain.sample_tasks(2, "train", (0,)), SEEDS[:2]))
    meta = {n: v.double() for n, v in domain.init(torch.Generator().manual_seed(0)).items()}
    rule = GradientStep(domain.inner_loss, 0.1)
    adapted = rule(expand(meta, 2), support)
    query = dataclasses.replace(query, predicted=domain.query.judge(adapted, query).predicted)
    objective = Objective(rule, [support], query, domain.query)
    product = objective.fisher(meta, fraction=0.05)  # of a few shots all count
    way = torch.randn(len(ravel(meta)), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    way /= way.norm()
    curved = float(ravel(product(unravel(way, meta))) @ way)
    step = 1e-3
    kl = [objective.value(unravel(ravel(meta) + h * way, meta)).kl for h in (step, -step)]
    assert objective.value(meta).kl == pytest.approx(0, abs=1e-15)
    assert (kl[0] + kl[1]) / step**2 == pytest.approx(curved, rel=1e-3)
    assert curved > 1e-4


def test_the_fisher_matrix_by_hand():
    """diag(p) - p p' of every example, for any tangent, as a mean over examples."""
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    tangent = np.array([[1.0, -2.0, 0.5], [0.3, 0.0, 2.0]])
    wanted = [(np.diag(row) - np.outer(row, row)) @ t / 2 for row, t in zip(p, tangent, strict=True)]
    batch = ShotBatch(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64))
    log_probs, way = torch.tensor(p).log().unsqueeze(0), torch.tensor(tangent).unsqueeze(0)
    (found,) = CrossEntropy(lambda params, inputs: inputs).fisher((log_probs,), (way,), batch)
    np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("outer", [SGD(0.1), TRPO(fisher_fraction=1.0)], ids=["sgd", "trpo"])
def test_an_iteration_of_every_kind(patterns, kind, outer):
    """Pure, improving under a trust region, and alike however many threads and tasks at once."""
    family = patterns()
    learners = []
    for threads, chunk in ((1, 1), (2, 1), (1, 3)):
        net = Conv4((1, 8, 8), 3, 16 if kind == "group" else 4, normalization=kind)
        domain = ShotDomain(family, net, Workers(threads), chunk)
        rule = GradientStep(domain.inner_loss, 0.2)
        learners.append(MetaLearner(domain, rule, outer, 1, meta_batch_size=3, chunk_tasks=chunk))
    start = learners[0].init(0)
    (one, metrics), (two, _), (other, _) = (learner.iteration(start) for learner in learners)
    assert all(torch.equal(one.meta[n], two.meta[n]) for n in one.meta), "threads change the result"
    # rounding is enlarged by conjugate gradient and line search, and by groups of two numbers that are nearly equal (in
    # float64 the meta-gradient of every cut is that of the loop, above)
    loose = isinstance(outer, TRPO) or kind == "group"
    torch.testing.assert_close(ravel(one.meta), ravel(other.meta), rtol=0, atol=1e-2 if loose else 1e-5)
    assert 0 <= metrics["pre_accuracy"] <= 1
    assert metrics["env_steps"] == 2 * 3 * 3 * 3  # (support 2 + query 4) * 3 ways * 3 tasks, of which each is seen once
    if isinstance(outer, TRPO):
        assert metrics["line_search_accepted"] == 1
        assert metrics["loss_change"] < 0
        assert 0 < metrics["kl"] <= 0.01
