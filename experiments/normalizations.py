"""How well a query's normalising statistics are known: bias and variance of each way to estimate them, on a trained network.

    python -m experiments.normalizations run=runs/fewshot/omniglot-5w1s/maml-adam-s0
    python -m experiments.normalizations run=RUN shots=5 save=true
    python -m experiments.normalizations table=true                   the table and the picture again, of the recorded result

A task's own statistics are those of all images of its classes. What a protocol knows of them depends on the draw of the support set
and of the queries; here both are drawn many times. Errors of a channel's mean are in units of its standard deviation, those of the
standard deviation are of its logarithm; bias squared and variance are means over channels and tasks. Layers are taken one by one:
what is below is normalised by the task's own statistics. The network is that of the run's best parameters, before it adapts.

Shapes: N images of a task, R draws, F channels.
"""

from __future__ import annotations

import dataclasses
import decimal
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments import recording
from metarl.analysis.agent import load
from metarl.analysis.shots import shot_domain, with_shape
from metarl.core.params import Params
from metarl.families import Split, Tasks
from metarl.fewshot import ShotDomain
from metarl.learner import TEST, TRAIN
from metarl.nets import Conv4
from metarl.nets.normalization import EPS
from metarl.run.arguments import parse
from metarl.run.command import guarded
from metarl.run.provenance import provenance
from metarl.settings import SettingsError, setting

