"""Policies for traffic signals beside the controllers: ``python -m experiments.traffic train``.

Trains (or resumes) under ``runs/ENV/`` MAML, a policy that never adapts in training (domain-randomised, with as many samples),
and one that sees the task; adapts the first two to held-out tasks, on the grid of training and on 4x4, and judges everybody on
the same tasks and arrivals by the mean time of a trip. Results: ``summary.json``, ``summary.md`` and learning curves under
``experiments/results/ENV/``, beside the runs.

    python -m experiments.traffic train env=traffic-grid              as recorded
    python -m experiments.traffic train iterations=50 seeds=1         less of it
    python -m experiments.traffic train train=false                   judges what is there
    python -m experiments.traffic train tiny=true                     a minute, under runs/tiny, to see that everything works
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import recording
from metarl.run.arguments import parse
from metarl.settings import setting

if TYPE_CHECKING:
    from metarl.analysis.agent import Agent
    from metarl.core.params import Params
    from metarl.families import Tasks

TINY = ("iterations=1", "meta_batch_size=2", "episodes_per_task=2", "env.horizon=3", "env.warmup=20", "eval_every=0")
# Adaptation and scores of held-out tasks, and its rates, are drawn apart from training's and from each other's.
_ADAPT, _TUNE = 11, 12


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    env: str = setting("traffic-grid", "the family")
    iterations: int = setting(
        150, "of MAML; the others, with half the samples in an iteration, have twice as many", low=1
    )
    seeds: int = setting(3, "seeds of MAML and of the policy that never adapts in training", low=1)
    tasks: int = setting(40, "held-out tasks", low=2)
    arrivals: int = setting(4, "episodes of each, the same for everybody", low=2)
    steps: int = setting(3, "most inner updates", low=1)
    larger: int = setting(4, "rows and columns of the grid that nobody was trained on", low=1, high=20)
    train: bool = setting(True, "false judges what is there")
    tiny: bool = setting(False, "a minute, under runs/tiny, to see that everything works")


def train(argv: Sequence[str]) -> int:
    """Train, judge, summarise; return the exit code."""
    settings = Settings(**parse(argv, Settings))
    if settings.tiny:
        settings = dataclasses.replace(settings, iterations=1, seeds=1, tasks=2, arrivals=2, steps=1, larger=3)
    runs, results = recording.folders(f"{settings.env}-policies", settings.tiny)
    members = _members(settings)
    if settings.train:
        recording.train(settings.env, runs, members)
    labels = recording.trained(runs, members)
    summary = judge(settings, runs, labels)
    results.mkdir(parents=True, exist_ok=True)
    recording.keep(runs, labels, results, "reward per episode")
    recording.write(results / "summary.json", summary)
    text = "\n".join(describe(summary))
    (results / "summary.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def _members(settings: Settings) -> dict[str, Sequence[str]]:
    budget = TINY if settings.tiny else (f"iterations={settings.iterations}",)
    # without an inner update an iteration samples half as much: twice as many of them, hence as many samples
    twice = budget if settings.tiny else (f"iterations={2 * settings.iterations}",)
    kinds = {
        "maml": (settings.seeds, budget),
        "pretrained": (settings.seeds, ("inner_steps=0", *twice)),
        "oracle": (1, ("inner_steps=0", "env.oracle=true", *twice)),
    }
    return {
        f"{kind}-s{seed}": (f"seed={seed}", "threads=1", *words)
        for kind, (seeds, words) in kinds.items()
        for seed in range(seeds)
    }


def judge(settings: Settings, runs: pathlib.Path, labels: Sequence[str]) -> dict[str, Any]:
    """Adapt and judge every run, and the controllers, on the grid of training and on a larger one."""
    import torch

    from metarl.analysis.agent import load
    from metarl.run.provenance import provenance

    torch.set_num_threads(1)
    rates = {label: _rates(settings, load(runs / label)) for label in labels if not label.startswith("oracle")}
    grids = {}
    for name, sizes in (("trained on", {}), ("larger", {"rows": settings.larger, "columns": settings.larger})):
        agents = {label: load(runs / label, env_settings=sizes) for label in labels}
        tasks = next(iter(agents.values())).learner.domain.sample_tasks(settings.tasks, "test", (0, _ADAPT))
        found = _controllers(settings, next(iter(agents.values())), tasks)
        courses = {label: _course(settings, agent, rates.get(label), tasks) for label, agent in agents.items()}
        grids[name] = {**found, "times": courses}
    facts = {label: recording.facts(runs / label) for label in labels}
    return {"settings": dataclasses.asdict(settings), "grids": grids, "rates": rates, "runs": facts, **provenance()}


def _rates(settings: Settings, agent: Agent) -> tuple[float, ...]:
    """Choose a run's step sizes on validation tasks of the grid of training."""
    from metarl.analysis import curves

    held = agent.learner.domain.sample_tasks(min(20, settings.tasks), "validation", (0, _TUNE))
    base = agent.config.run.inner_lr
    return curves.tune_rates(agent.learner, agent.meta, held, (0, _TUNE, 1), settings.steps, base)


