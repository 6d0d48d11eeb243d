"""Sinusoid regression as in the MAML paper: MAML, a pretrained network that is fine-tuned, and an oracle.

Part of ``python -m experiments.fewshot env=sinusoid``. All are trained on tasks of 10 points and evaluated with 5 and with 10 on
the same test tasks. MAML keeps training's step size; that of fine-tuning is chosen on validation tasks.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from experiments import algorithms, recording
from metarl.analysis import published
from metarl.analysis.agent import Agent, load
from metarl.analysis.curves import adapt, tune_rates, update_curve, with_rates
from metarl.analysis.shots import shot_domain, with_shape
from metarl.families import Tasks
from metarl.learner import TEST, VALIDATION, MetaLearner
from metarl.run.provenance import provenance
from metarl.settings import SettingsError

MARK = "<!-- fewshot sinusoid -->"
# Each method's own. MAML's step size is the default of its authors' code; their text says 0.01, with which some tasks diverge
# after more updates than the one of training (results/fewshot/sinusoid_tried.json).
MEMBERS: Mapping[str, Sequence[str]] = {
    "maml": ("inner_lr=0.001",),
    "pretrained": ("inner_steps=0",),
    "oracle": ("inner_steps=0", "env.oracle=true", "eval_steps=0"),
}
SHOTS, SHOWN, STEPS = (5, 10), (0, 1, 5, 10), 10
# after 1, 5 and 10 steps, with the fewer shots
PAPER: Mapping[str, Sequence[float]] = {
    curve["method"].lower(): curve["values"]
    for curve in published.required("sinusoid", {"shots": SHOTS[0]})["curves"]
    if curve["updates"] == list(SHOWN[1:])
}
_TINY = ("iterations=4", "eval_every=2", "eval_tasks=2", "hidden_sizes=[8]", "meta_batch_size=3")
_DIVERGED = 10.0  # times the error before adapting
_QUERIES = 100  # of a test task: the error of a whole wave, not of the few points that the paper has
_GRID = np.linspace(-5.0, 5.0, 200, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of it.

    Attributes:
        iterations: of every training.
        seeds: of MAML; the references have one.
        tasks: of the test.
        held: validation tasks that choose step sizes.
        words: more settings of every training.
        tiny: in small, elsewhere.
    """

    iterations: int
    seeds: int
    tasks: int
    held: int
    words: Sequence[str] = ()
    tiny: bool = False


def run(scale: Scale, train: bool, evaluate: bool) -> int:
    """Train, evaluate, write."""
    runs, results = recording.folders("fewshot", scale.tiny)
    runs = runs / "sinusoid"
    members = {f"{name}-s{seed}": plan(scale, name, seed) for name in MEMBERS for seed in range(_seeds(scale, name))}
    if train:
        recording.train("sinusoid", runs, members)
    if not evaluate:
        return 0
    labels = recording.trained(runs, members)
    agents = {name: [load(runs / x, "best") for x in labels if x.startswith(f"{name}-")] for name in MEMBERS}
    if not agents["maml"]:
        raise SettingsError(f"{runs} has no run of MAML; leave train=false out")
    rows = {
        name: {str(shots): _judged(name, each, shots, scale) for shots in SHOTS}
        for name, each in agents.items()
        if each
    }
    result = {
        "tasks": scale.tasks,
        "queries": _QUERIES,
        "paper": {name: list(values) for name, values in PAPER.items()},
        "rows": rows,
        "runs": {label: recording.facts(runs / label) for label in labels},
        "selected": {name: [agent.iteration for agent in each] for name, each in agents.items()},
        "command": " ".join(["python -m experiments.fewshot", *sys.argv[1:]]),
        "provenance": provenance(),
    }
    recording.write(results / "sinusoid.json", algorithms.null_for_nan(result))
    text = report(result)
    print(text)
    draw_errors(result, results / "sinusoid.png")
    draw_fits(agents, rows, results / "sinusoid-fits.png")
    if not scale.tiny:
        where = results.relative_to(recording.README.parent)
        shown = {"sinusoid": "error by inner updates", "sinusoid-fits": "fits before and after adapting"}
        pictures = "\n\n".join(f"![{text}]({where}/{name}.png)" for name, text in shown.items())
        recording.insert(recording.README, MARK, f"{pictures}\n\n{text}")
    return 0


