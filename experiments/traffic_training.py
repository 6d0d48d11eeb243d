"""Policies for traffic signals beside the controllers: ``python -m experiments.traffic train``.

Trains (or resumes) under ``runs/ENV-policies/`` a policy that never adapts in training (``start``), from its parameters MAML
whose intersections adapt together (``maml``) or each for itself (``local``), the same policy trained on without adapting
(``pretrained``, domain-randomised, with as many samples in all), and one that sees the
task (``oracle``, likewise); adapts MAML and the pretrained policy, in both ways, to held-out tasks, on the grid of training, on
4x4, on a street of six intersections and with demand beyond training's, trains on each task alone what the pretrained policy could
be (``specialist``, and ``specialist-local``, each intersection for itself), and judges everybody on the same tasks and arrivals by
the mean time of a trip. Results: ``summary.json``, ``summary.md``, learning and adaptation curves and a film strip under
``experiments/results/ENV-policies/``, beside the runs (:mod:`experiments.traffic_report`).

    python -m experiments.traffic train env=traffic-grid              as recorded
    python -m experiments.traffic train commands=true                 prints the trainings, to run them side by side
    python -m experiments.traffic train iterations=50 seeds=1         less of it
    python -m experiments.traffic train train=false                   judges what is there, complete or not
    python -m experiments.traffic train tiny=true                     a minute, under runs/tiny, to see that everything works
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import recording, traffic_report
from experiments.traffic_store import Store
from metarl.run.arguments import parse
from metarl.settings import SettingsError, fields, setting

if TYPE_CHECKING:
    from metarl.analysis.agent import Agent
    from metarl.core.params import Params
    from metarl.envs.traffic.headroom import Actions, Player
    from metarl.families import Tasks

# MAML starts from a policy that controls traffic already.
_MAML = ("meta_batch_size=20", "episodes_per_task=20", "inner_lr=0.03", "local_adaptation=false")
_LOCAL = ("meta_batch_size=20", "episodes_per_task=20", "inner_lr=0.05", "local_adaptation=true")
_OTHERS = (
    "meta_batch_size=20",
    "episodes_per_task=10",
    "inner_steps=0",
    "inner_lr=0.1",
    "local_adaptation=false",
)
_MORE = 2 * 20 * 20 // (20 * 10)  # times the samples of an iteration of the others
TINY = ("iterations=1", "meta_batch_size=2", "episodes_per_task=2", "env.horizon=3", "env.warmup=20", "eval_every=0")
# Episodes and largest mean KL of an update of a policy of one task's own; step size where each intersection is on its own.
_ALONE, _ALONE_KL, _ALONE_RATE = 100, 0.02, 0.05
# Adaptation and scores of held-out tasks, and its rates, are drawn apart from training's and from each other's.
_ADAPT, _TUNE = 11, 12


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    env: str = setting("traffic-grid", "the family")
    iterations: int = setting(25, "of MAML; the others have as many samples in all", low=1)
    start: int = setting(600, "iterations without adapting, with whose parameters MAML starts", low=1)
    seeds: int = setting(3, "seeds of MAML and of the policy that never adapts in training", low=1)
    tasks: int = setting(40, "held-out tasks", low=2)
    arrivals: int = setting(4, "episodes of each, the same for everybody", low=2)
    steps: int = setting(3, "most inner updates", low=1)
    episodes: int = setting(40, "of a task before every update, for everybody", low=1)
    alone: int = setting(30, "updates of a policy of each held-out task's own; 0 leaves them out", low=0)
    larger: int = setting(4, "rows and columns of the grid that nobody was trained on", low=1, high=20)
    beyond: bool = setting(True, "judge on a street and on other bands of demand, too")
    train: bool = setting(True, "false judges what is there")
    commands: bool = setting(False, "print the commands of the trainings and end")
    tiny: bool = setting(False, "a minute, under runs/tiny, to see that everything works")


def train(argv: Sequence[str]) -> int:
    """Train, judge, summarise; return the exit code."""
    settings = Settings(**parse(argv, Settings))
    if settings.tiny:
        settings = dataclasses.replace(
            settings, iterations=1, start=1, seeds=1, tasks=2, arrivals=2, steps=1, alone=1, larger=3, episodes=2
        )
    _refuse_others(settings.env)
    runs, results = recording.folders(f"{settings.env}-policies", settings.tiny)
    members = _members(settings)
    if settings.commands:
        for words in recording.trainings(settings.env, runs, members):
            print(shlex.join(["python", "-m", *words]))
        return 0
    if settings.train:
        recording.train(settings.env, runs, members)
    labels = recording.trained(runs, members)
    summary = judge(settings, runs, [label for label in labels if not label.startswith("start")])
    summary["runs"] = {label: recording.facts(runs / label) for label in labels}
    summary["evaluation"] = shlex.join(["python", "-m", "experiments.traffic", "train", *argv])
    summary["planned"] = {label: _iterations(words) for label, words in members.items()}
    results.mkdir(parents=True, exist_ok=True)
    recording.keep(runs, labels, results, "reward per episode")
    recording.write(results / "summary.json", summary)
    _film(settings, summary, runs, results)
    traffic_report.publish(summary, results, settings.tiny)
    return 0


def _refuse_others(env: str) -> None:
    """Refuse families that no controller can play, before anything is trained for hours."""
    from metarl import families
    from metarl.envs.traffic.batch import TrafficBatch
    from metarl.families import RLFamily

    family = families.make(env)
    if not isinstance(family, RLFamily) or not isinstance(family.batch(1, 1), TrafficBatch):
        raise SettingsError(
            f"env={env}: controllers set phases every few seconds; choose a family that does, such as traffic-grid"
        )


def _film(settings: Settings, summary: Mapping[str, Any], runs: pathlib.Path, results: pathlib.Path) -> None:
    """Draw the first run of MAML, before and after adapting, on the task in which that gains it as much as in most.

    If possible one whose intersections adapt each for itself.
    """
    from experiments import traffic_pictures
    from metarl.analysis.agent import load
    from metarl.core.params import rows

    label = next(
        (label for kind in ("local-s", "maml-s") for label in summary["rates"] if label.startswith(kind)), None
    )
    if label is None:
        return
    course = np.array(summary["grids"]["trained on"]["times"][label]).mean(-1)
    gains = 1 - course[-1] / course[0]
    task, agent = (
        int(gains.argsort()[len(gains) // 2]),
        everybody({label: load(runs / label)}, settings.episodes)[label],
    )
    tasks = agent.learner.domain.sample_tasks(settings.tasks, "test", (0, _ADAPT))
    before, *_, after = adapted(agent, tasks, (0, _ADAPT, 1), settings.steps, summary["rates"][label])
    names = ("before adapting", f"after {settings.steps} update{'s' * (settings.steps > 1)}")
    stages = {name: rows(params, slice(task, task + 1)) for name, params in zip(names, (before, after), strict=True)}
    traffic_pictures.strip(agent, stages, tasks.rows([task]), results / "film.png")


def _iterations(words: Sequence[str]) -> int:
    return next(int(word.partition("=")[2]) for word in words if word.startswith("iterations="))


def _members(settings: Settings) -> dict[str, Sequence[str]]:
    runs, _ = recording.folders(f"{settings.env}-policies", settings.tiny)
    whole = f"iterations={settings.start + _MORE * settings.iterations}"
    kinds: dict[str, tuple[int, Sequence[str]]] = {
        "start": (settings.seeds, (*_OTHERS, f"iterations={settings.start}")),
        "maml": (settings.seeds, (*_MAML, f"iterations={settings.iterations}")),
        "local": (settings.seeds, (*_LOCAL, f"iterations={settings.iterations}")),
        "pretrained": (settings.seeds, (*_OTHERS, whole)),
        "oracle": (1, (*_OTHERS, "env.oracle=true", whole)),
    }
    members: dict[str, Sequence[str]] = {}
    for kind, (seeds, words) in kinds.items():
        for seed in range(seeds):
            several = ["threads=1", *words, *(TINY if settings.tiny else ())]
            if kind in ("maml", "local"):
                several.append(f"init_from={runs / f'start-s{seed}'}")
            told = dict(word.split("=", 1) for word in several)  # a tiny one's last word counts
            members[f"{kind}-s{seed}"] = [f"seed={seed}", *(f"{name}={value}" for name, value in told.items())]
    return members


def judge(settings: Settings, runs: pathlib.Path, labels: Sequence[str]) -> dict[str, Any]:
    """Adapt and judge every run, and the controllers, on the grid of training and on others.

    What is known of a run is kept, so that this goes on where it was stopped.
    """
    import torch

    from metarl.analysis.agent import load
    from metarl.run.provenance import provenance

    torch.set_num_threads(1)
    held = min(20, settings.tasks)
    known = {name: getattr(settings, name) for name in ("tasks", "arrivals", "steps", "episodes", "alone")}
    store = Store(runs / "judged.jsonl", known)

    def kept(name: str, measure: Callable[[], Any], unit: str = " s") -> Any:
        store(name, lambda: np.array(measure()), unit)
        return store.times[name]

    whole = everybody({label: load(runs / label) for label in labels}, settings.episodes)
    at = {label: f"{label} at {agent.iteration}" for label, agent in whole.items()}
    adapting = [label for label in whole if not label.startswith("oracle")]
    rates = {
        label: kept(
            f"step sizes of {at[label]}", functools.partial(chosen_rates, whole[label], held, settings.steps), ""
        )
        for label in adapting
    }
    grids = {}
    for name, changes in _places(settings).items():
        where = ", ".join([name, *(f"{key}={value}" for key, value in changes.items())])
        specialist = next((x for x in labels if x.startswith("pretrained")), None) if not changes else None
        agents = everybody({label: load(runs / label, env_settings=changes) for label in labels}, settings.episodes)
        tasks = next(iter(agents.values())).learner.domain.sample_tasks(settings.tasks, "test", (0, _ADAPT))
        found = _controllers(settings, next(iter(agents.values())), tasks)
        courses = {
            label: kept(f"{where}: {at[label]}", functools.partial(_course, settings, agent, rates.get(label), tasks))
            for label, agent in agents.items()
        }
        if specialist is not None and settings.alone:
            courses["specialist-s0"] = [_alone(settings, runs, specialist, agents[specialist], tasks)]
            alone = functools.partial(_locally_alone, settings, agents[specialist], tasks)
            courses["specialist-local-s0"] = [kept(f"{where}: {at[specialist]}, each intersection alone", alone)]
        grids[name] = {**found, "times": courses}
    return {"settings": dataclasses.asdict(settings), "grids": grids, "rates": rates, **provenance()}


def everybody(agents: Mapping[str, Agent], episodes: int) -> dict[str, Agent]:
    """Return the agents, and the pretrained ones once more, whose intersections adapt each for itself.

    All look at so many episodes of a task before an update.
    """
    from metarl.analysis import curves

    several = {}
    for label, one in agents.items():
        agent = dataclasses.replace(one, learner=curves.with_episodes(one.learner, episodes))
        several[label] = agent
        if label.startswith("pretrained-s"):
            several[label.replace("pretrained", "pretrained-local")] = locally(agent)
    return several


def locally(agent: Agent) -> Agent:
    """Let an agent's intersections adapt each for itself."""
    from metarl.core import GradientStep
    from metarl.rl.domain import RLDomain

    learner = agent.learner
    assert isinstance(learner.domain, RLDomain)
    assert isinstance(learner.inner, GradientStep)
    assert learner.domain.team is not None
    inner = dataclasses.replace(learner.inner, copies=len(learner.domain.team.columns))
    learner = dataclasses.replace(learner, domain=learner.domain.localising(), inner=inner)
    return dataclasses.replace(agent, learner=learner)


