"""Rows of the few-shot table that nothing was meta-learned for: neighbours of pixels, transfer, prototypes.

All are judged on the algorithms' test tasks and, but for pixels, with their network. What they have to choose (the strength of a
penalty, a step size, the number of steps) is chosen on the validation tasks that choose the algorithms' number of updates, for
every protocol by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from experiments import recording
from experiments.fewshot_networks import Trained, embedded
from metarl.core import params as parameters
from metarl.core.params import Params
from metarl.families import Split
from metarl.fewshot import ShotBatch, ShotDomain
from metarl.fewshot.losses import CrossEntropy
from metarl.fewshot.references import DISTANCES, fine_tuning, fit_head, nearest, prototype_logits
from metarl.learner import TEST, VALIDATION
from metarl.nets import Conv4

# whose statistics normalise a query; the first two are batch statistics, which support sets have of their own
KINDS = ("running", "transductive", "support")
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
RATES = (0.001, 0.01)
STEPS = (0, 1, 2, 5, 10, 20)
_TASKS = 25  # at once

# accuracies of every protocol after every number of steps, (steps, M)
Scores = dict[str, np.ndarray]
Judge = Callable[[ShotBatch, ShotBatch], Scores]


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The tasks that rows are judged on.

    Attributes:
        domain: draws them; its network is that of the algorithms.
        tasks: of the test.
        held: validation tasks that choose.
    """

    domain: ShotDomain
    tasks: int
    held: int

    def judged(self, judge: Judge, split: Split) -> Scores:
        """Judge all tasks of a split, some at a time."""
        stream, count = ((0, TEST), self.tasks) if split == "test" else ((0, VALIDATION), self.held)
        tasks, seeds = self.domain.sample_tasks(count, split, stream), self.domain.seeds((*stream, 1), count)
        parts = []
        for start in range(0, count, _TASKS):
            cut = slice(start, start + _TASKS)
            parts.append(judge(*self.domain.draw(tasks.rows(cut), seeds[cut])))
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def neighbours(tasks: Tasks) -> dict[str, Any]:
    """Return the rows of nearest neighbours in pixels."""
    found = {}
    for distance in DISTANCES:

        def judge(support: ShotBatch, query: ShotBatch, distance: str = distance) -> Scores:
            classes = nearest(support.inputs, support.targets, query.inputs, distance)
            return {"": _accuracy(classes, query)[None]}

        curve = {"updates": [0], **recording.mean_of_seeds(tasks.judged(judge, "test")[""][None])}
        facts: dict[str, Any] = {key: [] for key in ("iterations", "selected", "minutes", "commands", "commits")}
        found[f"nearest neighbour, {distance}"] = {"trained": "", "updates": 0, "protocols": {"": curve}, **facts}
    return found


def rows(tasks: Tasks, networks: Mapping[str, Sequence[Trained]]) -> dict[str, Any]:
    """Return the rows of the networks that are there, by the kind of their training; several of a kind are its seeds."""
    found: dict[str, Any] = {}
    if networks.get("prototypes"):
        found["prototypical network"] = _row(tasks, networks["prototypes"], _by_prototypes, [0.0], (0,))
    if networks.get("transfer"):
        frozen = _row(tasks, networks["transfer"], _frozen, STRENGTHS, (0,))
        strengths = {kind: curve["chosen"] for kind, curve in frozen["protocols"].items()}
        found["transfer, frozen"] = frozen
        found["transfer, fine-tuned"] = _row(tasks, networks["transfer"], _fine_tuned(strengths), RATES, STEPS)
    return found


# what judges one network's tasks with one choice
Method = Callable[[ShotDomain, Trained, float], Judge]


