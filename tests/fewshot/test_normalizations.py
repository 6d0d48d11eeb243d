"""Bias and variance of normalising statistics: against activations taken from torch's modules, one draw after the other."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import torch

from experiments import normalizations
from metarl.fewshot import ShotDomain
from metarl.fewshot.backbone import Backbone
from metarl.nets import Conv4
from metarl.nets import normalization as norm
from tests.fewshot.conftest import EACH

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = normalizations.Settings(shots=1, queries=5, images=EACH, tasks=5, draws=50)


@pytest.fixture(params=["stride", "pool"])
def layers(request):
    """A network, ten images of two classes, and what its normalisations are given (N, F, H, W), layer by layer."""
    side = 8 if request.param == "stride" else 32
    backbone = Backbone.of(Conv4((1, side, side), 2, 4, request.param), torch.Generator().manual_seed(0))
    images = torch.rand(10, 1, side, side, generator=torch.Generator().manual_seed(1))
    given, x = [], images
    with torch.no_grad():
        for layer in backbone.body.train():
            given += [x] if isinstance(layer, torch.nn.BatchNorm2d) else []
            x = layer(x)
    net, params = backbone.embedding("transductive")
    return net, params, images, given


def test_moments_are_those_of_torchs_layers(layers):
    """Catches moments behind the normalisation, or of a layer that is normalised otherwise below."""
    net, params, images, given = layers
    found = normalizations.moments(net, params, images)
    for (first, second), x in zip(found, given, strict=True):
        torch.testing.assert_close(first, x.double().mean((2, 3)), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(second, x.double().pow(2).mean((2, 3)), rtol=1e-4, atol=1e-6)


def test_draws_are_of_each_class_and_apart():
    """Catches queries that are in the support set, classes that are left out, and the same draw again and again."""
    targets = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0, 1])
    support, query, one = normalizations.draws(targets, 2, 3, 50, np.random.default_rng(0))
    for way in range(2):
        assert ((support[:, targets == way] > 0).sum(1) == 2).all()
        assert ((query[:, targets == way] > 0).sum(1) == 3).all()
    assert not ((support > 0) & (query > 0)).any()
    assert ((one > 0).sum(1) == 1).all()
    assert (query[one > 0] > 0).all()
    for weights in (support, query, one):
        torch.testing.assert_close(weights.sum(1), torch.ones(50, dtype=torch.float64))
    assert len(torch.unique(support, dim=0)) > 20


def test_estimates_are_those_of_the_images_themselves(layers):
    """Every protocol's mean and variance from the activations of its images; TaskNorm's by the network's own code."""
    _, _, _, given = layers
    targets = torch.arange(2).repeat(5)
    support, query, one = normalizations.draws(targets, 2, 3, 4, np.random.default_rng(0))
    for x in (each.double() for each in given):
        layer = normalizations.Moments(x.mean((2, 3)), x.square().mean((2, 3)))
        found = normalizations.estimates(layer, support, query, one)
        for r in range(4):
            sets = {"transductive": query[r] > 0, "support": support[r] > 0, "alone": one[r] > 0}
            sets["one-by-one"] = (support[r] > 0) | (one[r] > 0)
            for name, chosen in sets.items():
                variance, mean = torch.var_mean(x[chosen], (0, 2, 3), correction=0)
                torch.testing.assert_close(found[name].mean[r], mean)
                torch.testing.assert_close(found[name].variance[r], variance)
            both = torch.cat([x[support[r] > 0], x[one[r] > 0]])
            mean, variance = norm._mixed(both, torch.zeros(1, 2, dtype=x.dtype), 4)
            torch.testing.assert_close(found["task"].mean[r], mean[-1, :, 0, 0])
            torch.testing.assert_close(found["task"].variance[r], variance[-1, :, 0, 0])


def test_bias_and_variance_by_hand():
    """Two draws, two channels. Means: errors (1, 3) and (0, 0) in deviations of 2 and 1; scales: twice and half the deviation."""
    truth = normalizations.Estimate(torch.tensor([0.0, 5.0]).double(), torch.tensor([4.0, 1.0]).double())
    means, variances = [[2.0, 5.0], [6.0, 5.0]], [[16.0, 1.0], [1.0, 1.0]]
    estimate = normalizations.Estimate(torch.tensor(means).double(), torch.tensor(variances).double())
    off = [(2**2 + 0) / 2, (1 + 0) / 2]
    scale = [0.0, np.log(2) ** 2 / 2]
    np.testing.assert_allclose(normalizations.decomposed(estimate, truth), [*off, *scale], rtol=1e-4, atol=1e-5)
    # what is the same in every draw has no variance
    fixed = normalizations.Estimate(torch.tensor([2.0, 5.0]).double(), truth.variance)
    np.testing.assert_allclose(normalizations.decomposed(fixed, truth), [0.5, 0, 0, 0], rtol=1e-4, atol=1e-9)


def test_the_study_knows_what_must_be(patterns, tmp_path):
    """All queries vary less than a few support images, which vary less than one image; training's never do, but are wrong.

    Catches estimators under each other's names, and tasks whose own statistics are another task's.
    """
    net = Conv4((1, 8, 8), 3, 4)
    domain = ShotDomain(patterns(shots=1, queries=EACH - 1), net)
    rows = normalizations.study(domain, net, domain.init(torch.Generator().manual_seed(0)), SETTINGS)
    bias, variance, _, spread = np.mean([np.array(rows[name]) for name in normalizations.ESTIMATORS], 1).T
    at = {name: index for index, name in enumerate(normalizations.ESTIMATORS)}
    order = [variance[at[name]] for name in ("running", "transductive", "support", "alone")]
    assert order == sorted(order)
    assert (variance[at["running"]], spread[at["running"]]) == (0, 0)
    assert bias[at["running"]] > 3 * bias[at["transductive"]]
    origin = {"commit": "c", "cpu": "x", "cores": 1, "versions": {}}
    result = {**dataclasses.asdict(SETTINGS), "env": "e", "ways": 3, "rows": rows, "trained_by": "t", "command": "c"}
    text = normalizations.report(result | {"provenance": origin})
    assert [line.count("|") for line in text.splitlines() if line.startswith("|")] == [8] * 8
    normalizations.draw(result, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run is missing"),
        (["run=nowhere", "shots=6"], "shots=6 and queries=15 are more than images=20"),
        (["run=nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes_end_with_one_line(monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["x", *words])
    assert normalizations.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


def test_small_parts_of_an_error_are_not_none():
    """0.000 for a bias that is small beside the variance; a table that is not of the recorded numbers alone."""
    shown = [normalizations._digits(value) for value in (0.000341, 0.5, 0.003, 0.0, 0.0996, 12.3, 2.7e-7)]
    assert shown == ["0.00034", "0.50", "0.0030", "0", "0.10", "12", "0.00000027"]
    recorded = json.loads((ROOT / normalizations.RESULTS / "normalizations.json").read_text())
    assert normalizations.report(recorded) in (ROOT / "experiments" / "README.md").read_text()
