"""One meta-gradient by several ways: ours, a plain loop over tasks, plain ``vmap(grad)``, and ``higher`` where it is installed.

All start from the same parameters and data, in float32, and take as many threads: ours one task or chunk to a thread, the others as
PyTorch's own threads within an operation. What is timed is everything from data in memory to the meta-gradient: forward, adapt,
differentiate. Images are noise, whose values no kernel looks at.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from metarl.core import Adam, GradientStep, Objective, Workers
from metarl.core.params import Params, ravel
from metarl.families import ShotSpec
from metarl.fewshot import ShotBatch, ShotDomain
from metarl.fewshot.executors import tasks_at_once
from metarl.learner import MetaLearner
from metarl.nets import MLP, Conv4, Net, from_module

LR = 0.1
Set = tuple[Tensor, Tensor]  # inputs (M, N, ...) and targets (M, N, ...)
Way = Callable[[], "Found"]


class Found(NamedTuple):
    """What every way must agree on: the mean query loss, and the norm of the meta-gradient."""

    loss: float
    norm: float


class Size(NamedTuple):
    """A setting: ways 0 is regression; queries are of a class; images are 28x28."""

    network: str
    ways: int
    shots: int
    queries: int
    steps: int
    tasks: int


SIZES: Mapping[str, Size] = {
    "A": Size("strided Conv4", 5, 1, 1, 1, 32),
    "A2": Size("strided Conv4", 5, 1, 15, 5, 32),
    "B": Size("three pooled convolutions, a torch module", 5, 5, 15, 5, 4),
    "S": Size("MLP 1-40-40-1", 0, 10, 10, 1, 25),
}


@dataclass(frozen=True)
class Problem:
    """A setting with its data.

    Attributes:
        size: the setting.
        module: the network as a module of torch's own.
        net: the same as ours.
        params: the module's parameters as ours.
        support: the support sets.
        query: the query sets.
    """

    size: Size
    module: nn.Module
    net: Net
    params: Params
    support: Set
    query: Set

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of one task."""
        if self.size.ways:
            return functional.cross_entropy(outputs, targets)
        return functional.mse_loss(outputs, targets)


def problem(size: Size, filters: int = 64) -> Problem:
    """Build a setting; parameters and data are a function of it."""
    random = torch.Generator().manual_seed(0)
    module = _module(size, filters)
    with torch.no_grad():
        for value in module.parameters():
            bound = value[0].numel() ** -0.5 if value.dim() > 1 else 0.5
            value.copy_((torch.rand(value.shape, generator=random) * 2 - 1) * bound + (value.dim() == 1))
    own = {name: value.detach() for name, value in module.named_parameters()}
    net: Net = from_module(module)
    if size.network.startswith("strided"):
        net = Conv4((1, 28, 28), size.ways, filters)
        names = [f"{block}.{name}" for block in range(4) for name in ("weight", "gamma", "beta")]
        own = dict(zip([*names, "head.weight", "head.bias"], own.values(), strict=True))
        own["head.weight"] = own["head.weight"].t().contiguous()
    elif not size.ways:
        net = MLP((1, 40, 40, 1), "relu")
        names = [f"{layer}.{name}" for layer in range(3) for name in ("weight", "bias")]
        own = {n: v.t().contiguous() for n, v in zip(names, own.values(), strict=True)}
    return Problem(size, module, net, own, _data(size, size.shots, random), _data(size, size.queries, random))


def _data(size: Size, each: int, random: torch.Generator) -> Set:
    if not size.ways:
        x = torch.rand(size.tasks, each, 1, generator=random) * 10 - 5
        return x, torch.sin(x)
    labels = torch.arange(size.ways).repeat(each).expand(size.tasks, -1).contiguous()
    return torch.rand(size.tasks, size.ways * each, 1, 28, 28, generator=random), labels


