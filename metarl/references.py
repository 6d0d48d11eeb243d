"""References of a run: ``python -m metarl.references run=runs/x methods=[ppo,sac,finetuned] tasks=10 seeds=3``.

In reinforcement learning libraries train them on the test tasks of ``metarl.evaluate`` at the environment steps that the
meta-learner took there, and at multiples of these; what is finished is kept in ``references.jsonl`` and ``references/``, so
that a command that was cut goes on where it was. In few-shot classification nothing is trained: nearest neighbours of pixels,
and prototypes in the features of the run's network before adapting, classify the queries of evaluate's own tasks.
Writes ``references.json``, ``references.csv`` and ``references.png`` under ``RUN/evaluation/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import metarl.run.arguments as arguments
from metarl import evaluate
from metarl.analysis.methods import METHODS, SHOT_METHODS, unfit
from metarl.evaluate import EvaluateSettings
from metarl.families import RLSpec, ShotSpec, make
from metarl.run.command import guarded, say
from metarl.settings import SettingsError, setting

if TYPE_CHECKING:
    from metarl.analysis.agent import Agent
    from metarl.families import Tasks
    from metarl.run.config import RunConfig

_LISTS = ("methods", "multiples")  # one of them needs no brackets
_SHARED = ("run", "steps", "episodes", "inner_lr", "tune", "checkpoint", "seed")  # with metarl.evaluate
_OF_TRAININGS = ("seeds", "multiples", "sac_steps", "pretrain", "episodes")  # without effect where nothing is trained
_TASKS = 10  # each is trained on
_HOW = {
    "env_steps": "of a reference: all that it took on the test task, counted; of the meta-learner: rollouts times horizon, the"
    " most that it can have taken. Rollouts of scores count for nobody",
    "score": "mean undiscounted return of episodes with sampled actions, the meta-learner's own numbers of episodes and their"
    " seeds after as many steps, at more steps those after its last update",
    "interval": "95 % by a bootstrap over seeds and tasks; of the meta-learner Student's over tasks",
    "hyperparameters": "the libraries' defaults; updates have the number of steps nearest to the default of which every score is a"
    " multiple, SAC begins to learn before the first score; observations and rewards are not standardised",
}

_HOW_OF_SHOTS = {
    "examples": "the run's own: tasks, support and query sets of metarl.evaluate at the same seed",
    "interval": "95 %, Student's over tasks; a difference is the run's accuracy after its last update minus the reference's on"
    " the same task",
    "nearest": "each query takes the class of its nearest support image, by all pixels; of equals the first",
    "prototypes": "class means of the features that the network's body, unadapted and normalising as in the run's own scores, makes"
    " of the support set; squared Euclidean distance (Snell et al., 2017, arXiv:1703.05175)",
}


@dataclasses.dataclass(frozen=True)
class ReferenceSettings:
    """Set a run beside references on its test tasks; write references.json, .csv and .png under RUN/evaluation/."""

    run: str = setting("", "the run directory; may stand alone: python -m metarl.references RUN")
    methods: tuple[str, ...] = setting((), "which references; empty: all that fit", choices=(*METHODS, *SHOT_METHODS))
    tasks: int | None = setting(
        None, "held-out tasks, the first of metarl.evaluate's; null: 10, in few-shot learning evaluate's 40", low=1
    )
    seeds: int = setting(3, "trainings of every reference on every task (RL)", low=1)
    multiples: tuple[int, ...] = setting(
        (3, 10, 30, 100), "scores at more steps: these multiples of what the meta-learner took on a task (RL)", low=2
    )
    sac_steps: int = setting(
        200_000, "steps beyond which SAC, which is slow, is not trained unless the meta-learner took them (RL)", low=1
    )
    pretrain: int = setting(1_000_000, "environment steps on training tasks of references that have them (RL)", low=2)
    steps: int = setting(3, "inner updates of the meta-learner", low=1)
    episodes: int | None = setting(None, "episodes of one update and of one score; null takes training's (RL)", low=1)
    inner_lr: tuple[float, ...] = setting((), "step size of each update, as of metarl.evaluate", above=0)
    tune: bool = setting(False, "choose the step sizes on 20 validation tasks")
    checkpoint: str = setting("last", "last, or best on validation", choices=("last", "best"))
    seed: int = setting(0, "of tasks, their data and trainings", low=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the arguments, train or classify, write; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(words))


def _main(argv: list[str]) -> int:
    if arguments.wants_help(argv):
        print(arguments.help_for(ReferenceSettings, "metarl.references"))
        return 0
    settings, methods, references = checked(argv)
    import torch

    torch.set_num_threads(1)
    return references(settings, methods, shlex.join(["python", "-m", "metarl.references", *argv]))


class _Job(NamedTuple):
    """What is asked for, the methods that fit, and what makes them."""

    settings: ReferenceSettings
    methods: list[str]
    make: Callable[[ReferenceSettings, Sequence[str], str], int]


def checked(argv: Sequence[str]) -> _Job:
    """Read the arguments; refuse what cannot be made before anything heavy is loaded.

    Raises:
        SettingsError: for the first argument, run or method that is wrong.
    """
    words = [listed(evaluate.listed(token)) if "=" in token else f"run={token}" for token in argv]
    given = arguments.parse(words, ReferenceSettings, paths={"run"})
    settings = ReferenceSettings(**given)
    if not settings.run:
        raise SettingsError("run is missing: name a run directory, python -m metarl.references runs/NAME")
    from metarl.run.directory import read_config

    config = read_config(pathlib.Path(settings.run))
    if not evaluate.adapts(config):
        raise SettingsError("this run observes its task and does not adapt: name the one that it is the oracle of")
    if settings.tune and settings.inner_lr:
        raise SettingsError("inner_lr= has no effect here: tune=true chooses the step sizes")
    spec = make(config.env, **config.env_settings).spec
    if evaluate.remembers(config):
        evaluate.refuse_updates(given)
    if isinstance(spec, RLSpec):
        return _Job(settings, _fitting(settings, config, spec), _references)
    return _Job(settings, _classifiers(given, config, spec), _shot_references)


def listed(token: str) -> str:
    """``methods=ppo,sac`` means ``methods=[ppo,sac]``: it needs no brackets."""
    key, _, text = token.partition("=")
    return f"{key}=[{text}]" if key in _LISTS and "[" not in text else token


def _classifiers(given: Mapping[str, Any], config: RunConfig, spec: ShotSpec) -> list[str]:
    """Return the methods that are asked for of labelled shots; refuse likewise."""
    from metarl.analysis.shot_references import refusal

    if refusal(config.env, spec):
        raise SettingsError(refusal(config.env, spec))
    unused = [f"{name}=" for name in _OF_TRAININGS if name in given]
    if unused:
        raise SettingsError(
            f"{', '.join(unused)} {'has' if len(unused) == 1 else 'have'} no effect here: {config.env} has labelled shots, whose"
            " references are not trained; leave out what belongs to trainings in reinforcement learning"
        )
    asked = list(dict.fromkeys(given.get("methods") or SHOT_METHODS))
    wrong = [name for name in asked if name not in SHOT_METHODS]
    if wrong:
        raise SettingsError(
            f"methods={wrong[0]} does not fit {config.env}: it learns by acting, and {config.env} has labelled shots; choose among"
            f" {', '.join(SHOT_METHODS)}"
        )
    return asked


def _fitting(settings: ReferenceSettings, config: RunConfig, spec: RLSpec) -> list[str]:
    """Return the methods to train; refuse what cannot be compared before anything is loaded."""
    installed = importlib.util.find_spec("sb3_contrib") is not None
    reasons = {name: unfit(name, spec, installed) for name in dict.fromkeys(settings.methods or METHODS)}
    for name, reason in reasons.items():
        if reason and settings.methods:
            raise SettingsError(f"methods={name} does not fit {config.env}: {reason}")
        if reason:
            say(f"{name}  left out: {reason}")
    fitting = [name for name, reason in reasons.items() if not reason]
    if not fitting:
        raise SettingsError(f"no reference fits {config.env}: {next(iter(reasons.values()))}")
    return fitting


class _Ours(NamedTuple):
    """The meta-learner, and how it did: its entry of ``curve.json``."""

    name: str
    agent: Agent
    tasks: Tasks
    curve: dict[str, Any]


def _evaluated(agent: Agent, evaluated: EvaluateSettings) -> _Ours:
    """Evaluate the meta-learner, as ``metarl.evaluate`` does."""
    name = evaluate.names([pathlib.Path(evaluated.run)])[0]
    evaluate.refuse_rates(name, agent, evaluated)
    tasks = evaluate.held_out(evaluated, agent, evaluated.tasks)
    curve, note = evaluate.curve_of(name, agent, tasks, evaluated)
    return _Ours(name, agent, tasks, {**curve, **note})


def _stepping(ours: _Ours) -> _Ours:
    """Add the environment steps that the meta-learner took before each point, and how many it needs for its last score."""
    from metarl.rl.domain import RLDomain
    from metarl.rl.trials import bare

    domain, curve = ours.agent.learner.domain, ours.curve
    assert isinstance(domain, RLDomain)
    taken = [count * bare(domain.family).spec.horizon for count in curve["rollouts"]]
    if not taken[-1]:
        raise SettingsError(
            f"{ours.name} learns from no step of a test task (algo.trial_episodes=1): there is nothing to equal"
        )
    # whole updates: of a part of one it has nothing
    needs = next(steps for steps, mean in zip(taken, curve["mean"], strict=True) if mean >= curve["mean"][-1])
    return ours._replace(curve={**curve, "steps": taken, "reaches_the_adapted_policy_after": needs})


def _shot_references(settings: ReferenceSettings, methods: Sequence[str], command: str) -> int:
    import numpy as np

    from metarl.analysis import references, shot_references
    from metarl.analysis.shots import shot_domain
    from metarl.run.directory import EVALUATION
    from metarl.run.provenance import provenance

    shared = {name: getattr(settings, name) for name in _SHARED}
    evaluated = EvaluateSettings(**shared, tasks=settings.tasks or EvaluateSettings.tasks)
    agent = evaluate.loaded(evaluated, settings.run)
    domain = shot_domain(agent.learner)
    for name, reason in shot_references.fitting(domain, methods).items():
        if settings.methods:
            raise SettingsError(f"methods={name} does not fit this run: {reason}")
        say(f"{name}  left out: {reason}")
        methods = [other for other in methods if other != name]
    ours = _evaluated(agent, evaluated)
    seed = (*evaluate.stream_of(evaluated), 1)  # of the support and query sets of the curve
    found = shot_references.accuracies(domain, agent.meta, ours.tasks, seed, methods)
    result = {
        "kind": shot_references.KIND,
        **_origin(ours),
        "protocol": domain.protocol,
        "references": shot_references.summarise(found, np.array(ours.curve["values"][-1])),
        "how": _HOW_OF_SHOTS,
        "command": command,
        "settings": {name: getattr(evaluated, name) for name in ("tasks", *_SHARED) if name not in _OF_TRAININGS},
        "provenance": provenance(),
    }
    out = pathlib.Path(settings.run) / EVALUATION
    references.write(result, out)
    for finding in shot_references.findings(result):
        say(finding.text)
    say(f"written: {evaluate.as_text(out)}/{references.RESULT}, {references.TABLE}, {references.PICTURE}")
    return 0


def _references(settings: ReferenceSettings, methods: Sequence[str], command: str) -> int:
    from metarl.analysis import references
    from metarl.analysis.report import writing
    from metarl.integrations.comparison import Comparison
    from metarl.integrations.references import Problem, Score
    from metarl.rl.domain import RLDomain
    from metarl.run.directory import EVALUATION
    from metarl.run.lock import RunLock

    shared = {name: getattr(settings, name) for name in _SHARED}
    evaluated = EvaluateSettings(**shared, tasks=settings.tasks or _TASKS)
    ours = _stepping(_evaluated(evaluate.loaded(evaluated, settings.run), evaluated))
    domain, config, taken = ours.agent.learner.domain, ours.agent.config, ours.curve["steps"]
    assert isinstance(domain, RLDomain)
    rungs = references.ladder(taken, settings.multiples)
    # a memory is scored in one long trial, which starts at the seed itself
    seed, remembers = (*evaluate.stream_of(evaluated), 1), evaluate.remembers(config)
    out = pathlib.Path(settings.run) / EVALUATION
    with contextlib.ExitStack() as held:
        with writing(out):
            held.enter_context(RunLock(out / ".references.lock"))
        comparison = Comparison(
            problem=Problem(config.env, _own(config), ours.tasks, settings.episodes or domain.episodes),
            scores=tuple(Score(rung.steps, seed if remembers else (*seed, rung.point)) for rung in rungs),
            most={"sac": max(settings.sac_steps, taken[-1])},
            seeds=settings.seeds,
            pretraining=settings.pretrain,
            seed=settings.seed,
            folder=out / "references",
        )
        found = comparison.run(methods, references.Cells(out / references.CELLS))
        level = ours.curve["mean"][-1]
        told = {method: _told(method, cells, settings, level) for method, cells in found.items()}
        result = {**_origin(ours), "references": told, **_repeat(settings, command)}
        references.write(result, out)
    for sentence in references.sentences(result):
        say(sentence)
    say(f"written: {evaluate.as_text(out)}/{references.RESULT}, {references.TABLE}, {references.PICTURE}")
    return 0


def _own(config: RunConfig) -> dict[str, Any]:
    """Return the family's settings but for what a reference is told, which is its method's."""
    return {key: value for key, value in config.env_settings.items() if key != "oracle"}


def _origin(ours: _Ours) -> dict[str, Any]:
    """Return what was compared on what."""
    domain, config = ours.agent.learner.domain, ours.agent.config
    parameters = make(config.env, **config.env_settings).spec.parameters
    return {
        "run": ours.name,
        "family": config.env,
        "algorithm": config.algo,
        "metric": domain.metric,
        "unit": domain.unit,
        "split": "test",
        "tasks": ours.tasks.to_json(),
        "task_units": {parameter.name: parameter.unit for parameter in parameters},
        "meta_learner": ours.curve,
    }


def _repeat(settings: ReferenceSettings, command: str) -> dict[str, Any]:
    """Return how it was made."""
    from metarl.integrations.comparison import libraries
    from metarl.run.provenance import provenance

    return {
        "seeds": settings.seeds,
        "how": _HOW,
        "command": command,
        "settings": dataclasses.asdict(settings),
        "provenance": {**provenance(), "libraries": libraries(importlib.util.find_spec("sb3_contrib") is not None)},
    }


def _told(
    method: str, cells: Sequence[Sequence[Mapping[str, Any]]], settings: ReferenceSettings, level: float
) -> dict[str, Any]:
    """Return what is written of a reference."""
    from metarl.analysis.references import summarise

    first, about = cells[0][0], METHODS[method]
    told = {"about": about.about, **summarise(cells, first["steps"], level)}
    if about.learns:
        told["hyperparameters"] = first["hyperparameters"]
    if about.pretrained:
        told["pretraining"] = {"env_steps": settings.pretrain, "hyperparameters": first["pretraining"]}
    return told


if __name__ == "__main__":
    sys.exit(main())
