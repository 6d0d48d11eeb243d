"""Networks that never meta-learn: trained to name all training classes, or by prototypical episodes, with torch's own optimiser."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.params import expand
from metarl.fewshot import ShotBatch, ShotDomain
from metarl.fewshot.backbone import Backbone
from metarl.fewshot.losses import outputs
from metarl.fewshot.references import prototype_logits
from metarl.learner import TRAIN, VALIDATION
from metarl.nets import Conv4
from metarl.run.checkpoint import CheckpointStore
from metarl.run.provenance import provenance
from metarl.settings import SettingsError

KINDS = ("transfer", "prototypes")
_IMAGES = 128  # of a batch that all training classes are named in
_QUERIES = 5  # of a class in a prototypical episode
_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training, which its files must have been made with.

    Attributes:
        kind: one of ``KINDS``.
        iterations: steps of Adam, whose step size falls from 0.001 along a cosine.
        seed: of everything random.
        ways: classes of a prototypical episode.
        validations: how often the network is judged on validation tasks; the best stays.
        tasks: how many of these.
    """

    kind: str
    iterations: int
    seed: int
    ways: int
    validations: int = 40
    tasks: int = 100


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network, and how it was made: plan, iteration of the best validation, minutes, command, commit."""

    backbone: Backbone
    facts: dict[str, Any]


def trained(path: pathlib.Path, plan: Plan, domain: ShotDomain, train: bool) -> Trained | None:
    """Load a network, or train it where it is not there; a training that was interrupted begins anew.

    Args:
        path: where its checkpoint is.
        plan: the training.
        domain: of test tasks, whose network it is.
        train: whether to train what is not there; otherwise None is returned.

    Raises:
        SettingsError: if the one that is there was made by another plan.
    """
    net = domain.net
    assert isinstance(net, Conv4)
    backbone = Backbone.of(net, torch.Generator().manual_seed(plan.seed))
    backbone.body.to(domain.workers.device)
    store = CheckpointStore(path)
    found = store.latest()
    if found is None and not train:
        return None
    if found is None:
        print(f"training {path}", flush=True)
        facts = _train(plan, domain, backbone)
        store.save(plan.iterations, dict(backbone.body.state_dict()), {**facts, "plan": dataclasses.asdict(plan)})
    else:
        if train and found.record["plan"] != dataclasses.asdict(plan):
            raise SettingsError(f"{path} was trained by {found.record['plan']}; remove it, or give the same settings")
        backbone.body.load_state_dict(found.tensors)
        facts = dict(found.record)
    backbone.body.eval()
    return Trained(backbone, facts)


def _train(plan: Plan, domain: ShotDomain, backbone: Backbone) -> dict[str, Any]:
    """Train, and leave the parameters of the best validation in the modules."""
    batch_loss, modules = _LOSSES[plan.kind](plan, domain, backbone)
    optimizer = torch.optim.Adam(modules.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.iterations)
    every = max(1, plan.iterations // plan.validations)
    best, seconds = (-1.0, 0, copy.deepcopy(backbone.body.state_dict())), 0.0
    for iteration in range(plan.iterations):
        started = time.perf_counter()
        backbone.body.train()
        optimizer.zero_grad()
        batch_loss(iteration).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - started
        if (iteration + 1) % every == 0:
            score = validation_accuracy(domain, backbone, plan.tasks)
            print(f"iteration {iteration + 1}/{plan.iterations}  validation accuracy {score:.4f}", flush=True)
            if score > best[0]:
                best = score, iteration + 1, copy.deepcopy(backbone.body.state_dict())
    backbone.body.load_state_dict(best[2])
    return {
        "iterations": plan.iterations,
        "selected": best[1],
        "minutes": seconds / 60,
        "command": shlex.join(["python", "-m", "experiments.fewshot", *sys.argv[1:]]),
        "commit": provenance()["commit"],
    }


Loss = Callable[[int], Tensor]


def _naming(plan: Plan, domain: ShotDomain, backbone: Backbone) -> tuple[Loss, nn.Module]:
    """Name the class among all that the family has numbers for; those of other splits are never right, and soon unlikely."""
    tasks = max(1, _IMAGES // domain.family.spec.target_size)
    drawing = _reshaped(domain, shots=1, queries=1)
    classes = int(domain.family.spec.parameters[0].high) + 1
    generator = torch.Generator().manual_seed(plan.seed)
    head = nn.Linear(backbone.net.features, classes)
    head.weight.data = (torch.rand(head.weight.shape, generator=generator) * 2 - 1) * backbone.net.features**-0.5
    head.bias.data.zero_()
    head.to(domain.workers.device)

    def loss(iteration: int) -> Tensor:
        seed = (plan.seed, TRAIN, iteration)
        drawn = drawing.sample_tasks(tasks, "train", seed)
        images, _ = drawing.draw(drawn, drawing.seeds(seed, tasks))
        numbers = torch.tensor(drawn.values, dtype=torch.int64, device=images.targets.device)
        logits = head(backbone(images.inputs.flatten(0, 1)))
        return functional.cross_entropy(logits, numbers.gather(1, images.targets).flatten())

    return loss, nn.ModuleList([backbone.body, head])


def _episodes(plan: Plan, domain: ShotDomain, backbone: Backbone) -> tuple[Loss, nn.Module]:
    """Find each query's prototype, in episodes of more classes than a test task has; all images are normalised as one batch."""
    drawing = _reshaped(domain, ways=plan.ways, queries=_QUERIES)

    def loss(iteration: int) -> Tensor:
        seed = (plan.seed, TRAIN, iteration)
        drawn = drawing.sample_tasks(1, "train", seed)
        support, query = drawing.draw(drawn, drawing.seeds(seed, 1))
        features = backbone(torch.cat([support.inputs[0], query.inputs[0]])).unsqueeze(0)
        seen, asked = features[:, : support.num_samples], features[:, support.num_samples :]
        logits = prototype_logits(seen, support.targets, asked, plan.ways)
        return functional.cross_entropy(logits[0], query.targets[0])

    return loss, backbone.body


