"""Evaluate a run: ``python -m metarl.evaluate run=runs/x compare=[runs/pretrained,runs/oracle] steps=3``.

Adapts on held-out tasks and writes ``curve.json``, ``curve.csv``, ``curve.png`` and ``groups.csv`` under ``RUN/evaluation/``; in
other bands of tasks (``band=``) ``bands.json`` and so on, in another simulator (``backend=``) ``curve-sumo.json``.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import metarl.run.arguments as arguments
from metarl.analysis import published
from metarl.analysis.bands import USUAL, Band, in_backend, suffix_of
from metarl.analysis.bands import read as read_bands
from metarl.families import EnvFault, FamilyError, RLSpec, Split, Tasks, make
from metarl.run.command import guarded, say
from metarl.settings import SettingsError, setting

if TYPE_CHECKING:
    from metarl.analysis.agent import Agent
    from metarl.run.config import RunConfig


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """Adapt on held-out tasks; write curve.json, curve.csv, curve.png and groups.csv under RUN/evaluation/."""

    run: str = setting("", "the run directory to evaluate")
    compare: tuple[str, ...] = setting((), "other runs to show in the same picture: [RUN2,RUN3]")
    tasks: int = setting(40, "held-out tasks", low=1)
    steps: int = setting(3, "most inner updates", low=0)
    episodes: int | None = setting(None, "episodes of one update and of one score; null takes training's", low=1)
    rollouts: tuple[int, ...] = setting(
        (),
        "score after so many rollouts instead of after updates: [0,1,5,20]; of RL² empty means all of its trial",
        low=0,
    )
    split: str = setting("test", "which tasks", choices=("train", "validation", "test"))
    inner_lr: tuple[float, ...] = setting(
        (),
        "step size of each update, the last for all later; empty: training's; learned rates are scaled by it / training's",
        above=0,
    )
    tune: bool = setting(False, "choose the step sizes on 20 validation tasks, for every run by itself")
    normalization: str | None = setting(
        None,
        "whose statistics normalise a query (few-shot); null: those that the run was trained with",
        choices=("transductive", "support", "one-by-one"),
    )
    published: bool = setting(False, "show published numbers of this family beside, with their source")
    level: float | None = setting(None, "say after how many training steps the validation score reached this")
    checkpoint: str = setting("last", "last, or best on validation", choices=("last", "best"))
    seed: int = setting(0, "of tasks and rollouts", low=0)
    device: str = setting("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    backend: str | None = setting(
        None, "simulator of everything, adapting included, of a family that has several: sumo; null: the run's own"
    )
    band: tuple[str, ...] = setting(
        (),
        "tasks beyond training's, each beside its own, into bands.json: [heavy,tidal], [velocity=2..3] or other settings",
    )
    video: bool = setting(False, "write an MP4 of one task before and after adapting instead")
    task: int = setting(0, "which of the tasks the video shows, from 0", low=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the arguments, evaluate, write; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(words))


def _main(argv: list[str]) -> int:
    if arguments.wants_help(argv):
        print(arguments.help_for(EvaluateSettings, "metarl.evaluate"))
        return 0
    given = arguments.parse([listed(token) for token in argv], EvaluateSettings, paths={"run"}, path_lists={"compare"})
    settings = EvaluateSettings(**given)
    if not settings.run:
        raise SettingsError("run is missing: name a run directory, run=runs/NAME")
    from metarl.run.directory import read_config

    paths = [pathlib.Path(path) for path in (settings.run, *settings.compare)]
    configs = [read_config(path) for path in paths]
    suffix = suffix_of(settings.backend, configs[0])
    runs = dict(zip(names(paths), paths, strict=True))
    if settings.backend:
        configs = [in_backend(settings.backend, config) for config in configs]
    _check(settings, configs[0])
    bands = read_bands(settings.band, configs[0])
    for name, config in zip(runs, configs, strict=True):
        _refuse_other_problem(configs[0], config, name)
    if all(remembers(config) for config in configs):
        refuse_updates(given)
    import torch

    torch.set_num_threads(1)
    if settings.video:
        return _video(settings)
    return _evaluate(settings, runs, shlex.join(["python", "-m", "metarl.evaluate", *argv]), bands, suffix)


def listed(token: str) -> str:
    """``inner_lr=0.05`` means ``inner_lr=[0.05]``: one number needs no brackets."""
    key, _, text = token.partition("=")
    lone = key in ("inner_lr", "rollouts", "band") and text and not any(c in "[,]" for c in text)
    return f"{key}=[{text}]" if lone else token


def names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Return the runs' names: the shortest ends of their paths that tell all of them apart."""
    every = [path.resolve().parts for path in paths]
    found = []
    for path, parts in zip(paths, every, strict=True):
        if every.count(parts) > 1:
            raise SettingsError(f"{path} is named twice; name every run once")
        length = next(n for n in range(1, len(parts) + 1) if sum(other[-n:] == parts[-n:] for other in every) == 1)
        found.append(as_text("/".join(parts[-length:])))
    return found