def plan(scale: Scale, name: str, seed: int) -> list[str]:
    """Return the settings of a training beside the family's own, which are the paper's or its code's but for the first weights.

    Validation adapts as often as the test does, and to many tasks: after one update it would not see that later ones diverge,
    and of a few tasks none may be the one in a thousand that does.
    """
    words = ["threads=1", f"iterations={scale.iterations}", "eval_tasks=2000", f"eval_steps={STEPS}"]
    words += ["checkpoint_every=500", f"seed={seed}"]
    words = [*words, *MEMBERS[name], *(_TINY if scale.tiny else ()), *scale.words]
    return [f"{key}={value}" for key, value in dict(word.split("=", 1) for word in words).items()]


def _seeds(scale: Scale, name: str) -> int:
    return scale.seeds if name == "maml" else 1


def _shaped(agent: Agent, shots: int) -> MetaLearner:
    env = {**agent.config.env_settings, "shots": shots, "queries": _QUERIES}
    return with_shape(agent.learner, agent.config.env, env)


def _tested(learner: MetaLearner, count: int) -> Tasks:
    return learner.domain.sample_tasks(count, "test", (0, TEST))


def _judged(name: str, agents: Sequence[Agent], shots: int, scale: Scale) -> dict[str, Any]:
    """Return the mean curve of the seeds on test tasks of so many points, and the step sizes."""
    values, rates = [], []
    for agent in agents:
        learner = _shaped(agent, shots)
        rates.append(_rates(name, agent, learner, scale.held))
        steps = 0 if name == "oracle" else STEPS
        curve = update_curve(learner, agent.meta, _tested(learner, scale.tasks), (0, TEST, 1), steps, rates[-1])
        values.append(curve.values)
    stacked = np.stack(values)
    return {"rates": [list(rate) for rate in rates], **recording.mean_of_seeds(stacked), **divergence(stacked)}


def divergence(values: np.ndarray) -> dict[str, Any]:
    """Count the tasks of each seed (S, K+1, M) that end far above where they began, and average the others' curves."""
    apart = ~(values[:, -1] <= _DIVERGED * values[:, 0])  # not a number is not below, either
    rest = [seed[:, ~gone].mean(-1).tolist() for seed, gone in zip(values, apart, strict=True) if not gone.all()]
    return {"diverged": apart.sum(-1).tolist(), "without_diverged": np.mean(rest, axis=0).tolist() if rest else []}


def _rates(name: str, agent: Agent, learner: MetaLearner, held: int) -> tuple[float, ...]:
    """Return the step sizes of a network that was not trained to adapt, chosen on validation tasks; none keeps training's."""
    if name != "pretrained":
        return ()
    tasks = learner.domain.sample_tasks(held, "validation", (0, VALIDATION))
    return tune_rates(learner, agent.meta, tasks, (0, VALIDATION, 2), STEPS, agent.config.run.inner_lr)


def report(result: Mapping[str, Any]) -> str:
    """Return the table in Markdown."""
    after = " | ".join(f"after {k}" for k in SHOWN)
    lines = [
        f"`sinusoid`: mean squared error on {result['tasks']} test tasks, {result['queries']} points each, mean and 95 % interval"
        " over tasks; trained on 10 points, parameters the best on validation tasks. MAML adapts with training's step size, the"
        " pretrained network with the best first and later ones on validation tasks. The paper's test points are as few as"
        " its shots, and it gives no intervals.",
        "",
        f"| method | shots | {after} | seeds | step sizes |",
        "| --- |" + " --- |" * (len(SHOWN) + 3),
    ]
    for name, row in result["rows"].items():
        for shots, found in row.items():
            cells = [
                cell if mean < _DIVERGED * found["mean"][0] else "diverged"  # not a number is not below, either
                for cell, mean in zip(recording.intervals(found, 3), found["mean"], strict=True)
            ]
            shown = [cells[k] if k < len(cells) else "" for k in SHOWN]
            rates = ", ".join(f"{rate:.3g}" for rate in found["rates"][0]) if found["rates"][0] else "training's"
            rates = "not adapted" if len(cells) == 1 else rates
            lines.append(f"| {name} | {shots} | {' | '.join(shown)} | {len(found['each_seed'])} | {rates} |")
            if int(shots) == SHOTS[0] and name in result["paper"]:
                paper = " | ".join(f"{value:.2f}" for value in result["paper"][name])
                lines.append(f"| {name}, the paper's | {shots} |  | {paper} |  |  |")
    lines.append("")
    for shots, found in result["rows"]["maml"].items():
        each = [
            "/".join(f"{seed[k]:.3f}" if seed[k] < _DIVERGED * seed[0] else "diverged" for k in SHOWN[1:])
            for seed in found["each_seed"]
        ]
        lines.append(f"- MAML, {shots} shots, each seed after {'/'.join(map(str, SHOWN[1:]))}: {', '.join(each)}")
        if sum(found["diverged"]) and found["without_diverged"]:
            rest = "/".join(f"{found['without_diverged'][k]:.3f}" for k in SHOWN[1:])
            lines.append(
                f"- of each seed's tasks {', '.join(map(str, found['diverged']))} end at more than {_DIVERGED:g} times their error"
                f" before adapting; without them: {rest}"
            )
    return "\n".join([*lines, *recording.origin({"runs": result["runs"], "evaluation": result["command"]})])