def _controllers(settings: Settings, agent: Agent, tasks: Tasks) -> dict[str, Any]:
    """Return the mean times of controllers, (tasks, arrivals) each."""
    from metarl.envs.traffic import headroom
    from metarl.envs.traffic.network import Grid
    from metarl.rl.domain import RLDomain

    domain, own, seeds = agent.learner.domain, agent.config.env_settings, range(settings.arrivals)
    assert isinstance(domain, RLDomain)
    grid = Grid(rows=own["rows"], columns=own["columns"])
    several = headroom.candidates(grid)
    spent, names = headroom.mean_times(domain.family, tasks, several, seeds), list(several)
    room = headroom.headroom(spent)
    eight = {
        name: headroom.played(domain.family, tasks, seeds, headroom.controlled(make)).tolist()
        for name, make in headroom.eight(grid).items()
    }
    best = spent[room.own, np.arange(len(tasks))].tolist()
    return {
        "grid": f"{grid.rows}x{grid.columns}",
        "controllers": eight,
        "common": {"name": names[room.common], "times": spent[room.common].tolist()},
        "own": {"names": [names[k] for k in room.own], "times": best},
    }


def adapted(agent: Agent, tasks: Tasks, seed: tuple[int, ...], steps: int, rates: Sequence[float] = ()) -> list[Params]:
    """Return the parameters of M tasks before and after each update, (M, ...); without rates with training's."""
    from metarl.analysis import curves
    from metarl.core.params import detach, expand

    stages = [expand(detach(agent.meta), len(tasks))]
    for step, learner in enumerate(curves.with_rates(agent.learner, steps, rates)):
        sample = learner.domain.collect(stages[-1], tasks, (*seed, step), "support")
        stages.append(learner.adapt(stages[-1], sample.data, step))
    return stages


def _course(settings: Settings, agent: Agent, rates: Sequence[float] | None, tasks: Tasks) -> list[Any]:
    """Return the mean times of a run's policies before and after every update, (updates + 1, tasks, arrivals)."""
    stages = adapted(agent, tasks, (0, _ADAPT, 1), 0 if rates is None else settings.steps, rates or ())
    return [times(agent, params, tasks, range(settings.arrivals)).tolist() for params in stages]


def times(agent: Agent, params: Params, tasks: Tasks, seeds: Sequence[int]) -> np.ndarray:
    """Let the policies of M tasks, params (M, ...), play arrivals; return mean times of a trip, s, (M, arrivals)."""
    import torch

    from metarl.envs.traffic import headroom
    from metarl.rl.domain import RLDomain

    domain = agent.learner.domain
    assert isinstance(domain, RLDomain)
    actor, random = domain.policy.actor(params), np.random.default_rng(0)
    shape = (len(tasks), len(seeds))

    def begin(env: object, each: np.ndarray) -> headroom.Actions:
        del env, each
        noise = np.empty((*shape, domain.policy.action_size), dtype=np.float32)

        def act(seen: np.ndarray) -> np.ndarray:
            domain.policy.noise(random, noise)
            with torch.no_grad():
                states = domain.observe(torch.tensor(seen).view(*shape, -1), tasks)
                return actor(states, torch.tensor(noise))[0].flatten(0, 1).numpy()

        return act

    return headroom.played(domain.family, tasks, seeds, begin)