def as_text(path: str | pathlib.Path) -> str:
    """Return a path as text: it may hold bytes that are none, which pictures, tables and terminals refuse."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check(settings: EvaluateSettings, config: RunConfig) -> None:
    """Refuse settings that would have no effect, or that this run cannot have, before anything is loaded."""
    if settings.video and remembers(config):
        raise SettingsError("video=true shows one run before and after inner updates; a run of algo=rl2 has none")
    if settings.video:
        unused = [name for name in ("compare", "rollouts", "tune", "band", "published") if getattr(settings, name)]
        unused += ["level"] if settings.level is not None else []
        reason = "video=true shows one run before and after adapting"
    else:
        unused = ["task"] if settings.task else []
        reason = "it says which task video=true shows; tasks= is their number"
    if settings.published and settings.rollouts:
        unused, reason = ["published"], "published numbers are after inner updates; leave rollouts= out"
    if settings.published:
        published.required(config.env, config.env_settings)
    if settings.band and settings.level is not None:
        unused, reason = ["level"], "it is of training, whose tasks have no bands"
    if settings.tune and settings.split == "validation":
        raise SettingsError("tune=true chooses the step sizes on validation tasks; judge them on split=test")
    if settings.tune and settings.inner_lr:
        unused, reason = ["inner_lr"], "tune=true chooses the step sizes"
    if unused:
        raise SettingsError(f"{unused[0]}= has no effect here: {reason}")
    if not isinstance(make(config.env, **config.env_settings).spec, RLSpec):
        for name in ("episodes", "rollouts", "video"):
            if getattr(settings, name):
                raise SettingsError(f"{name}= belongs to reinforcement learning; {config.env} has labelled shots")
    elif settings.normalization:
        raise SettingsError(f"normalization= belongs to few-shot learning; {config.env} is reinforcement learning")


def loaded(settings: EvaluateSettings, path: str | pathlib.Path) -> Agent:
    """Load a run, in the simulator in which it is to be."""
    from metarl.analysis.agent import load

    own = {"simulator": settings.backend} if settings.backend else {}
    return load(path, settings.checkpoint, settings.device, own)


def _refuse_other_problem(ours: RunConfig, theirs: RunConfig, name: str) -> None:
    """Refuse to put runs on different problems into one picture."""
    if ours.env != theirs.env:
        raise SettingsError(
            f"compare: {name} was trained on {theirs.env}, not on {ours.env}; compare runs of one family"
        )
    for key, value in ours.env_settings.items():
        if key != "oracle" and theirs.env_settings.get(key) != value:
            raise SettingsError(
                f"compare: {name} has env.{key}={theirs.env_settings.get(key)}, the evaluated run has {value};"
                " compare runs on the same tasks"
            )


def remembers(config: RunConfig) -> bool:
    """Tell whether a run learns a task by memory instead of by inner updates (RL²)."""
    return bool(config.algo_settings.get("memory_size"))


def refuse_updates(given: Mapping[str, Any]) -> None:
    """Refuse what belongs to inner updates and was given, where no run has any."""
    wrong = [name for name in ("inner_lr", "tune", "steps") if given.get(name)]
    if wrong:
        raise SettingsError(
            f"{wrong[0]}= has no effect here: a run of algo=rl2 learns by memory and has no inner updates"
        )


def _evaluate(
    settings: EvaluateSettings, paths: Mapping[str, pathlib.Path], command: str, bands: Sequence[Band], suffix: str
) -> int:
    from metarl.analysis import groups, report, telling
    from metarl.analysis.shifted import shifted
    from metarl.analysis.shots import judged_by
    from metarl.run.directory import EVALUATION
    from metarl.run.provenance import provenance

    agents = {name: loaded(settings, path) for name, path in paths.items()}
    agents = {name: judged_by(name, agent, settings.normalization) for name, agent in agents.items()}
    for name, agent in agents.items():
        refuse_rates(name, agent, settings)
    moved = [(band, {name: shifted(agent, band) for name, agent in agents.items()}) for band in bands]
    first = next(iter(agents.values()))
    domain, members = first.learner.domain, {name: agent.config for name, agent in agents.items()}
    result = {
        "metric": domain.metric,
        "unit": domain.unit,
        "split": settings.split,
        **_scored(settings, agents),
        "family": first.config.env,
        "task_units": {p.name: p.unit for p in make(first.config.env, **first.config.env_settings).spec.parameters},
        "higher_is_better": domain.higher_is_better,
        "command": command,
        "settings": dataclasses.asdict(settings),
        "provenance": provenance(),
    }
    result |= groups.together(members, result, settings.level, paths)
    result |= (
        {"published": published.required(first.config.env, first.config.env_settings)} if settings.published else {}
    )
    # the one axis that runs with and without inner updates share
    by = "rollouts" if settings.rollouts or any(remembers(config) for config in members.values()) else "updates"
    out = pathlib.Path(settings.run) / EVALUATION
    if bands:
        result = _banded(settings, members, moved, result)
        written = report.write_bands(result, out, by, suffix)
        telling.tell_bands(result, by)
    else:
        written = report.write(result, out, by, suffix)
        telling.tell(result, by)
    say(f"written: {as_text(out)}/{', '.join(written)}")
    return 0


def _scored(settings: EvaluateSettings, agents: Mapping[str, Agent], place: str = "") -> dict[str, Any]:
    """Return what all runs do on the same tasks: the tasks with their ranges, curves, and how each run was adapted."""
    from tqdm import tqdm

    first = next(iter(agents.values()))
    tasks, runs, notes = held_out(settings, first, settings.tasks), {}, {}
    for name, agent in tqdm(agents.items(), desc=place or None, unit="run", disable=not sys.stderr.isatty()):
        runs[name], notes[name] = curve_of(name, agent, tasks, settings)
    parameters = make(first.config.env, **first.config.env_settings).spec.parameters
    ranges = {parameter.name: [parameter.low, parameter.high] for parameter in parameters}
    return {"tasks": tasks.to_json(), "task_ranges": ranges, "runs": runs, "notes": notes}


def _banded(
    settings: EvaluateSettings,
    configs: Mapping[str, RunConfig],
    moved: Sequence[tuple[Band, Mapping[str, Agent]]],
    usual: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the runs do in every band, adapted as on the usual tasks, beside what they do on these."""
    from metarl.analysis import groups

    kept = ("tasks", "task_ranges", "runs", "groups", "improvement", "along")
    places = {USUAL: {"settings": {}, **{key: usual[key] for key in kept if key in usual}}}
    for band, agents in moved:
        runs: dict[str, Any] = {}
        for name, agent in agents.items():
            # step sizes are chosen where a user could choose them: without a look at the band
            rates = tuple(usual["notes"][name].get("inner_lr", ())) if settings.tune else settings.inner_lr
            own = dataclasses.replace(settings, tune=False, inner_lr=rates)
            scored = _scored(own, {name: agent}, band.name)
            runs |= scored["runs"]
        found = {"tasks": scored["tasks"], "task_ranges": scored["task_ranges"], "runs": runs}
        found |= groups.together(configs, {**usual, **found})
        places[band.name] = {"settings": band.settings, **found}
    return {**{key: value for key, value in usual.items() if key not in kept}, "bands": places}


