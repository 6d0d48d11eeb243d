"""The traffic simulator beside SUMO (extra ``sumo``): ``python -m experiments.traffic agree`` and ``transfer``.

    python -m experiments.traffic agree tasks=20 seeds=3                  do both rank the eight controllers alike?
    python -m experiments.traffic transfer                              do policies gain in SUMO what adapting gained them here?
    python -m experiments.traffic agree tiny=true                         a minute, to see that everything works

``transfer`` takes the runs of MAML of ``python -m experiments.traffic train`` (whose intersections adapt each for itself, if there
are any), adapts them in the own simulator and lets them play in
SUMO. Both write every result at once into ``results.jsonl`` under ``runs/`` and go on where they were stopped; a SUMO
simulation that fails is reported, left out, and tried again by the next call. Tables and pictures go to ``experiments/results/``
and the page of experiments; intervals are over tasks, drawn as wholes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import recording, traffic_pictures, traffic_report
from experiments.traffic_store import Store
from metarl.run.arguments import parse
from metarl.settings import SettingsError, setting

if TYPE_CHECKING:
    from metarl.analysis.agent import Agent
    from metarl.core.params import Params
    from metarl.envs.traffic.headroom import Player
    from metarl.families import RLFamily, Tasks

# Tasks that nothing was calibrated or trained on.
_FRESH = 21


@dataclasses.dataclass(frozen=True)
class Settings:
    """What these experiments can be told."""

    env: str = setting("traffic-grid", "the family")
    tasks: int = setting(20, "held-out tasks", low=2)
    seeds: int = setting(3, "episodes of each", low=1)
    rows: int = setting(3, "rows of intersections (agree)", low=1)
    columns: int = setting(3, "columns of intersections (agree)", low=1)
    horizon: int = setting(120, "decisions of an episode (agree)", low=1)
    warmup: int = setting(120, "seconds before the first (agree)", low=0)
    updates: int = setting(3, "inner updates (transfer)", low=1)
    episodes: int = setting(40, "of a task before every update, as in train (transfer)", low=1)
    tiny: bool = setting(False, "a minute, under runs/tiny, to see that everything works")


def main(argv: Sequence[str]) -> int:
    """Run ``agree`` or ``transfer``; return the exit code."""
    import torch

    from metarl.run.provenance import provenance

    settings = Settings(**parse(argv[1:], Settings))
    torch.set_num_threads(1)
    if settings.tiny:
        settings = Settings(settings.env, 2, 1, 1, 1, horizon=8, warmup=40, updates=1, episodes=2, tiny=True)
    runs, results = recording.folders(f"{settings.env}-{argv[0]}", settings.tiny)
    known = {"experiment": argv[0], **dataclasses.asdict(settings)}
    for name in ("tasks", "tiny", *(["episodes"] if argv[0] == "agree" else [])):  # more tasks are more of the same
        known.pop(name)
    store = Store(runs / "results.jsonl", known)
    found, lines = agree(settings, store) if argv[0] == "agree" else transfer(settings, store)
    command = shlex.join(["python", "-m", "experiments.traffic", *argv])
    record = {"command": command, "settings": dataclasses.asdict(settings), **found, **provenance()}
    record["versions"] |= {"libsumo": importlib.metadata.version("libsumo")}
    recording.write(results / "summary.json", record)
    made = f"`{command}`, commit {record['commit']}, {record['cpu']}, {record['cores']} cores."
    text = "\n".join([*lines, "", made, f"Versions: {record['versions']}.", ""])
    (results / "summary.md").write_text(text, encoding="utf-8")
    _draw(argv[0], found, results / "both.png")
    print(text)
    if not settings.tiny:
        shown = f"![{argv[0]}: both simulators]({results.relative_to(recording.README.parent)}/both.png)"
        traffic_report.insert(settings.env, argv[0], f"{shown}\n\n{text}")
    return 0


def _draw(what: str, found: Mapping[str, Any], path: pathlib.Path) -> None:
    own, sumo = np.array(found["own"]), np.array(found["sumo"])
    if what == "agree":
        traffic_pictures.against(own, sumo, found["controllers"], path)
    else:
        traffic_pictures.gains(_gain(own), _gain(sumo), path)


def agree(settings: Settings, store: Store) -> tuple[dict[str, Any], list[str]]:
    """Let the eight controllers play the same tasks and arrivals in both simulators."""
    from metarl import families
    from metarl.envs.traffic import headroom
    from metarl.envs.traffic.network import Grid

    sizes = {name: getattr(settings, name) for name in ("rows", "columns", "horizon", "warmup")}
    both = {name: families.make(settings.env, **sizes, simulator=name) for name in ("own", "sumo")}
    tasks: Tasks = both["own"].sample_tasks(settings.tasks, "test", (0, _FRESH))
    eight = headroom.eight(Grid(rows=settings.rows, columns=settings.columns))
    seeds, names = range(settings.seeds), list(eight)
    times = {}
    for name, maker in eight.items():
        player = headroom.controlled(maker)
        for simulator, family in both.items():

            def played(rows: Sequence[int], family: RLFamily = family, player: Player = player) -> np.ndarray:
                return headroom.played(family, tasks.rows(rows), seeds, player)

            times[simulator, name] = _together(store, f"{simulator}, {name}", settings, simulator, played)
    pairs = [
        [[times[simulator, name][task] for name in names] for simulator in both]
        for task in range(len(tasks))
        if all(task in found for found in times.values())
    ]
    if not pairs:
        raise SettingsError("no task has all its results: SUMO failed in each; see the lines above")
    found, lines = agreement(np.array(pairs), names)
    if len(pairs) < len(tasks):
        lines.append(f"- {len(tasks) - len(pairs)} of {len(tasks)} tasks are left out: SUMO failed in them")
    return found, lines


def _together(
    store: Store, what: str, settings: Settings, simulator: str, measure: Callable[[Sequence[int]], np.ndarray]
) -> dict[int, float]:
    """Return the mean time of every task, several measured at once; where one of them fails, each by itself, without it.

    Our own simulator takes as long for one grid as for many, and SUMO's processes wait for each other.
    """
    from metarl.envs.traffic.sumo_network import MOST

    size = settings.tasks if simulator == "own" else max(1, MOST // 2 // settings.seeds)
    found = dict[int, float]()
    for first in range(0, settings.tasks, size):
        rows = list(range(first, min(first + size, settings.tasks)))
        name = f"{what}, tasks {rows[0]} to {rows[-1]}"
        store(name, functools.partial(measure, rows))
        if name in store.times:
            found |= zip(rows, np.mean(store.times[name], axis=1).tolist(), strict=True)
            continue
        for row in rows:
            alone = f"{what}, task {row}"
            store(alone, functools.partial(measure, [row]))
            if alone in store.times:
                found[row] = float(np.mean(store.times[alone]))
    return found


def agreement(times: np.ndarray, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Compare mean times (tasks, own and SUMO, controllers)."""
    own, sumo = times[:, 0], times[:, 1]
    ranks = [_spearman(a, b) for a, b in zip(own, sumo, strict=True)]
    two = sumo.argsort(1)[:, :2]
    hits = (two == own.argmin(1)[:, None]).any(1)
    bias = own / sumo - 1
    over_tasks = functools.partial(recording.bootstrap, tasks=len(times))
    ends = {
        "median_spearman": over_tasks(lambda rows: np.median(np.array(ranks)[rows])),
        "best_is_one_of_two": over_tasks(lambda rows: hits[rows].mean()),
        "pooled_pearson": over_tasks(lambda rows: _pearson(own[rows].ravel(), sumo[rows].ravel())),
        "bias": over_tasks(lambda rows: bias[rows].mean()),
    }
    found = {
        "ci95_over_tasks": ends,
        "spearman": ranks,
        "median_spearman": float(np.median(ranks)),
        "best_is_one_of_two": float(hits.mean()),
        "pooled_pearson": _pearson(own.ravel(), sumo.ravel()),
        "pooled_spearman": _spearman(own.ravel(), sumo.ravel()),
        "bias": float(bias.mean()),
        "bias_seconds": float((own - sumo).mean()),
        "absolute_error": float(np.abs(bias).mean()),
        "own": own.tolist(),
        "sumo": sumo.tolist(),
        "controllers": list(names),
    }
    lines = [
        f"Mean time of a trip, s, over {len(times)} tasks:",
        "",
        "| controller | own simulator | SUMO | difference |",
        "| --- | --- | --- | --- |",
        *[
            f"| {n} | {own[:, i].mean():.1f} | {sumo[:, i].mean():.1f} | {bias[:, i].mean():+.0%} |"
            for i, n in enumerate(names)
        ],
        "",
        f"- Spearman's correlation of the controllers in a task: median {found['median_spearman']:.2f}"
        f" {_ends(ends['median_spearman'], '.2f')}, least {min(ranks):.2f}",
        f"- tasks whose best controller here is one of SUMO's best two: {hits.mean():.0%}"
        f" {_ends(ends['best_is_one_of_two'], '.0%')}",
        f"- all times together: Pearson {found['pooled_pearson']:.3f} {_ends(ends['pooled_pearson'], '.3f')}, Spearman"
        f" {found['pooled_spearman']:.3f}",
        f"- bias: {found['bias']:+.1%} {_ends(ends['bias'], '+.1%')}, {found['bias_seconds']:+.1f} s; mean size of the error"
        f" {found['absolute_error']:.1%}",
    ]
    return found, lines


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where one of the sides does not vary, which has none."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of ranks, equal values sharing theirs."""
    from scipy import stats

    return _pearson(stats.rankdata(a), stats.rankdata(b))