def draw_errors(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw errors against inner updates, with intervals, and the paper's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, shots in zip(figure.subplots(1, len(SHOTS), sharey=True), SHOTS, strict=True):
        for index, (name, row) in enumerate(result["rows"].items()):
            mean, ends = np.array(row[str(shots)]["mean"]), np.array(row[str(shots)]["ci95"])
            colour = f"C{index}"
            if len(mean) == 1:
                axes.axhline(mean[0], color=colour, linestyle="--", label=f"{name} (not adapted)")
                continue
            axes.plot(mean, marker="o", ms=3, color=colour, label=name)
            axes.fill_between(range(len(mean)), *ends.T, color=colour, alpha=0.2, linewidth=0)
            gone, rest = sum(row[str(shots)]["diverged"]), row[str(shots)]["without_diverged"]
            if gone and rest:
                axes.plot(rest, ":", color=colour, label=f"{name}, without {gone} diverging task{'s' * (gone > 1)}")
            if shots == SHOTS[0] and name in result["paper"]:
                axes.plot(SHOWN[1:], result["paper"][name], "x", color=colour, label=f"{name}, the paper's")
        axes.set_yscale("log")
        axes.set_ylim(5e-4, 20)  # a mean with a diverging task would leave nothing else to see
        axes.set_title(f"{shots} shots", fontsize=10)
        axes.set_xlabel("inner updates")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("mean squared error")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw_fits(agents: Mapping[str, Sequence[Agent]], rows: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw three test tasks: the wave, its support points, and what the first seeds make of them, before and after."""
    from matplotlib.figure import Figure

    names = [name for name in ("maml", "pretrained") if agents.get(name)]
    panels = [(name, shots) for name in names for shots in SHOTS]
    figure = Figure(figsize=(11, 2.6 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 3, sharex=True, sharey="col", squeeze=False)
    for row, (name, shots) in zip(grid, panels, strict=True):
        agent = agents[name][0]
        learner = _shaped(agent, shots)
        tasks = _tested(learner, 3)
        support, _ = shot_domain(learner).draw(tasks, shot_domain(learner).seeds((0, TEST, 1), 3))
        found = {k: fits(agent, learner, tasks, rows[name][str(shots)]["rates"][0], k) for k in (0, 1, STEPS)}
        for task, axes in enumerate(row):
            wave = tasks["amplitude"][task] * np.sin(_GRID - tasks["phase"][task])
            axes.plot(_GRID, wave, color="black", linewidth=1, label="the task")
            for (k, values), style in zip(found.items(), (":", "--", "-"), strict=True):
                axes.plot(_GRID, values[task], style, label=f"after {k}")
            axes.plot(*(x[task, :, 0].cpu().numpy() for x in (support.inputs, support.targets)), "k^", ms=5)
            axes.set_title(f"{name}, {shots} shots", fontsize=9)
    grid[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def fits(agent: Agent, learner: MetaLearner, tasks: Tasks, rates: Sequence[float], steps: int) -> np.ndarray:
    """Return what is predicted on a grid of inputs after so many updates, (M, 200)."""
    params, _ = adapt(with_rates(learner, steps, rates), agent.meta, tasks, (0, TEST, 1))
    inputs = torch.tensor(_GRID).reshape(1, -1, 1).expand(len(tasks), -1, 1)
    domain = shot_domain(learner)
    with torch.no_grad():
        return domain.net(params, inputs.to(domain.workers.device))[..., 0].cpu().numpy()