def stream_of(settings: EvaluateSettings) -> tuple[int, int]:
    """Return the seed of the evaluation's tasks and rollouts."""
    from metarl.learner import TEST, TRAIN, VALIDATION

    return settings.seed, {"train": TRAIN, "validation": VALIDATION, "test": TEST}[settings.split]


def held_out(settings: EvaluateSettings, agent: Agent, count: int) -> Tasks:
    """Return the tasks that a run is evaluated on."""
    return agent.learner.domain.sample_tasks(count, cast(Split, settings.split), stream_of(settings))


def adapts(config: RunConfig) -> bool:
    """Tell whether a run is adapted: an oracle, which observes its task, is shown as it is."""
    return not config.env_settings.get("oracle") or config.run.inner_steps > 0


def refuse_rates(name: str, agent: Agent, settings: EvaluateSettings) -> None:
    """Refuse step sizes for a run that has none, before another run has been evaluated for hours."""
    from metarl.analysis.curves import with_rates

    if adapts(agent.config) and not remembers(agent.config) and (settings.tune or settings.inner_lr):
        try:
            with_rates(agent.learner, 1, settings.inner_lr or (agent.config.run.inner_lr,))
        except SettingsError as error:
            raise SettingsError(f"{name}: {error}") from error


def curve_of(
    name: str, agent: Agent, tasks: Tasks, settings: EvaluateSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate one run; returns its entry of ``curve.json`` and how it was adapted."""
    import numpy as np

    from metarl.analysis import curves
    from metarl.learner import VALIDATION

    learner = agent.learner if settings.episodes is None else curves.with_episodes(agent.learner, settings.episodes)
    seed, rates, trained = (*stream_of(settings), 1), settings.inner_lr, agent.config.run
    note: dict[str, Any] = {
        "iteration": agent.iteration,
        "adapted": True,
        "protocol": settings.backend or learner.domain.protocol,
        "env": {"name": agent.config.env, **agent.config.env_settings},
    }
    if remembers(agent.config):
        curve = curves.trial_curve(learner, agent.meta, tasks, seed, settings.rollouts)
        return curve.to_json(), {**note, "trial_episodes": agent.config.algo_settings["trial_episodes"]}
    if not adapts(agent.config):
        return curves.update_curve(learner, agent.meta, tasks, seed, 0).to_json(), {**note, "adapted": False}
    if settings.tune:
        held = learner.domain.sample_tasks(20, "validation", (settings.seed, VALIDATION))
        apart = (settings.seed, VALIDATION, 2)  # never the rollouts of a reported curve
        rates = curves.tune_rates(learner, agent.meta, held, apart, settings.steps, trained.inner_lr)
    if settings.rollouts:
        counts = sorted(set(settings.rollouts))
        curve = curves.rollout_curve(learner, agent.meta, tasks, seed, counts, rates)
    else:
        curve = curves.update_curve(learner, agent.meta, tasks, seed, settings.steps, rates)
    if not np.isfinite(curve.values).all():
        raise SettingsError(f"{name}: scores are not finite: adaptation diverged; lower inner_lr")
    note |= {"inner_lr": list(rates) or [trained.inner_lr], "inner_lr_chosen_on_validation_tasks": settings.tune}
    return curve.to_json(), note


def _video(settings: EvaluateSettings) -> int:
    from metarl.analysis.video import record
    from metarl.gym.environment import prepare_gl

    prepare_gl()
    from metarl.analysis.curves import with_episodes
    from metarl.analysis.report import writing
    from metarl.run.directory import EVALUATION

    agent = loaded(settings, settings.run)
    learner = agent.learner if settings.episodes is None else with_episodes(agent.learner, settings.episodes)
    task = held_out(settings, agent, settings.task + 1).rows([settings.task])
    out = pathlib.Path(settings.run) / EVALUATION
    seed, path = (*stream_of(settings), 1), out / f"task{settings.task}.mp4"
    try:
        with writing(out):
            before, after = record(learner, agent.meta, task, path, seed, settings.steps, settings.inner_lr)
    except EnvFault as fault:
        raise FamilyError(f"Family {agent.config.env} failed while it was filmed: {fault.reason}") from fault
    say(f"video: {as_text(path)}  (return {before:.1f} before, {after:.1f} after)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