def _ends(interval: Sequence[float], form: str) -> str:
    low, high = interval
    return f"[{low:{form}}, {high:{form}}]"


def transfer(settings: Settings, store: Store) -> tuple[dict[str, Any], list[str]]:
    """Adapt the trained runs here; play before and after in both simulators."""
    from experiments.traffic_training import adapted, chosen_rates, everybody
    from metarl.analysis.agent import load

    runs, _ = recording.folders(f"{settings.env}-policies", settings.tiny)
    found_runs = [sorted(path.name for path in runs.glob(f"{kind}-s*")) for kind in ("local", "maml")]
    labels = recording.trained(runs, next(filter(None, found_runs), []))
    seeds = range(settings.seeds)
    rows_of: dict[str, list[list[float]]] = {"own": [], "sumo": []}
    where = list[int]()  # the task of each row
    for label in labels:
        agents = {name: load(runs / label, env_settings={"simulator": name}) for name in rows_of}
        agents["own"] = everybody({label: agents["own"]}, settings.episodes)[label]  # who adapts
        tasks = agents["own"].learner.domain.sample_tasks(settings.tasks, "test", (0, _FRESH))
        rates = chosen_rates(agents["own"], min(20, settings.tasks) if settings.tiny else 20, settings.updates)
        stages = adapted(agents["own"], tasks, (0, _FRESH, 1), settings.updates, rates)
        steps = "/".join(f"{rate:g}" for rate in rates)
        name = f"{label} at {agents['own'].iteration}, rates {steps}"  # trained on, or adapted otherwise, it is another
        found: dict[str, list[dict[int, float]]] = {}
        for simulator, agent in agents.items():
            found[simulator] = []
            for k, params in ((0, stages[0]), (settings.updates, stages[-1])):
                played = functools.partial(_played, agent, params, tasks, seeds)
                what = f"{simulator}, {name}, after {k}"
                found[simulator].append(_together(store, what, settings, simulator, played))
        there = [x for x in range(len(tasks)) if all(x in one for pair in found.values() for one in pair)]
        where += there
        for simulator, (before, after) in found.items():
            rows_of[simulator] += [[before[task], after[task]] for task in there]
    if not where:
        raise SettingsError("no task has all its results: SUMO failed in each; see the lines above")
    times = np.array(rows_of["own"]), np.array(rows_of["sumo"])
    result, lines = transferred(*times, where, settings.updates, settings.episodes)
    lost = len(labels) * settings.tasks - len(where)
    if lost:
        lines.append(f"{lost} pairs of a task and a run are left out: SUMO failed in them.")
    facts = {label: recording.facts(runs / label) for label in labels}
    made = [f"{label} ({run['iterations']} iterations)" for label, run in facts.items()]
    return {**result, "runs": facts}, [*lines, f"Runs: {', '.join(made)}."]