def _places(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return where everybody is judged: settings of the family that are others than in training, by what they are called."""
    from metarl import families

    places: dict[str, dict[str, Any]] = {
        "trained on": {},
        "larger": {"rows": settings.larger, "columns": settings.larger},
    }
    if settings.beyond:
        places["a street"] = {"rows": 1, "columns": 6}
        if "band" in fields(families.lookup(settings.env)):
            places |= {"1.2 to 1.4 times the demand": {"band": "heavy"}, "demand that turns": {"band": "tidal"}}
    return places


def chosen_rates(agent: Agent, tasks: int, steps: int) -> tuple[float, ...]:
    """Choose a run's step sizes on so many validation tasks of the grid of training."""
    from metarl.analysis import curves

    held = agent.learner.domain.sample_tasks(tasks, "validation", (0, _TUNE))
    return curves.tune_rates(agent.learner, agent.meta, held, (0, _TUNE, 1), steps, agent.config.run.inner_lr)


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


def _alone(settings: Settings, runs: pathlib.Path, label: str, agent: Agent, tasks: Tasks) -> list[Any]:
    """Return the mean times (tasks, arrivals) of policies that were trained on from a run's, each on one task alone.

    What is known of a task is kept, so that this goes on where it was stopped.
    """
    from metarl.core.params import expand

    known = {"run": label, "at": agent.iteration, **{x: getattr(settings, x) for x in ("tasks", "arrivals", "alone")}}
    store = Store(runs / "specialists.jsonl", known)

    def played(task: Tasks) -> np.ndarray:
        params = expand(specialist(agent, task, settings.alone, 2 if settings.tiny else _ALONE), 1)
        return times(agent, params, task, range(settings.arrivals))[0]

    for row in range(len(tasks)):
        store(f"task {row}", functools.partial(played, tasks.rows([row])))
    return [store.times[f"task {row}"] for row in range(len(tasks))]


def _locally_alone(settings: Settings, agent: Agent, tasks: Tasks) -> list[Any]:
    """Return the mean times (tasks, arrivals) of policies adapted by a specialist's updates, each intersection for itself."""
    from metarl.analysis import curves

    agent = dataclasses.replace(agent, learner=curves.with_episodes(agent.learner, 2 if settings.tiny else _ALONE))
    *_, last = adapted(locally(agent), tasks, (0, _ADAPT, 2), settings.alone, [_ALONE_RATE] * settings.alone)
    return times(agent, last, tasks, range(settings.arrivals)).tolist()


def specialist(agent: Agent, task: Tasks, updates: int, episodes: int) -> Params:
    """Train a policy on from an agent's on one task alone, by so many trust-region updates of so many episodes each."""
    from metarl.analysis.restricted import restricted
    from metarl.core import TRPO
    from metarl.rl.domain import RLDomain

    one = restricted(agent.learner, task)
    assert isinstance(one.domain, RLDomain)
    assert isinstance(one.outer, TRPO)
    domain, outer = dataclasses.replace(one.domain, episodes=episodes), dataclasses.replace(one.outer, max_kl=_ALONE_KL)
    one = dataclasses.replace(one, domain=domain, outer=outer, meta_batch_size=1, inner_steps=0)
    state = dataclasses.replace(one.init(_ADAPT), meta=agent.meta)
    for _ in range(updates):
        state, _ = one.iteration(state)
    return state.meta


def player(agent: Agent, params: Params, tasks: Tasks, episodes: int) -> Player:
    """Return who plays so many episodes of M tasks by the policies of params (M, ...)."""
    import torch

    from metarl.rl.domain import RLDomain

    domain = agent.learner.domain
    assert isinstance(domain, RLDomain)
    actor, random = domain.policy.actor(params), np.random.default_rng(0)
    shape = (len(tasks), episodes)

    def begin(env: object, each: np.ndarray) -> Actions:
        del env, each
        noise = np.empty((*shape, domain.policy.action_size), dtype=np.float32)

        def act(seen: np.ndarray) -> np.ndarray:
            domain.policy.noise(random, noise)
            with torch.no_grad():
                states = domain.observe(torch.tensor(seen).view(*shape, -1), tasks)
                return actor(states, torch.tensor(noise))[0].flatten(0, 1).numpy()

        return act

    return begin


def times(agent: Agent, params: Params, tasks: Tasks, seeds: Sequence[int]) -> np.ndarray:
    """Let the policies of M tasks, params (M, ...), play arrivals; return mean times of a trip, s, (M, arrivals)."""
    from metarl.envs.traffic import headroom
    from metarl.rl.domain import RLDomain

    domain = agent.learner.domain
    assert isinstance(domain, RLDomain)
    return headroom.played(domain.family, tasks, seeds, player(agent, params, tasks, len(seeds)))
