"""The classifiers that meta-learning is compared with: against scipy and loops over tasks, classes and examples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from torch.nn import functional

from metarl.core.params import expand
from metarl.fewshot import ShotBatch
from metarl.fewshot.backbone import Backbone
from metarl.fewshot.losses import CrossEntropy
from metarl.fewshot.references import fine_tuning, fit_head, nearest, prototype_logits, prototypes
from metarl.nets import Conv4

TASKS, SHOTS, WAYS = 3, 2, 4


@pytest.fixture
def examples():
    """Inputs (M, S, 2, 3) and (M, Q, 2, 3), and targets in an order that is no class's."""
    random = np.random.default_rng(0)
    targets = np.stack([random.permutation(np.repeat(np.arange(WAYS), SHOTS)) for _ in range(TASKS)])
    support, query = random.normal(size=(TASKS, SHOTS * WAYS, 2, 3)), random.normal(size=(TASKS, 7, 2, 3))
    return torch.tensor(support), torch.tensor(targets), torch.tensor(query)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_nearest_neighbours_are_scipys(examples, distance):
    """Catches the farthest, another task's neighbours, a label in place of its place, and one distance for the other."""
    support, targets, query = examples
    query = query * torch.linspace(0.1, 10, 7, dtype=query.dtype)[None, :, None, None]
    found = nearest(support, targets, query, distance)
    for task in range(TASKS):
        apart = cdist(query[task].flatten(1).numpy(), support[task].flatten(1).numpy(), distance)
        assert found[task].tolist() == targets[task].numpy()[apart.argmin(1)].tolist()
    other = nearest(support, targets, query, {"euclidean": "cosine", "cosine": "euclidean"}[distance])
    assert (other != found).any(), "the distances cannot be told apart here"


def test_blank_images_have_neighbours():
    """A norm of 0 makes cosines that are not numbers, which argmin takes for the least."""
    support = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]])
    query = torch.tensor([[[2.0, 2.0], [0.0, 0.0]]])
    assert nearest(support, torch.tensor([[5, 6, 7]]), query, "cosine").tolist() == [[6, 5]]
    with pytest.raises(ValueError, match="euclidean, cosine"):
        nearest(support, torch.tensor([[5, 6, 7]]), query, "manhattan")


def test_prototypes_are_those_of_a_loop(examples):
    """Catches sums for means, other tasks' examples, distances that are not squared or have the wrong sign."""
    support, targets, query = (x.flatten(2) if x.dim() == 4 else x for x in examples)
    centres, logits = prototypes(support, targets, WAYS), prototype_logits(support, targets, query, WAYS)
    for task, way in itertools.product(range(TASKS), range(WAYS)):
        own = [support[task, s].numpy() for s in range(SHOTS * WAYS) if targets[task, s] == way]
        np.testing.assert_allclose(centres[task, way].numpy(), sum(own) / len(own), rtol=1e-12)
        for q in range(7):
            apart = query[task, q].numpy() - sum(own) / len(own)
            assert float(logits[task, q, way]) == pytest.approx(-float(apart @ apart), rel=1e-10)


def _solved(features, targets, strength):
    """One task's optimum by scipy."""
    shape = (features.shape[1] + 1, WAYS)
    strength = strength * (features**2).sum(1).mean()

    def objective(flat):
        head = torch.tensor(flat.reshape(shape), requires_grad=True)
        logits = torch.tensor(features) @ head[:-1] + head[-1]
        total = functional.cross_entropy(logits, torch.tensor(targets)) + strength / 2 * head[:-1].square().sum()
        (gradient,) = torch.autograd.grad(total, head)
        return float(total.detach()), gradient.numpy().ravel()

    return minimize(objective, np.zeros(np.prod(shape)), jac=True, method="BFGS", options={"gtol": 1e-9}).x.reshape(
        shape
    )


@pytest.mark.parametrize(("strength", "scale"), [(0.001, 1.0), (0.1, 1.0), (0.1, 50.0)])
def test_a_head_is_the_optimum_of_its_task(examples, strength, scale):
    """Catches a penalty on the bias, one that depends on the features' scale or on other tasks, and a search that stops early."""
    support, targets, _ = examples
    features = scale * support.flatten(2) * torch.tensor([1.0, 3.0, 0.2])[:, None, None]
    head = fit_head(features, targets, WAYS, strength)
    for task in range(TASKS):
        wanted = _solved(features[task].numpy(), targets[task].numpy(), strength)
        logits = features[task].numpy() @ wanted[:-1] + wanted[-1]
        found = torch.baddbmm(head["head.bias"][:, None], features, head["head.weight"])[task]
        # a constant on all biases changes nothing
        np.testing.assert_allclose(
            found - found.mean(1, keepdim=True), logits - logits.mean(1, keepdims=True), atol=2e-4
        )


def test_fine_tuning_is_torchs_adam_on_each_task_alone(patterns):
    """Catches tasks that share an optimiser's state or a mean, steps that are off by one, and parameters changed in place."""
    net = Conv4((1, 8, 8), 3, 4)
    family = patterns()
    tasks = family.sample_tasks(3, "train", 0)
    (inputs, targets), _ = family.draw(tasks, np.arange(3, dtype=np.uint32))
    batch = ShotBatch(torch.tensor(inputs), torch.tensor(targets))
    meta = net.init(torch.Generator().manual_seed(0))
    start = expand(meta, 3)
    before = {name: value.clone() for name, value in start.items()}
    steps = fine_tuning(CrossEntropy(net).loss, start, batch, 0.01)
    found = [{name: value.clone() for name, value in params.items()} for params in itertools.islice(steps, 4)]
    assert all(torch.equal(start[name], before[name]) for name in start)
    for task in range(3):
        own = {name: value.clone().requires_grad_() for name, value in meta.items()}
        optimizer = torch.optim.Adam(own.values(), lr=0.01)
        for step in range(4):
            for name, value in own.items():
                torch.testing.assert_close(found[step][name][task], value.detach(), rtol=1e-4, atol=2e-5)
            optimizer.zero_grad()
            logits = net({name: value[None] for name, value in own.items()}, batch.inputs[task][None])[0]
            functional.cross_entropy(logits, batch.targets[task]).backward()
            optimizer.step()


@pytest.mark.parametrize(("downsampling", "side"), [("stride", 8), ("pool", 32)])
def test_a_backbone_is_the_network(downsampling, side):
    """In ``train()`` mode with batch statistics, in ``eval()`` mode folded into convolutions: the same features, and a half head.

    Catches a normalisation in another place, features in another order, and a fold with another mean, variance or epsilon.
    """
    net = Conv4((2, side, side), 5, 4, downsampling)
    backbone = Backbone.of(net, torch.Generator().manual_seed(0))
    backbone.body.double()
    generator = torch.Generator().manual_seed(1)
    for norm in backbone._normalizations:
        for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5)
    images = torch.rand(6, 2, side, side, generator=generator, dtype=torch.float64)
    for kind in ("running", "transductive"):
        backbone.body.train(kind != "running")
        other, params = backbone.embedding(kind)  # before the pass, which moves the running statistics
        wanted = backbone(images)
        assert wanted.shape == (6, net.features)
        found = other({name: value[None] for name, value in params.items()}, images[None])[0]
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-9, atol=1e-10)
    fresh, drawn = Backbone.of(net, torch.Generator().manual_seed(3)), net.init(torch.Generator().manual_seed(3))
    assert all(torch.equal(fresh._convolutions[b].weight, drawn[f"{b}.weight"]) for b in range(4))
