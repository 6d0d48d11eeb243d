"""Evaluate a run: ``python -m metarl.evaluate run=runs/x compare=[runs/pretrained,runs/oracle] steps=3``.

Adapts on held-out tasks and writes ``curve.json``, ``curve.csv`` and ``curve.png`` under ``RUN/evaluation/``.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import metarl.run.arguments as arguments
from metarl.families import FamilyError
from metarl.settings import SettingsError, setting


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What ``python -m metarl.evaluate`` can be told."""

    run: str = setting("", "the run directory to evaluate")
    compare: tuple[str, ...] = setting((), "other runs to show in the same picture: [RUN2,RUN3]")
    tasks: int = setting(40, "held-out tasks", low=1)
    steps: int = setting(3, "most inner updates", low=0)
    episodes: int | None = setting(None, "episodes of one update and of one score; null takes training's", low=1)
    rollouts: tuple[int, ...] = setting((), "score after so many rollouts instead of after updates: [0,1,5,20]", low=0)
    split: str = setting("test", "which tasks", choices=("train", "validation", "test"))
    inner_lr: tuple[float, ...] = setting(
        (), "step size of each update, the last for all later; empty: training's", above=0
    )
    tune: bool = setting(False, "choose the step sizes on 20 validation tasks, for every run by itself")
    checkpoint: str = setting("last", "last, or best on validation", choices=("last", "best"))
    seed: int = setting(0, "of tasks and rollouts", low=0)
    device: str = setting("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    video: bool = setting(False, "write an MP4 of one task before and after adapting instead")
    task: int = setting(0, "which of the tasks the video shows", low=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the arguments, evaluate, write; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments.wants_help(argv):
            print(arguments.help_for(EvaluateSettings, "metarl.evaluate"))
            return 0
        settings = EvaluateSettings(**arguments.parse(argv, EvaluateSettings, paths={"run"}, path_lists={"compare"}))
        if not settings.run:
            raise SettingsError("run is missing: name a run directory, run=runs/NAME")
        from metarl.run.directory import read_config

        for path in (settings.run, *settings.compare):
            read_config(pathlib.Path(path))
        import torch

        torch.set_num_threads(1)
        if settings.video:
            return _video(settings)
        return _evaluate(settings, shlex.join(["python", "-m", "metarl.evaluate", *argv]))
    except (SettingsError, FamilyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _evaluate(settings: EvaluateSettings, command: str) -> int:
    from tqdm import tqdm

    from metarl.analysis import plots
    from metarl.analysis.agent import Agent, load
    from metarl.learner import TEST, TRAIN, VALIDATION
    from metarl.run.directory import EVALUATION, replace_text
    from metarl.run.provenance import provenance

    paths = [pathlib.Path(path) for path in (settings.run, *settings.compare)]
    agents: dict[str, Agent] = {}
    for path in paths:
        name = path.resolve().name if path.resolve().name not in agents else str(path)
        agents[name] = load(path, settings.checkpoint, settings.device)
    main_agent = next(iter(agents.values()))
    stream = {"train": TRAIN, "validation": VALIDATION, "test": TEST}[settings.split]
    split: Any = settings.split
    tasks = main_agent.learner.domain.sample_tasks(settings.tasks, split, (settings.seed, stream))
    out = pathlib.Path(settings.run) / EVALUATION
    runs, notes = {}, {}
    for name, agent in tqdm(agents.items(), unit="run", disable=not sys.stderr.isatty()):
        _same_problem(main_agent, agent, name)
        runs[name], notes[name] = _curve(agent, tasks, settings, (settings.seed, stream, 1))
    domain = main_agent.learner.domain
    result = {
        "metric": domain.metric,
        "unit": domain.unit,
        "split": settings.split,
        "tasks": tasks.to_json(),
        "runs": runs,
        "notes": notes,
        "command": command,
        "settings": dataclasses.asdict(settings),
        "provenance": provenance(),
    }
    flat = [name for name, agent in agents.items() if _is_oracle(agent)]
    try:
        out.mkdir(exist_ok=True)
        replace_text(out / "curve.json", json.dumps(result, indent=1) + "\n")
        _write_csv(out / "curve.csv", result)
        plots.adaptation(result, out / "curve.png", flat)
    except OSError as error:
        raise SettingsError(
            f"{out} cannot be written: {error.strerror}; free some space or change its rights"
        ) from error
    for name, run in runs.items():
        points = "  ".join(
            f"{count}: {mean:.4g} [{low:.4g}, {high:.4g}]"
            for count, mean, (low, high) in zip(
                run["rollouts" if settings.rollouts else "updates"], run["mean"], run["ci95"], strict=True
            )
        )
        print(f"{name}  {domain.metric} after {'rollouts' if settings.rollouts else 'updates'}  {points}")
    print(f"written: {out}/curve.json, curve.csv, curve.png")
    return 0


def _curve(
    agent: Any, tasks: Any, settings: EvaluateSettings, seed: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate one run; returns its entry of ``curve.json`` and how it was adapted."""
    from metarl.analysis import curves
    from metarl.learner import VALIDATION

    learner = agent.learner if settings.episodes is None else curves.with_episodes(agent.learner, settings.episodes)
    rates = settings.inner_lr
    if _is_oracle(agent):
        curve = curves.update_curve(learner, agent.meta, tasks, seed, 0)
        return curve.to_json(), {"iteration": agent.iteration, "adapted": False}
    if settings.tune:
        held = learner.domain.sample_tasks(20, "validation", (settings.seed, VALIDATION))
        rates = curves.tune_rates(
            learner, agent.meta, held, (settings.seed, VALIDATION, 1), settings.steps, agent.config.run.inner_lr
        )
    if settings.rollouts:
        curve = curves.rollout_curve(learner, agent.meta, tasks, seed, settings.rollouts, rates)
    else:
        curve = curves.update_curve(learner, agent.meta, tasks, seed, settings.steps, rates)
    note = {
        "iteration": agent.iteration,
        "adapted": True,
        "inner_lr": list(rates) or [agent.config.run.inner_lr],
        "inner_lr_chosen_on_validation_tasks": settings.tune,
        "env": {"name": agent.config.env, **agent.config.env_settings},
    }
    return curve.to_json(), note


def _is_oracle(agent: Any) -> bool:
    """An oracle observes its task, so it is shown without adapting."""
    return bool(agent.config.env_settings.get("oracle")) and agent.config.run.inner_steps == 0


def _same_problem(main_agent: Any, other: Any, name: str) -> None:
    """Refuse to put runs on different problems into one picture."""
    ours, theirs = main_agent.config, other.config
    if ours.env != theirs.env:
        raise SettingsError(f"compare: {name} was trained on {theirs.env}, not on {ours.env}")
    for key, value in ours.env_settings.items():
        if key != "oracle" and theirs.env_settings.get(key) != value:
            raise SettingsError(
                f"compare: {name} has env.{key}={theirs.env_settings.get(key)}, the evaluated run has {value}"
            )


def _write_csv(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = list(result["tasks"][0])
        writer.writerow(["run", "updates", "rollouts", "task", *names, result["metric"]])
        for run, curve in result["runs"].items():
            for updates, rollouts, values in zip(curve["updates"], curve["rollouts"], curve["values"], strict=True):
                for index, (task, value) in enumerate(zip(result["tasks"], values, strict=True)):
                    writer.writerow([run, updates, rollouts, index, *task.values(), value])


def _video(settings: EvaluateSettings) -> int:
    from metarl.analysis.video import prepare_gl, record

    prepare_gl()
    from metarl.analysis.agent import load
    from metarl.learner import TEST
    from metarl.run.directory import EVALUATION

    agent = load(settings.run, settings.checkpoint, settings.device)
    split: Any = settings.split
    tasks = agent.learner.domain.sample_tasks(max(settings.tasks, settings.task + 1), split, (settings.seed, TEST))
    out = pathlib.Path(settings.run) / EVALUATION / f"task{settings.task}.mp4"
    record(agent.learner, agent.meta, tasks.rows([settings.task]), settings.steps, out, settings.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