def _played(agent: Agent, params: Params, tasks: Tasks, seeds: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
    """Let the policies of some tasks play; params (M, ...)."""
    from experiments.traffic_training import times

    return times(agent, {name: value[list(chosen)] for name, value in params.items()}, tasks.rows(chosen), seeds)


def _gain(times: np.ndarray) -> np.ndarray:
    """Return what adapting gained, as a part of a trip's time, of times (N, before and after)."""
    gained: np.ndarray = 1 - times[:, 1] / times[:, 0]
    return gained


def transferred(
    own: np.ndarray, sumo: np.ndarray, where: Sequence[int], updates: int, episodes: int
) -> tuple[dict[str, Any], list[str]]:
    """Compare gains of adapting, from times (N, before and after) in both simulators; row n is of task ``where[n]``."""
    here, there = _gain(own), _gain(sumo)
    by_task = [np.flatnonzero(np.array(where) == task) for task in sorted(set(where))]

    def over_tasks(statistic: Callable[[np.ndarray], Any]) -> list[float]:
        return recording.bootstrap(
            lambda drawn: statistic(np.concatenate([by_task[task] for task in drawn])), len(by_task)
        )

    alike = np.sign(here) == np.sign(there)
    alike_of_task = np.array([np.sign(here[rows].mean()) == np.sign(there[rows].mean()) for rows in by_task])
    found = {
        "own": own.tolist(),
        "sumo": sumo.tolist(),
        "task": list(where),
        "sign_agrees": float(alike.mean()),
        "sign_agrees_of_tasks": float(alike_of_task.mean()),
        "correlation": _pearson(here, there),
        "ci95_over_tasks": {
            "own": over_tasks(lambda rows: here[rows].mean()),
            "sumo": over_tasks(lambda rows: there[rows].mean()),
            "sign_agrees": over_tasks(lambda rows: alike[rows].mean()),
            "sign_agrees_of_tasks": recording.bootstrap(lambda drawn: alike_of_task[drawn].mean(), len(by_task)),
            "correlation": over_tasks(lambda rows: _pearson(here[rows], there[rows])),
        },
    }
    ends = found["ci95_over_tasks"]
    lines = [
        f"Gain in the time of a trip after {updates} updates of {episodes} episodes (made in the own simulator), {len(own)} pairs"
        f" of a run and one of {len(by_task)} tasks; 95 % intervals over tasks. A task's gain is the mean over its runs.",
        "",
        "| | |",
        "| --- | --- |",
        f"| gain in the own simulator | {here.mean():.2%} {_ends(ends['own'], '.2%')} |",
        f"| gain in SUMO | {there.mean():.2%} {_ends(ends['sumo'], '.2%')} |",
        f"| the sign agrees, tasks | {alike_of_task.sum()} of {len(by_task)}, {alike_of_task.mean():.0%}"
        f" {_ends(ends['sign_agrees_of_tasks'], '.0%')} |",
        f"| the sign agrees, pairs | {alike.mean():.0%} {_ends(ends['sign_agrees'], '.0%')} |",
        f"| correlation of gains | {found['correlation']:.2f} {_ends(ends['correlation'], '.2f')} |",
        "",
    ]
    return found, lines
