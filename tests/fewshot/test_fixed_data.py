"""An iteration on data that are the same whoever asks adapts once, and is that of the long way in every number."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

import metarl
from metarl import families
from metarl.core import Adam
from metarl.fewshot import ShotBatch, ShotDomain
from metarl.fewshot.losses import CrossEntropy
from metarl.learner import MetaLearner
from metarl.nets import Conv4

SIZES = {"meta_batch_size": 5, "inner_steps": 3, "chunk_tasks": 2, "threads": 2}
LEARNERS = {
    "maml": ("patterns", "maml-adam", {}),
    "anil": ("patterns", "anil-adam", {}),
    "sgd": ("sinusoid", "maml-sgd", {}),
    "reptile": ("patterns", "reptile", {}),
    "imaml": ("sinusoid", "imaml-adam", {}),
    "multi-step": ("patterns", "maml-adam", {"multi_step": 9}),
    "zero steps": ("patterns", "maml-adam", {"inner_steps": 0}),
}


def _learner(patterns, monkeypatch, name):
    monkeypatch.setattr(families, "_registered", {**families._registered, "patterns": patterns})
    env, algo, settings = LEARNERS[name]
    own = {"filters": 4} if env == "patterns" else {}
    return metarl.build(env, algo, **{**SIZES, **own, **settings})


@pytest.mark.parametrize("name", LEARNERS)
def test_iterations_are_those_of_the_long_way(patterns, monkeypatch, name):
    """Other data, scores of other parameters, steps that are counted twice, a gradient of something else."""
    learner = _learner(patterns, monkeypatch, name)
    short = long = learner.init(0)
    for _ in range(2):
        short, told = learner.iteration(short)
        with monkeypatch.context() as patch:
            patch.setattr(ShotDomain, "fixed", lambda self, params, tasks, seed: None)
            long, wanted = learner.iteration(long)
        assert all(torch.equal(short.meta[key], long.meta[key]) for key in long.meta)
        assert short.env_steps == long.env_steps
        assert told.keys() == wanted.keys()
        for key in (key for key in wanted if "second" not in key):
            assert told[key] == pytest.approx(wanted[key], rel=1e-5, abs=1e-6), key


def test_the_outer_loss_and_the_judge_take_the_faster_order(monkeypatch):
    """An order in memory that nobody asks for, or one that second derivatives are slower in."""
    seen, features = [], Conv4._features
    monkeypatch.setattr(
        Conv4, "_features", lambda net, *args: (seen.append(net.channels_last), features(net, *args))[1]
    )
    net = Conv4((1, 16, 16), 3, 4)
    loss, params = CrossEntropy(net), {n: v.unsqueeze(0) for n, v in net.init(torch.Generator().manual_seed(0)).items()}
    batch = ShotBatch(torch.rand(1, 6, 1, 16, 16), torch.arange(6).remainder(3).unsqueeze(0))
    for evaluated in (loss, loss.judge, loss.loss, loss.predict):
        evaluated(params, batch)
    assert seen == [True, True, False, False]


def test_nobody_adapts_to_gather_what_is_there(patterns, monkeypatch):
    """A third of an iteration's time that buys nothing."""
    learner = _learner(patterns, monkeypatch, "maml")
    calls = []
    monkeypatch.setattr(MetaLearner, "adapt", lambda *args: calls.append(args))
    learner.iteration(learner.init(0))
    assert not calls


def test_rules_that_need_predictions_get_those_of_the_adapted_parameters(patterns, monkeypatch):
    """A KL from the wrong distribution, which TRPO would refuse or, worse, step by."""
    monkeypatch.setattr(families, "_registered", {**families._registered, "patterns": patterns})
    learner = metarl.build("patterns", "maml-trpo", filters=4, **SIZES)
    _, metrics = learner.iteration(learner.init(0))
    assert 0 < metrics["kl"] <= learner.outer.max_kl


@dataclasses.dataclass(frozen=True)
class Silent:
    """A rule of a user's own, which tells no scores."""

    adam: Adam = dataclasses.field(default_factory=Adam)

    needs_geometry: ClassVar[bool] = False
    needs_ratio: ClassVar[bool] = False

    def init(self, meta):
        """Return Adam's state."""
        return self.adam.init(meta)

    def step(self, meta, objective, state):
        """Take its step."""
        return self.adam.step(meta, objective, state)._replace(scores=())


def test_scores_that_a_rule_does_not_tell_are_taken(patterns, monkeypatch):
    """An accuracy after adapting that is the one before it, or an error."""
    learner = _learner(patterns, monkeypatch, "maml")
    state = learner.init(0)
    (_, told), (_, wanted) = (one.iteration(state) for one in (dataclasses.replace(learner, outer=Silent()), learner))
    assert told["post_accuracy"] == pytest.approx(wanted["post_accuracy"])
    assert told["post_accuracy"] != told["pre_accuracy"]
