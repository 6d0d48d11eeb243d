"""Adapted policies of every form, made in a moment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import metarl
from metarl.analysis.agent import AdaptedPolicy

TINY = {"meta_batch_size": 1, "episodes_per_task": 3, "inner_lr": 0.5, "threads": 1}


@pytest.fixture(scope="session")
def adapted():
    """``adapted("halfcheetah-vel", algo="cavia-trpo", ...)``: a policy after one inner update, with statistics if any."""

    def make(env, algo=None, env_settings=None, **settings):
        learner = metarl.build(env, algo, env_settings=env_settings or {}, **{**TINY, **settings})
        meta, tasks = learner.init(seed=0).meta, learner.domain.sample_tasks(1, "train", (0,))
        first = learner.domain.collect({n: v[None] for n, v in meta.items()}, tasks, (0, 0, 0), "support")
        learner = metarl.MetaLearner(
            learner.domain.given(learner.domain.learned([first])), learner.inner, learner.outer
        )
        domain = learner.domain
        params = learner.explore(meta, tasks, (0, 0, 1), 1).params
        size = metarl.make(env, **(env_settings or {})).spec.observation_size
        context = domain.told(torch.zeros(1, 1, size), tasks)[0, 0, size:].numpy()
        return AdaptedPolicy(domain.policy, params, domain.family.spec, context, 0, domain.normalizer)

    return make


@pytest.fixture
def observations():
    """1,000 of them, some beyond what a normaliser lets through; those of masks are 0 or 1, with a legal choice."""

    def draw(policy):
        spec, random = policy.spec, np.random.default_rng(0)
        drawn = (random.normal(size=(1000, spec.observation_size)) * 3).astype(np.float32)
        if spec.choices is not None and spec.choices.masked:
            mask = drawn[:, -sum(spec.choices.counts) :]
            mask[:] = mask > 0
            mask[:, np.cumsum([0, *spec.choices.counts[:-1]])] = 1.0
        return drawn

    return draw
