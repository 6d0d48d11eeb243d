"""Few-shot evaluation: scores after every inner update, by several protocols, adapting once. Shapes: M tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from metarl.analysis.curves import Curve
from metarl.core.parallel import Workers
from metarl.core.params import Params, detach, expand
from metarl.domain import Seed
from metarl.families import Tasks, make
from metarl.fewshot import ShotDomain, protocols
from metarl.learner import MetaLearner
from metarl.nets.net import Net
from metarl.settings import SettingsError

if TYPE_CHECKING:
    from metarl.analysis.agent import Agent

# Tasks whose adapted parameters are held at once: hundreds of copies of a network would fill the memory.
_TASKS = 25


def shot_curves(
    learner: MetaLearner, meta: Params, tasks: Tasks, seed: Seed, points: Sequence[int], nets: Mapping[str, Net]
) -> dict[str, Curve]:
    """Score every task after some numbers of inner updates, by several networks on the same adapted parameters.

    Args:
        learner: brings domain and inner rule.
        meta: meta-parameters.
        tasks: M tasks.
        seed: all randomness is a function of it; :func:`~metarl.analysis.curves.update_curve` draws the same examples.
        points: the numbers of updates, ascending.
        nets: who predicts, by name (:func:`metarl.fewshot.protocols`).

    Returns:
        A curve of every network.
    """
    domain = shot_domain(learner)
    seeds, values = domain.seeds(seed, len(tasks)), {name: np.empty((len(points), len(tasks))) for name in nets}
    judges = {name: dataclasses.replace(domain, net=net) for name, net in nets.items()}
    shots = 0
    for start in range(0, len(tasks), _TASKS):
        cut = slice(start, start + _TASKS)
        support, query = domain.draw(tasks.rows(cut), seeds[cut])
        params, shots = expand(detach(meta), support.num_tasks), support.num_samples
        for step in range(max(points) + 1):
            if step in points:
                for name, judge in judges.items():
                    scores = judge.judge(params, judge.referring(query, support)).scores
                    values[name][list(points).index(step), cut] = scores.double().cpu().numpy()
            if step < max(points):
                params = learner.adapt(params, support, step)
    return {name: Curve(tuple(points), tuple(min(k, 1) * shots for k in points), each) for name, each in values.items()}


def judged_by(name: str, agent: Agent, normalization: str | None) -> Agent:
    """Return an agent whose queries are normalised in another way than in training, which changes no parameter.

    Args:
        name: of the run, for messages.
        agent: on labelled shots, unless nothing is to be changed.
        normalization: one of :func:`metarl.fewshot.protocols`; None changes nothing.

    Raises:
        SettingsError: if its network cannot be judged so.
    """
    if normalization is None:
        return agent
    domain = shot_domain(agent.learner)
    nets = protocols(domain.net)
    if normalization not in nets:
        own = f"it has {', '.join(nets)} alone" if all(nets) else "it has none"
        raise SettingsError(f"normalization={normalization} does not fit the network of {name}: {own}; leave it out")
    domain = dataclasses.replace(domain, net=nets[normalization])
    return dataclasses.replace(agent, learner=dataclasses.replace(agent.learner, domain=domain))


def shot_domain(learner: MetaLearner) -> ShotDomain:
    """Return the learner's domain, which must be of labelled shots.

    Raises:
        SettingsError: of reinforcement learning.
    """
    if not isinstance(learner.domain, ShotDomain):
        raise SettingsError("this needs a run on labelled shots; this one is of reinforcement learning")
    return learner.domain


def with_shape(
    learner: MetaLearner, env: str, settings: Mapping[str, object], workers: Workers | None = None
) -> MetaLearner:
    """Return the learner on tasks of other settings (shots and queries of a class, say), with the data it has loaded.

    Args:
        learner: on few-shot tasks.
        env: its family.
        settings: all settings of the new tasks, which must not change the data.
        workers: threads of the same device; None keeps training's.
    """
    domain = dataclasses.replace(shot_domain(learner), family=make(env, **dict(settings)))
    domain = domain if workers is None else dataclasses.replace(domain, workers=workers)
    return dataclasses.replace(learner, domain=domain)
