"""The references of the few-shot experiment: trained in small, judged against loops, chosen on validation tasks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from experiments import fewshot_networks, fewshot_references
from experiments.fewshot_networks import Plan, Trained
from metarl import families
from metarl.fewshot import ShotDomain
from metarl.fewshot.backbone import Backbone
from metarl.learner import TEST, VALIDATION
from metarl.nets import Conv4
from metarl.settings import SettingsError

NAMING = Plan("transfer", iterations=30, seed=1, ways=3, validations=3, tasks=5)
EPISODES = dataclasses.replace(NAMING, kind="prototypes", iterations=20, ways=8)
FACTS = {"iterations": 1, "selected": 1, "minutes": 0.5, "command": "c", "commit": "d"}


@pytest.fixture
def domain(patterns):
    # five examples of a class are asked for in an episode, and there are eight
    return ShotDomain(patterns(ways=3, shots=2, queries=3), Conv4((1, 8, 8), 3, 8), chunk_tasks=1)


@pytest.fixture
def network(domain):
    """Fresh modules whose running statistics are those of some batch."""
    backbone = Backbone.of(domain.net, torch.Generator().manual_seed(0))
    with torch.no_grad():
        backbone(
            domain.draw(domain.sample_tasks(20, "train", (0,)), np.arange(20, dtype=np.uint32))[0].inputs.flatten(0, 1)
        )
    backbone.body.eval()
    return Trained(backbone, FACTS)


def _drawn(domain, split, count):
    stream = (0, {"validation": VALIDATION, "test": TEST}[split])
    tasks = domain.sample_tasks(count, split, stream)
    return domain.draw(tasks, np.array([families.stream((*stream, 1), i).generate_state(1)[0] for i in range(count)]))


@torch.no_grad()
def _features(network, kind, support, query):
    """Features of one task's images, layer by layer through torch's own modules."""
    seen, asked = support, query
    for layer in network.backbone.body:
        if isinstance(layer, torch.nn.BatchNorm2d) and kind != "running":
            own = [(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) for x in (seen, asked)]
            theirs = own[1] if kind == "transductive" else own[0]
            seen, asked = (
                torch.nn.functional.batch_norm(x, *moments, layer.weight, layer.bias, False, 0.0, layer.eps)
                for x, moments in ((seen, own[0]), (asked, theirs))
            )
        else:
            seen, asked = layer(seen), layer(asked)
    return seen, asked


@pytest.mark.parametrize("kind", fewshot_references.KINDS)
def test_prototypes_and_heads_are_judged_as_by_a_loop(domain, network, kind):
    """One task at a time through torch's modules: the nearest mean, and a head fitted by plain gradient descent.

    Catches statistics of another set or task, tasks in other places, and the wrong protocol under a name.
    """
    fewshot_tasks = fewshot_references.Tasks(domain, tasks=5, held=3)
    support, query = _drawn(domain, "test", 5)
    by_mean = fewshot_tasks.judged(fewshot_references._by_prototypes(domain, network, 0.0), "test")[kind]
    by_head = fewshot_tasks.judged(fewshot_references._frozen(domain, network, 0.1), "test")[kind]
    assert by_mean.shape == by_head.shape == (1, 5)
    for task in range(5):
        seen, asked = (x.detach().double() for x in _features(network, kind, support.inputs[task], query.inputs[task]))
        targets, wanted = support.targets[task], query.targets[task]
        centres = torch.stack([seen[targets == way].mean(0) for way in range(3)])
        assert by_mean[0, task] == pytest.approx(
            float((torch.cdist(asked, centres).argmin(1) == wanted).double().mean())
        )
        scale = seen.square().sum(1).mean().sqrt()
        head = torch.zeros(9, 3, dtype=torch.float64, requires_grad=True)
        for _ in range(2000):
            logits = seen / scale @ head[:-1] + head[-1]
            loss = torch.nn.functional.cross_entropy(logits, targets) + 0.05 * head[:-1].square().sum()
            (gradient,) = torch.autograd.grad(loss, head)
            head = (head - 0.5 * gradient).detach().requires_grad_()
        found = (asked / scale @ head[:-1] + head[-1]).argmax(1)
        assert by_head[0, task] == pytest.approx(float((found == wanted).double().mean()))


def test_neighbours_are_judged_as_by_a_loop(domain):
    support, query = _drawn(domain, "test", 30)
    rows = fewshot_references.neighbours(fewshot_references.Tasks(domain, tasks=30, held=3))
    right = []
    for task in range(30):
        for image, wanted in zip(query.inputs[task], query.targets[task], strict=True):
            apart = [float((image - other).square().sum()) for other in support.inputs[task]]
            right.append(bool(support.targets[task][int(np.argmin(apart))] == wanted))
    assert rows["nearest neighbour, euclidean"]["protocols"][""]["mean"] == [pytest.approx(np.mean(right))]


def test_fine_tuning_begins_at_the_frozen_features(domain, network):
    """Catches another head, another protocol, and accuracies one step late."""
    tasks = fewshot_references.Tasks(domain, tasks=30, held=3)
    strengths = dict.fromkeys(fewshot_references.KINDS, 0.1)
    tuned = tasks.judged(fewshot_references._fine_tuned(strengths)(domain, network, 0.01), "test")
    frozen = tasks.judged(fewshot_references._frozen(domain, network, 0.1), "test")
    for kind in fewshot_references.KINDS:
        assert tuned[kind].shape == (len(fewshot_references.STEPS), 30)
        np.testing.assert_allclose(tuned[kind][0], frozen[kind][0], atol=1e-9)
        assert (tuned[kind][-1] != tuned[kind][0]).any(), "twenty steps change nothing"


def test_choices_are_made_on_validation_tasks(domain, network):
    """A method that is right on validation tasks with one choice, and on test tasks with the other: the former counts."""

    def method(domain, network, choice):
        def judge(support, query):
            held = bool((query.inputs[0] == _drawn(domain, "validation", 2)[1].inputs[0]).all())
            good = (choice == 1.0) == held
            scores = np.full((2, support.num_tasks), 0.9 if good else 0.1)
            scores[0 if held else 1] -= 0.05  # the second point is better on validation tasks
            return dict.fromkeys(fewshot_references.KINDS, scores)

        return judge

    row = fewshot_references._row(fewshot_references.Tasks(domain, 4, 2), [network] * 2, method, [0.0, 1.0], (3, 7))
    curve = row["protocols"]["support"]
    assert (curve["chosen"], curve["chosen_updates"], row["updates"]) == (1.0, 7, 7)
    assert curve["mean"] == pytest.approx([0.1, 0.05])
    assert (row["iterations"], row["commands"], row["commits"]) == ([1, 1], ["c"], ["d"])


@pytest.mark.parametrize("plan", [NAMING, EPISODES], ids=lambda plan: plan.kind)
def test_a_network_learns_and_is_kept(domain, tmp_path, monkeypatch, plan):
    """Catches losses of the wrong labels, a best that is not the best on validation tasks, and a network that is trained anew."""
    seen = []
    judge = fewshot_networks.validation_accuracy

    def spy(*words):
        seen.append(judge(*words))
        return seen[-1]

    monkeypatch.setattr(fewshot_networks, "validation_accuracy", spy)
    assert fewshot_networks.trained(tmp_path / "x", plan, domain, train=False) is None
    first = fewshot_networks.trained(tmp_path / "x", plan, domain, train=True)
    every = plan.iterations // 3
    assert first.facts["selected"] == every * (1 + int(np.argmax(seen)))
    assert judge(domain, first.backbone, 5) == max(seen) > 0.6  # chance is a third
    assert not first.backbone.body.training
    monkeypatch.setattr(fewshot_networks, "_train", None)
    again = fewshot_networks.trained(tmp_path / "x", plan, domain, train=True)
    for name, value in first.backbone.body.state_dict().items():
        assert torch.equal(again.backbone.body.state_dict()[name], value)
    other = dataclasses.replace(plan, iterations=7)
    with pytest.raises(SettingsError, match="remove it, or give the same settings"):
        fewshot_networks.trained(tmp_path / "x", other, domain, train=True)
    assert fewshot_networks.trained(tmp_path / "x", other, domain, train=False) is not None


def test_classes_are_named_by_their_own_numbers(domain, monkeypatch):
    """Catches places in a task for classes: an untrained network is as bad on those. Here each class has one number only."""
    backbone = Backbone.of(domain.net, torch.Generator().manual_seed(0))
    loss, modules = fewshot_networks._naming(NAMING, domain, backbone)
    assert modules[1].out_features == 60
    numbers = []
    monkeypatch.setattr(
        fewshot_networks.functional, "cross_entropy", lambda logits, targets: numbers.extend(targets.tolist())
    )
    loss(0)
    assert len(numbers) == 42 * 3 * 1  # 128 // 3 tasks of 3 ways and one shot
    assert set(numbers) <= set(range(40))
    assert len(set(numbers)) > 30