def _row(
    tasks: Tasks, networks: Sequence[Trained], method: Method, choices: Sequence[float], points: Sequence[int]
) -> dict[str, Any]:
    """Choose on validation tasks, judge on test tasks; means over the seeds of the network."""

    def judged(choice: float, split: Split) -> Scores:
        each = [tasks.judged(method(tasks.domain, network, choice), split) for network in networks]
        return {kind: np.stack([scores[kind] for scores in each]) for kind in each[0]}  # (seeds, steps, M)

    held = {choice: judged(choice, "validation") for choice in choices} if len(choices) * len(points) > 1 else {}
    picked = {kind: _best(held, kind) if held else (choices[0], 0) for kind in KINDS}
    test = {choice: judged(choice, "test") for choice in {choice for choice, _ in picked.values()}}
    protocols = {}
    for kind, (choice, at) in picked.items():
        curve = {"updates": list(points), **recording.mean_of_seeds(test[choice][kind])}
        protocols[kind] = {**curve, "chosen": choice, "chosen_updates": points[at]}
    facts = [network.facts for network in networks]
    return {
        "trained": KINDS[0],
        "updates": protocols[KINDS[0]]["chosen_updates"],
        "protocols": protocols,
        **{key: [fact[key] for fact in facts] for key in ("iterations", "selected", "minutes")},
        "commands": list(dict.fromkeys(fact["command"] for fact in facts)),
        "commits": sorted({fact["commit"] for fact in facts}),
    }


def _best(held: dict[float, Scores], kind: str) -> tuple[float, int]:
    """Return the choice and the place among the points with the greatest mean over seeds and tasks."""
    means = {choice: scores[kind].mean((0, 2)) for choice, scores in held.items()}
    choice = max(means, key=lambda one: float(means[one].max()))
    return choice, int(means[choice].argmax())


def _by_prototypes(domain: ShotDomain, network: Trained, choice: float) -> Judge:
    del choice
    ways = domain.family.spec.target_size

    def judge(support: ShotBatch, query: ShotBatch) -> Scores:
        scores = {}
        for kind in KINDS:
            seen, asked = embedded(domain, network.backbone, kind, support, query)
            logits = prototype_logits(seen, support.targets, asked, ways)
            scores[kind] = _accuracy(logits.argmax(-1), query)[None]
        return scores

    return judge


def _frozen(domain: ShotDomain, network: Trained, choice: float) -> Judge:
    """Fit a head to the features; the choice is the strength of its penalty."""
    ways = domain.family.spec.target_size

    def judge(support: ShotBatch, query: ShotBatch) -> Scores:
        scores = {}
        for kind in KINDS:
            seen, asked = embedded(domain, network.backbone, kind, support, query)
            head = fit_head(seen, support.targets, ways, choice)
            logits = torch.baddbmm(head["head.bias"].unsqueeze(1), asked, head["head.weight"])
            scores[kind] = _accuracy(logits.argmax(-1), query)[None]
        return scores

    return judge


def _fine_tuned(strengths: dict[str, float]) -> Method:
    """Fit a head with the strength that was best for it, then tune all of the network; the choice is the step size."""

    def method(domain: ShotDomain, network: Trained, choice: float) -> Judge:
        ways = domain.family.spec.target_size

        def judge(support: ShotBatch, query: ShotBatch) -> Scores:
            scores = {}
            for kind in KINDS:
                seen, _ = embedded(domain, network.backbone, kind, support, support)
                net, params = network.backbone.embedding(kind)
                start = parameters.expand(params, support.num_tasks) | fit_head(
                    seen, support.targets, ways, strengths[kind]
                )
                own = dataclasses.replace(domain, net=dataclasses.replace(net, outputs=ways))
                scores[kind] = _tuned(own, start, support, own.referring(query, support), choice)
            return scores

        return judge

    return method


def _tuned(domain: ShotDomain, start: Params, support: ShotBatch, query: ShotBatch, lr: float) -> np.ndarray:
    """Return accuracies after ``STEPS`` steps, (steps, M)."""
    assert isinstance(domain.net, Conv4)
    loss = CrossEntropy(domain.net)

    def part(cut: slice) -> np.ndarray:
        own, found = query.rows(cut), []
        for step, params in enumerate(fine_tuning(loss.loss, parameters.rows(start, cut), support.rows(cut), lr)):
            if step in STEPS:
                with torch.no_grad():
                    found.append(loss.judge(params, own).scores.double().cpu().numpy())
            if step == STEPS[-1]:
                break
        return np.stack(found)

    size = domain.chunk_tasks or support.num_tasks
    cuts = [slice(start, start + size) for start in range(0, support.num_tasks, size)]
    return np.concatenate(domain.workers.map(part, cuts), axis=1)


def _accuracy(classes: torch.Tensor, query: ShotBatch) -> np.ndarray:
    """Return the part of every task's queries that is right, float64 (M,)."""
    return (classes == query.targets).double().mean(1).cpu().numpy()