MARK = "<!-- normalizations -->"
RESULTS = pathlib.Path("experiments/results/fewshot")
ESTIMATORS = {
    "transductive": "all queries",
    "support": "the support set",
    "one-by-one": "the support set and the query",
    "task": "the support set and the query, half and half",
    "alone": "the query",
    "running": "images of training tasks",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    run: str = setting("", "a run with a convolutional network that was trained with batch statistics")
    shots: int = setting(1, "support images of a class", low=1)
    queries: int = setting(15, "queries of a class", low=1)
    images: int = setting(20, "images of a class that make up a task's own statistics", low=3)
    tasks: int = setting(100, "test tasks, and as many training tasks for their statistics", low=2)
    draws: int = setting(200, "of support and query sets of every task", low=2)
    save: bool = setting(False, "write the result, and put the table into experiments/README.md")
    table: bool = setting(False, "make table and picture of what is recorded, without a run")


class Moments(NamedTuple):
    """First and second moment of every image's feature maps before a normalisation, both (N, F)."""

    first: Tensor
    second: Tensor


class Estimate(NamedTuple):
    """Mean and variance of every channel, (F,) or (R, F)."""

    mean: Tensor
    variance: Tensor


def main() -> int:
    """Estimate, print, write."""
    return guarded(lambda: _main(Settings(**parse(sys.argv[1:], Settings, paths={"run"}))))


def _main(settings: Settings) -> int:
    if settings.table:
        return _show(json.loads((RESULTS / "normalizations.json").read_text(encoding="utf-8")))
    if not settings.run:
        raise SettingsError("run is missing: name a run directory, run=runs/NAME")
    if settings.shots + settings.queries > settings.images:
        raise SettingsError(
            f"shots={settings.shots} and queries={settings.queries} are more than images={settings.images}; lower one of them"
        )
    agent = load(settings.run, "best")
    shape = {"shots": 1, "queries": settings.images - 1}
    domain = shot_domain(with_shape(agent.learner, agent.config.env, {**agent.config.env_settings, **shape}))
    net = domain.net
    if not isinstance(net, Conv4) or net.normalization not in ("transductive", "support"):
        raise SettingsError(f"{settings.run} has no convolutional network with batch statistics; choose another run")
    result = {
        "env": agent.config.env,
        **{key: value for key, value in dataclasses.asdict(settings).items() if key not in ("save", "table")},
        "ways": net.outputs,
        "iteration": agent.iteration,
        "rows": study(domain, net, agent.meta, settings),
        "trained_by": recording.facts(pathlib.Path(settings.run))["command"],
        "command": " ".join(["python -m experiments.normalizations", *sys.argv[1:]]),
        "provenance": provenance(),
    }
    if settings.save:
        recording.write(RESULTS / "normalizations.json", result)
        return _show(result)
    print(report(result))
    return 0


def _show(result: Mapping[str, Any]) -> int:
    """Print the table, put it into the README, draw the picture."""
    text = report(result)
    print(text)
    draw(result, RESULTS / "normalizations.png")
    where = (RESULTS / "normalizations.png").relative_to(recording.README.parent)
    recording.insert(recording.README, MARK, f"![bias and variance of statistics]({where})\n\n{text}")
    return 0


def study(domain: ShotDomain, net: Conv4, meta: Params, settings: Settings) -> dict[str, Any]:
    """Return bias squared and variance of every estimator in every layer.

    Args:
        domain: its tasks have all images of a class that there are to be.
        net: the network.
        meta: its parameters.
        settings: sizes.
    """
    running = [_own(layer) for layer in _pooled_moments(domain, net, meta, settings.tasks)]
    tasks = domain.sample_tasks(settings.tasks, "test", (0, TEST))
    errors: dict[str, list[np.ndarray]] = {name: [] for name in ESTIMATORS}
    for task, (images, targets) in enumerate(_images(domain, tasks, "test")):
        sets = draws(targets, settings.shots, settings.queries, settings.draws, np.random.default_rng([0, TEST, task]))
        found: dict[str, list[np.ndarray]] = {name: [] for name in ESTIMATORS}
        for layer, always in zip(moments(net, meta, images), running, strict=True):
            truth = _own(layer)
            for name, estimate in {**estimates(layer, *sets), "running": always}.items():
                found[name].append(decomposed(estimate, truth))
        for name, values in found.items():
            errors[name].append(np.stack(values))
    # (layers, 4) each: bias squared and variance of the mean, then of the logarithm of the standard deviation
    return {name: np.mean(values, 0).tolist() for name, values in errors.items()}


def moments(net: Conv4, params: Params, images: Tensor) -> list[Moments]:
    """Return the moments before each normalisation, where all images (N, ...) are normalised by their own statistics."""
    found, stride = [], 2 if net.downsampling == "stride" else 1
    x = images
    with torch.no_grad():
        for block in range(net.blocks):
            x = functional.conv2d(x, params[f"{block}.weight"], stride=stride, padding=1)
            found.append(Moments(x.double().mean((2, 3)), x.double().square().mean((2, 3))))
            affine = (params[f"{block}.gamma"], params[f"{block}.beta"])
            x = functional.relu(functional.batch_norm(x, None, None, *affine, training=True, eps=EPS))
            x = x if stride == 2 else functional.max_pool2d(x, 2)
    return found


def draws(
    targets: Tensor, shots: int, queries: int, count: int, random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw support sets and query sets of a task's images, and one of the queries.

    Returns:
        Weights (R, N) of the support sets' images, of the queries' and of the one query's; each row adds up to 1.
    """
    labels = targets.cpu().numpy()
    ways = int(labels.max()) + 1
    weights = torch.zeros(3, count, len(labels), dtype=torch.float64)
    for way in range(ways):
        own = np.flatnonzero(labels == way)
        order = torch.tensor(random.permuted(np.tile(own, (count, 1)), axis=1))
        weights[0].scatter_(1, order[:, :shots], 1 / (ways * shots))
        weights[1].scatter_(1, order[:, shots : shots + queries], 1 / (ways * queries))
        if way == 0:  # classes come in any order
            weights[2].scatter_(1, order[:, shots : shots + 1], 1.0)
    support, query, one = weights
    return support, query, one


def estimates(layer: Moments, support: Tensor, query: Tensor, one: Tensor) -> dict[str, Estimate]:
    """Return what each protocol takes for the statistics of one layer, for every draw, (R, F).

    Args:
        layer: moments of a task's images.
        support: weights (R, N) of the support set's images.
        query: of the queries.
        one: of one query.
    """
    size = int((support[0] > 0).sum())
    alone, seen = _weighed(layer, one), _weighed(layer, support)
    mean = 0.5 * (seen.mean + alone.mean)
    spread = [s.variance + (s.mean - mean).square() for s in (seen, alone)]
    return {
        "transductive": _weighed(layer, query),
        "support": seen,
        "one-by-one": _weighed(layer, (size * support + one) / (size + 1)),
        "task": Estimate(mean, 0.5 * (spread[0] + spread[1])),
        "alone": alone,
    }


def decomposed(estimate: Estimate, truth: Estimate) -> np.ndarray:
    """Return bias squared and variance of the mean in deviations, and of the logarithm of the deviation; means over channels."""
    off = (estimate.mean - truth.mean) / (truth.variance + EPS).sqrt()
    scale = 0.5 * ((estimate.variance + EPS) / (truth.variance + EPS)).log()
    numbers: list[float] = []
    for error in (off, scale):
        each = error.reshape(-1, error.shape[-1])  # statistics of training are the same in every draw
        numbers += [float(each.mean(0).square().mean()), float(each.var(0, correction=0).mean())]
    return np.array(numbers)


def _own(layer: Moments) -> Estimate:
    """Return the statistics of all images."""
    mean = layer.first.mean(0)
    return Estimate(mean, layer.second.mean(0) - mean.square())


def _weighed(layer: Moments, weights: Tensor) -> Estimate:
    weights = weights.to(layer.first.device)
    mean = weights @ layer.first
    return Estimate(mean, (weights @ layer.second - mean.square()).clamp_min(0))


def _pooled_moments(domain: ShotDomain, net: Conv4, meta: Params, count: int) -> list[Moments]:
    """Return the moments of the images of training tasks, those of all tasks together."""
    tasks = domain.sample_tasks(count, "train", (0, TRAIN))
    each = [moments(net, meta, images) for images, _ in _images(domain, tasks, "train")]
    return [
        Moments(torch.cat([m[k].first for m in each]), torch.cat([m[k].second for m in each]))
        for k in range(net.blocks)
    ]


def _images(domain: ShotDomain, tasks: Tasks, split: Split) -> Sequence[tuple[Tensor, Tensor]]:
    """Return all images of every task with their targets."""
    found = []
    for task, seed in enumerate(domain.seeds((0, {"train": TRAIN, "test": TEST}[split], 1), len(tasks))):
        support, query = domain.draw(tasks.rows([task]), np.array([seed]))
        found.append(
            (torch.cat([support.inputs[0], query.inputs[0]]), torch.cat([support.targets[0], query.targets[0]]))
        )
    return found


def report(result: Mapping[str, Any]) -> str:
    """Return the table in Markdown."""
    layers = len(next(iter(result["rows"].values())))
    lines = [
        f"`{result['env']}`, {result['ways']} ways, {result['shots']} shots, {result['queries']} queries a class: bias squared +"
        " variance of the statistics that normalise a query, by whose they are;"
        f" {result['draws']} draws of each of {result['tasks']} tasks."
        " Mean: of a channel's mean, in its standard deviations; scale: of the logarithm of its standard deviation. Truth: all"
        f" {result['images']} images of the task's classes.",
        "",
        f"| statistics of | {' | '.join(f'mean, layer {k + 1}' for k in range(layers))} | mean, all | scale, all |",
        "| --- |" + " --- |" * (layers + 2),
    ]
    for name, rows in result["rows"].items():
        values = np.array(rows)
        whole = values.mean(0)
        pairs = [*(row[:2] for row in values), whole[:2], whole[2:]]
        cells = [f"{_digits(bias)} + {_digits(variance)}" for bias, variance in pairs]
        lines.append(f"| {ESTIMATORS[name]} ({name}) | {' | '.join(cells)} |")
    origin = result["provenance"]
    return "\n".join(
        [
            *(*lines, "", "```", result["trained_by"], result["command"], "```", ""),
            f"Commit: {origin['commit']}. Hardware: {origin['cpu']}, {origin['cores']} cores. Versions: {origin['versions']}.",
            "",
        ]
    )


def _digits(value: float) -> str:
    """Return two significant digits, without an exponent: a small part of an error is not none."""
    return f"{decimal.Decimal(f'{value:.1e}'):f}" if value else "0"


def draw(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw bias and variance of every estimator as bars on top of each other, of the mean and of the scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    names = list(result["rows"])
    values = np.array([np.mean(result["rows"][name], 0) for name in names])
    for axes, at, title in zip(
        figure.subplots(1, 2), (0, 2), ("mean, in deviations", "log of the deviation"), strict=True
    ):
        axes.bar(names, values[:, at], color="#d55e00", label="bias squared")
        axes.bar(names, values[:, at + 1], bottom=values[:, at], color="#0072b2", label="variance")
        axes.set_title(title, fontsize=10)
        axes.tick_params(axis="x", labelrotation=25)
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend()
    figure.axes[0].set_ylabel("squared error, mean over layers")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
