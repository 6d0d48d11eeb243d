"""References of few-shot runs: classifiers that adapt nothing, on the tasks, support and query sets of an evaluation.

Shapes: M tasks, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.analysis.curves import interval
from metarl.analysis.methods import SHOT_METHODS
from metarl.analysis.parts import Finding
from metarl.core.parallel import chunks
from metarl.core.params import Params, detach
from metarl.domain import Seed
from metarl.families import ShotSpec, Tasks
from metarl.fewshot import ShotBatch, ShotDomain
from metarl.fewshot.references import nearest, prototype_logits
from metarl.nets import Flat
from metarl.settings import SettingsError

KIND = "labelled shots"
_DISTANCES = {"nearest-euclidean": "euclidean", "nearest-cosine": "cosine"}
# Tasks whose examples are held at once; what a network makes of them is held for a chunk of them alone.
_TASKS = 25


def refusal(env: str, spec: ShotSpec) -> str:
    """Say why a family of labelled shots can have no such references; empty where it can."""
    if spec.loss != "cross_entropy":
        return (
            f"references of labelled shots are classifiers, and {env} predicts numbers; compare it with runs instead:"
            " python -m metarl.evaluate run=RUN compare=[RUN2]"
        )
    return ""


def fitting(domain: ShotDomain, methods: Sequence[str]) -> dict[str, str]:
    """Return why a network can have no reference of some kind, by the method's name; of those that it can have nothing."""
    net = domain.net
    called = f"Flat of {type(net.net).__name__}" if isinstance(net, Flat) else type(net).__name__
    reason = f"{called} has no body whose features could be taken before its last layer"
    return {name: reason for name in methods if name == "prototypes" and domain.once(()) is None}


def accuracies(
    domain: ShotDomain, meta: Params, tasks: Tasks, seed: Seed, methods: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the fraction of every task's queries that each method classifies rightly, float64 (M,).

    Args:
        domain: draws the examples; its network is the run's, which normalises as it does in the run's own scores.
        meta: meta-parameters, which prototypes take as they are.
        tasks: M tasks.
        seed: of the examples; :func:`~metarl.analysis.curves.update_curve` of the same seed draws the same.
        methods: among :data:`~metarl.analysis.methods.SHOT_METHODS`.

    Raises:
        SettingsError: where features are not finite, or a support set has no example of some class.
    """
    theta, seeds = detach(meta), domain.seeds(seed, len(tasks))
    found: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for start in range(0, len(tasks), _TASKS):
        block = slice(start, start + _TASKS)
        support, query = domain.draw(tasks.rows(block), seeds[block])

        def part(cut: slice, support: ShotBatch = support, query: ShotBatch = query) -> dict[str, np.ndarray]:
            with torch.no_grad():  # which holds for one thread only
                return _part(domain, theta, support.rows(cut), query.rows(cut), methods)

        samples = support.num_samples + query.num_samples
        cuts = chunks(support.num_tasks, samples, domain.workers.device, domain.chunk_tasks)
        for scores in domain.workers.map(part, cuts):
            for name in methods:
                found[name].append(scores[name])
    return {name: np.concatenate(each) for name, each in found.items()}


def summarise(found: Mapping[str, np.ndarray], ours: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return what is written of every reference: mean, interval over tasks, and how much more a run has on the same tasks.

    Args:
        found: accuracies of every reference, (M,).
        ours: the run's after its last update, (M,).
    """
    return {
        name: {
            "about": SHOT_METHODS[name],
            **_estimate(own),
            "values": own.tolist(),
            "difference": _estimate(ours - own),
        }
        for name, own in found.items()
    }


def holds(result: Mapping[str, Any]) -> bool:
    """Tell whether a ``references.json`` is of labelled shots."""
    return result.get("kind") == KIND


def findings(result: Mapping[str, Any]) -> list[Finding]:
    """Say of every reference whether the adapted network does better; a reference that does is a warning."""
    told, count, metric = [], len(result["tasks"]), result["metric"]
    ours = result["meta_learner"]["mean"][-1]
    for name, one in result["references"].items():
        gain, (low, high) = one["difference"]["mean"], one["difference"]["ci95"]
        paired = f"{metric} {ours:.4g} against {one['mean']:.4g}; paired difference {gain:.4g} [{low:.4g}, {high:.4g}]"
        other, tasks = f"{name} ({one['about']})", f"{count} task{'s' * (count > 1)}"
        better, worse = count > 1 and low > 0, count > 1 and high < 0  # the interval of a single task has no width
        text = f"The adapted network does {'better' if better else 'worse'} than {other}: {paired}."
        if not (better or worse):
            text = f"The adapted network and {other} cannot be told apart by {tasks}: {paired}."
        told.append(Finding(text, warns=worse))
    return told


def rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """Return a head, and a row for every task's score: after each update, and of references, which have none."""
    tasks, ours = result["tasks"], result["meta_learner"]
    curves = [("meta-learner", *point) for point in zip(ours["updates"], ours["values"], strict=True)]
    curves += [(name, "", one["values"]) for name, one in result["references"].items()]
    table: list[list[Any]] = [["method", "updates", "task", *tasks[0], result["metric"]]]
    for name, updates, scores in curves:
        table += [[name, updates, task, *tasks[task].values(), score] for task, score in enumerate(scores)]
    return table


def like(
    curve: Mapping[str, Any] | None,
    names: Sequence[str] = ("tasks", "checkpoint", "seed"),
    updates: bool = True,
) -> list[str]:
    """Return the settings, as words, that make references for the tasks and updates of an evaluation.

    Args:
        curve: what ``curve.json`` holds; None gives no words.
        names: of settings that both have, beside those of updates.
        updates: whether the run has inner updates, whose number and step sizes are told.
    """
    settings = curve["settings"] if curve else {}
    if settings.get("split") != "test":
        return []
    words = {name: settings.get(name) for name in names}
    if updates:
        words["steps"] = settings.get("steps")
        words["inner_lr"] = f"[{','.join(map(str, settings['inner_lr']))}]" if settings.get("inner_lr") else None
        words["tune"] = "true" if settings.get("tune") else None
    return [f"{name}={value}" for name, value in words.items() if value and value != "last"]


def _part(
    domain: ShotDomain, meta: Params, support: ShotBatch, query: ShotBatch, methods: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the accuracies of a chunk of tasks."""
    found = {}
    for name in methods:
        if name in _DISTANCES:
            classes = nearest(support.inputs, support.targets, query.inputs, _DISTANCES[name])
        else:
            classes = _by_prototypes(domain, meta, support, query)
        found[name] = (classes == query.targets).double().mean(1).cpu().numpy()
    return found


def _by_prototypes(domain: ShotDomain, meta: Params, support: ShotBatch, query: ShotBatch) -> Tensor:
    """Return the classes of the nearest means of features, int64 (M, Q)."""
    once = domain.once(())
    assert once is not None, "asked for of a network without a body"
    seen, asked = (batch.features.flatten(2) for batch in once(meta, [support, query]))
    logits = prototype_logits(seen, support.targets, asked, domain.family.spec.target_size)
    if not torch.isfinite(logits).all():
        raise SettingsError(
            "prototypes: some are not finite, because features are not, or because a support set has no example of a class;"
            " leave prototypes out of methods="
        )
    return logits.argmax(-1)


def _estimate(values: np.ndarray) -> dict[str, Any]:
    """Return mean and Student's 95 % interval over tasks."""
    return {"mean": float(values.mean()), "ci95": interval(values).tolist()}