def _module(size: Size, filters: int) -> nn.Module:
    if not size.ways:
        return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    strided = size.network.startswith("strided")
    layers: list[nn.Module] = []
    for block in range(4 if strided else 3):
        channels = filters if block else 1
        if strided:
            layers.append(nn.Conv2d(channels, filters, 3, stride=2, padding=1, bias=False))
        else:  # the example network of functorch and of higher
            layers.append(nn.Conv2d(channels, filters, 3))
        layers += [nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
        layers += [] if strided else [nn.MaxPool2d(2, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, size.ways))


@dataclass(frozen=True)
class _Given:
    """A family without any: its tasks are those of the problem."""

    spec: ShotSpec


def learner(p: Problem, workers: Workers, head: bool = False) -> MetaLearner:
    """Return our learner, with the executor that it chooses by itself; ``head`` for ANIL."""
    shape, target = tuple(p.support[0].shape[2:]), p.size.ways or 1
    loss, metric = ("cross_entropy", "accuracy") if p.size.ways else ("mse", "mse")
    spec = ShotSpec((), shape, target, loss, metric, "")  # type: ignore[arg-type]
    domain = ShotDomain(_Given(spec), p.net, workers)  # type: ignore[arg-type]
    rule = GradientStep(domain.inner_loss, LR, subset=tuple(list(p.params)[-2:]) if head else ("*",))
    shared = domain.once(rule.adapting(p.params)) is not None
    images = p.support[0].shape[1] + p.query[0].shape[1]
    chunk = tasks_at_once(p.net, images, workers.device, shared)
    return MetaLearner(domain, rule, Adam(), p.size.steps, p.size.tasks, chunk)


def ours(p: Problem, workers: Workers, head: bool = False) -> Way:
    """Return our way."""
    one = learner(p, workers, head)
    objective = Objective(
        rule=one.inner,
        supports=[ShotBatch(*p.support)] * p.size.steps,
        query=ShotBatch(*p.query),
        loss=one.domain.query,
        workers=workers,
        chunk_tasks=one.chunk_tasks,
        once=one.domain.once(list(p.params)[-2:]) if head else None,
    )

    def way() -> Found:
        outcome, gradient = objective.gradient(p.params)
        return Found(outcome.loss, float(ravel(gradient).norm()))

    return way


def adaptation(p: Problem, workers: Workers, head: bool = False) -> Callable[[], Params]:
    """Return what adapts all tasks in all steps, without a meta-gradient."""
    one, support = learner(p, workers, head), ShotBatch(*p.support)

    def adapted() -> Params:
        params, adapt = one.start(p.params, p.size.tasks), one.adaptation(p.params)
        for step in range(p.size.steps):
            params = adapt(params, support, step)
        return params

    return adapted


def loop(p: Problem) -> Way:
    """Return the plain way: task after task, with a backward pass each."""

    def way() -> Found:
        theta = {name: value.detach().clone().requires_grad_() for name, value in p.module.named_parameters()}
        total = 0.0
        for x, y, query_x, query_y in zip(*p.support, *p.query, strict=True):
            phi = theta
            for _ in range(p.size.steps):
                loss = p.loss(functional_call(p.module, phi, (x,)), y)
                gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                phi = {name: value - LR * g for (name, value), g in zip(phi.items(), gradients, strict=True)}
            loss = p.loss(functional_call(p.module, phi, (query_x,)), query_y) / p.size.tasks
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return Found(total, _norm([value.grad for value in theta.values()]))

    return way


def batched(p: Problem) -> Way:
    """Return the way of ``torch.func``: all tasks by ``vmap``, each with ``grad`` within ``grad``."""

    def inner(phi: Params, x: Tensor, y: Tensor) -> Tensor:
        return p.loss(functional_call(p.module, phi, (x,)), y)

    def task(phi: Params, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        for _ in range(p.size.steps):
            gradients = grad(inner)(phi, x, y)
            phi = {name: value - LR * gradients[name] for name, value in phi.items()}
        return inner(phi, query_x, query_y)

    def mean(theta: Params) -> Any:
        loss = vmap(task, in_dims=(None, 0, 0, 0, 0))(theta, *p.support, *p.query).mean()
        return loss, loss.detach()

    def way() -> Found:
        theta = {name: value.detach() for name, value in p.module.named_parameters()}
        gradient, loss = grad(mean, has_aux=True)(theta)
        return Found(float(loss), _norm(gradient.values()))

    return way


def higher_way(p: Problem) -> Way:
    """Return the way of ``higher``: a copy of the module that is stepped through."""
    import higher

    def way() -> Found:
        p.module.zero_grad()
        optimizer, total = torch.optim.SGD(p.module.parameters(), lr=LR), 0.0
        for x, y, query_x, query_y in zip(*p.support, *p.query, strict=True):
            with higher.innerloop_ctx(p.module, optimizer, copy_initial_weights=False) as (net, inner):
                for _ in range(p.size.steps):
                    inner.step(p.loss(net(x), y))
                loss = p.loss(net(query_x), query_y) / p.size.tasks
                torch.autograd.backward(loss)
            total += float(loss.detach())
        return Found(total, _norm([value.grad for value in p.module.parameters()]))

    return way


def ways(p: Problem, workers: Workers) -> dict[str, Way]:
    """Return all ways by name, ours first."""
    found = {"ours": ours(p, workers), "loop": loop(p), "vmap": batched(p)}
    return found | ({"higher": higher_way(p)} if importlib.util.find_spec("higher") else {})


def _norm(gradients: Any) -> float:
    return float(torch.cat([g.reshape(-1) for g in gradients]).norm())