def describe(summary: Mapping[str, Any]) -> list[str]:
    """Return the summary as Markdown."""
    settings, lines = summary["settings"], []
    for what, found in summary["grids"].items():
        lines += [
            f"Mean time of a trip, s, on {len(found['own']['names'])} held-out tasks of {settings['env']} on a {found['grid']} grid"
            f" ({what}), {settings['arrivals']} episodes of each, the same for everybody; 95 % intervals over tasks.",
            "",
            *_table(found),
            "",
            *_comparisons(found),
            "",
        ]
    commands = [run["command"] for run in summary["runs"].values()]
    return [*lines, "```", *commands, "```", "", f"Commit of the evaluation: {summary['commit']}."]


def _kinds(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Average over arrivals and over the seeds of a kind: (updates, tasks)."""
    kinds: dict[str, list[np.ndarray]] = {}
    for label, times in found["times"].items():
        kinds.setdefault(label.rsplit("-s", 1)[0], []).append(np.array(times).mean(-1))
    return {kind: np.mean(values, axis=0) for kind, values in kinds.items()}


def _table(found: Mapping[str, Any]) -> list[str]:
    kinds = _kinds(found)
    points = max(len(values) for values in kinds.values())
    heads = ["no update", "1 update", *[f"{k} updates" for k in range(2, points)]]
    lines = [f"| | {' | '.join(heads[:points])} |", "| --- |" + " --- |" * points]
    rows = {name: [np.array(times).mean(-1)] for name, times in found["controllers"].items()}
    rows[f"best common controller: {found['common']['name']}"] = [np.array(found["common"]["times"]).mean(-1)]
    rows["each task's own best controller"] = [np.array(found["own"]["times"]).mean(-1)]
    rows |= {kind: list(values) for kind, values in kinds.items()}
    for name, values in rows.items():
        cells = [_interval(value) for value in values] + [""] * (points - len(values))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _comparisons(found: Mapping[str, Any]) -> list[str]:
    """Say what adapting gains over the policy that never adapts, task by task, and how much of what there is to gain."""
    kinds = _kinds(found)
    if not {"maml", "pretrained"} <= kinds.keys():
        return ["maml and pretrained are not both there, and so are not compared."]
    adapted, start = kinds["maml"], kinds["pretrained"][0]
    # the second half of the arrivals had no say in the choice of a task's own controller
    room, common = (np.array(found[name]["times"]) for name in ("own", "common"))
    half = room.shape[1] // 2
    gain = 1 - room[:, half:].mean(1) / common[:, half:].mean(1)
    lines = [f"- own over best common controller, on arrivals that had no say: {_interval(100 * gain, 2)} %"]
    for k in range(len(adapted)):
        gains = 100 * (1 - adapted[k] / start)
        share = (adapted[k] < start).mean()
        lines.append(
            f"- maml after {k} over pretrained after 0: {_interval(gains, 2)} % of a trip's time, better on {share:.0%} of tasks"
        )
    if "oracle" in kinds:
        oracle = kinds["oracle"][0]
        for k in range(1, len(adapted)):
            closed = recording.gap(adapted[k], start, oracle)
            low, high = recording.bootstrap(
                lambda rows, k=k: recording.gap(adapted[k][rows], start[rows], oracle[rows]), len(start)
            )
            lines.append(
                f"- of the gap to the policy that sees the task, closed after {k}: {closed:.2f} [{low:.2f}, {high:.2f}]"
            )
    return lines


def _interval(values: np.ndarray, digits: int = 1) -> str:
    from metarl.analysis.curves import interval

    low, high = interval(values)
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