_LOSSES: dict[str, Callable[[Plan, ShotDomain, Backbone], tuple[Loss, nn.Module]]] = {
    "transfer": _naming,
    "prototypes": _episodes,
}


def _reshaped(domain: ShotDomain, **shape: int) -> ShotDomain:
    """Return the domain on tasks of another shape; its family is a dataclass like all of images in classes."""
    family: Any = domain.family
    return dataclasses.replace(domain, family=dataclasses.replace(family, **shape))


def embedded(domain: ShotDomain, backbone: Backbone, kind: str, support: ShotBatch, query: ShotBatch) -> list[Tensor]:
    """Return the features of support and query sets, (M, S, F) and (M, Q, F), normalised as ``kind`` says."""
    net, params = backbone.embedding(kind)
    own = dataclasses.replace(domain, net=net)

    def features(batch: ShotBatch) -> Tensor:
        def part(cut: slice) -> Tensor:
            with torch.no_grad():
                some = batch.rows(cut)
                return outputs(net, expand(params, some.num_tasks), some)

        size = own.chunk_tasks or batch.num_tasks
        return torch.cat(own.workers.map(part, [slice(i, i + size) for i in range(0, batch.num_tasks, size)]))

    return [features(support), features(own.referring(query, support))]


def validation_accuracy(domain: ShotDomain, backbone: Backbone, count: int) -> float:
    """Return the accuracy of nearest prototypes on validation tasks, by running statistics."""
    seed = (0, VALIDATION)
    tasks = domain.sample_tasks(count, "validation", seed)
    support, query = domain.draw(tasks, domain.seeds((*seed, 2), count))
    seen, asked = embedded(domain, backbone, "running", support, query)
    found = prototype_logits(seen, support.targets, asked, domain.family.spec.target_size).argmax(-1)
    return float((found == query.targets).double().mean())
