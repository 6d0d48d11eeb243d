"""Look into a run: ``python -m metarl.diagnose runs/x``, does it adapt, how, and does it hold on other tasks?

Writes ``diagnostics.json`` under ``RUN/evaluation/`` and prints a line for each with how to read it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import metarl.run.arguments as arguments
from metarl.run.command import guarded, say
from metarl.settings import SettingsError, setting

if TYPE_CHECKING:
    import numpy as np

    from metarl.analysis.agent import Agent
    from metarl.analysis.diagnostics import Inflation
    from metarl.core.params import Params
    from metarl.families import Tasks
    from metarl.learner import MetaLearner, MetaState

# A family of more tasks than this is not taken for a finite set: each costs a training.
_MOST_LEFT_OUT = 20

READING: Mapping[str, str] = {
    "risk": "held-out loss over training loss after adapting: near 1 it holds on other tasks, above 2 it overfits its own",
    "left_out": "the same, with each task of a finite set held out once of a training on all others: above 2 nothing carries over",
    "alignment": "cosine of the first descent with the way to where adapting ends: near 1 one step does what many do",
    "orders": "first-order against full meta-gradient: at cosine and ratio near 1 the second order could be left out",
    "layers": "representation before and after adapting, per layer: 1 is reused as it is, lower is learned anew",
    "head": "score after adapting all, the last layer alone, and all but it: head near all says that features are reused",
    "rates": "score by inner step size, nan where it diverges: the best far from training's says that it was ill chosen",
    "steps": "score by inner updates, beyond training's: it should go on getting better, or stay",
    "rollouts": "score after adapting on fewer and more rollouts an update than in training",
}


@dataclasses.dataclass(frozen=True)
class DiagnoseSettings:
    """Look into a run; write diagnostics.json under RUN/evaluation/."""

    run: str = setting("", "the run directory; may stand alone: python -m metarl.diagnose RUN")
    only: tuple[str, ...] = setting(
        (), "which diagnostics; empty: all but left_out, which trains anew", choices=tuple(READING)
    )
    tasks: int = setting(20, "tasks of each split", low=2)
    steps: int | None = setting(None, "inner updates; null: as in training, at least 1", low=1)
    far: int = setting(10, "inner updates to where adapting ends", low=2)
    best: float | None = setting(
        None, "a return that none exceeds, which makes losses of returns (RL): best=0 for costs"
    )
    retrain: int | None = setting(
        None, "left_out: meta-updates of each training, one for every task; null: as many as the run has", low=1
    )
    among: int | None = setting(
        None,
        "left_out: so many training tasks are all that there are; null: those of a family that has a few only",
        low=2,
    )
    checkpoint: str = setting("last", "last, or best on validation", choices=("last", "best"))
    seed: int = setting(0, "of tasks and data", low=0)
    device: str = setting("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))


class _Run(NamedTuple):
    """What every diagnostic is given."""

    learner: MetaLearner
    meta: Params
    training: Tasks
    test: Tasks
    settings: DiagnoseSettings
    steps: int
    inner_lr: float
    iteration: int

    @property
    def seed(self) -> tuple[int, int, int]:
        """Of all data: never a training's."""
        from metarl.learner import TEST

        return (self.settings.seed, TEST, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the arguments, compute, write; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(words))


def _main(argv: list[str]) -> int:
    if arguments.wants_help(argv):
        print(arguments.help_for(DiagnoseSettings, "metarl.diagnose"))
        return 0
    words = [token if "=" in token else f"run={token}" for token in argv]
    words = [f"only=[{w[5:]}]" if w.startswith("only=") and "[" not in w else w for w in words]
    settings = DiagnoseSettings(**arguments.parse(words, DiagnoseSettings, paths={"run"}))
    if not settings.run:
        raise SettingsError("run is missing: name a run directory, python -m metarl.diagnose runs/NAME")
    _asked(settings)
    from metarl.run.directory import read_config

    if read_config(pathlib.Path(settings.run)).algo_settings.get("memory_size"):
        raise SettingsError("a run of algo=rl2 learns by memory: it has no inner updates to look into")
    import torch

    torch.set_num_threads(1)
    from metarl.analysis.agent import load

    return _diagnose(settings, load(settings.run, settings.checkpoint, settings.device), argv)


def _asked(settings: DiagnoseSettings) -> list[str]:
    """Return the names of what is to be computed.

    Raises:
        SettingsError: if a setting of what is not among them was given.
    """
    own = [name for name in ("retrain", "among") if getattr(settings, name) is not None]
    asked = list(settings.only) or [name for name in READING if name != "left_out" or own]
    if own and "left_out" not in asked:
        raise SettingsError(f"{own[0]}= has no effect here: it belongs to left_out, and only= leaves that out")
    return asked


def _diagnose(settings: DiagnoseSettings, agent: Agent, argv: Sequence[str]) -> int:
    from metarl.analysis.report import writing
    from metarl.learner import TEST, TRAIN
    from metarl.run.directory import EVALUATION, replace_text
    from metarl.run.provenance import provenance

    domain, trained = agent.learner.domain, agent.config.run
    run = _Run(
        learner=agent.learner,
        meta=agent.meta,
        training=domain.sample_tasks(settings.tasks, "train", (settings.seed, TRAIN)),
        test=domain.sample_tasks(settings.tasks, "test", (settings.seed, TEST)),
        settings=settings,
        steps=settings.steps or max(1, trained.inner_steps),
        inner_lr=trained.inner_lr,
        iteration=agent.iteration,
    )
    found: dict[str, Any] = {}
    for name in _asked(settings):
        try:
            found[name] = _COMPUTED[name](run)
            say(f"{name}  {TEXTS[name](found[name])}\n    {READING[name]}")
        except SettingsError as error:
            found[name] = {"not_applicable": str(error)}
            say(f"{name}  not applicable: {error}")
    result = {
        "family": agent.config.env,
        "metric": domain.metric,
        "higher_is_better": domain.higher_is_better,
        "iteration": agent.iteration,
        "inner_updates": run.steps,
        "inner_lr": run.inner_lr,
        "tasks": {"train": run.training.to_json(), "test": run.test.to_json()},
        "diagnostics": found,
        "reading": {name: READING[name] for name in found},
        "command": shlex.join(["python", "-m", "metarl.diagnose", *argv]),
        "settings": dataclasses.asdict(settings),
        "provenance": provenance(),
    }
    out = pathlib.Path(settings.run) / EVALUATION
    with writing(out):
        replace_text(out / "diagnostics.json", json.dumps(_plain(result), indent=1, allow_nan=False) + "\n")
    say(f"written: {os.fsencode(out).decode('utf-8', 'backslashreplace')}/diagnostics.json")
    return 0


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _risk(run: _Run) -> dict[str, Any]:
    from metarl.analysis.diagnostics import adapted_losses, risk_inflation

    held, training = (
        adapted_losses(run.learner, run.meta, tasks, (*run.seed, stream), run.steps, run.settings.best)
        for stream, tasks in ((0, run.test), (1, run.training))
    )
    return {**_told(risk_inflation(held, training)), "held_out": held.tolist(), "training": training.tolist()}


def _told(found: Inflation) -> dict[str, Any]:
    return {
        "ratio": found.ratio.value,
        "ci95": [found.ratio.low, found.ratio.high],
        "overfits": found.overfits,
        "held_out_loss": found.held_out,
        "training_loss": found.training,
    }


def _left_out(run: _Run) -> dict[str, Any]:
    from tqdm import tqdm

    from metarl.analysis.diagnostics import adapted_losses, leave_one_out
    from metarl.analysis.restricted import distinct, every, fit
    from metarl.learner import TRAIN

    learner, settings, domain = run.learner, run.settings, run.learner.domain
    if settings.among is None:
        tasks = every(domain, _MOST_LEFT_OUT, settings.seed)
        if tasks is None:
            raise SettingsError(
                f"the family has more than {_MOST_LEFT_OUT} training tasks, and each would be left out of a training; say with"
                " among= how many are to be all that there are"
            )
    else:
        tasks = distinct(domain.sample_tasks(settings.among, "train", (settings.seed, TRAIN)))
    draws = max(1, settings.tasks // len(tasks))  # of data, of every task
    iterations, bar = settings.retrain or run.iteration, tqdm(total=len(tasks), unit="training", disable=None)
    trained = fit(learner, iterations, settings.seed)

    def losses(state: MetaState, some: Tasks) -> np.ndarray:
        bar.update()
        own = learner.at(state)
        found = adapted_losses(own, state.meta, some.repeat(draws), (*run.seed, 2), run.steps, settings.best)
        return found.reshape(len(some), draws).mean(1)

    losses(learner.init(settings.seed), tasks)  # what cannot be judged is found out before hours of training
    bar.reset()
    with bar:
        found = leave_one_out(trained, losses, tasks)
    return {**_told(found), "iterations": iterations, "draws": draws, "tasks": tasks.to_json()}


def _alignment(run: _Run) -> dict[str, Any]:
    from metarl.analysis.diagnostics import alignment

    found = alignment(run.learner, run.meta, run.test, run.seed, run.settings.far)
    return {
        "mean_cosine": float(found.cosine.mean()),
        "cosine": found.cosine.tolist(),
        "improvement": found.improvement.tolist(),
        "correlation": found.correlation,
        "updates": run.settings.far,
    }


def _orders(run: _Run) -> dict[str, Any]:
    from metarl.analysis.diagnostics import orders

    return dict(orders(run.learner, run.meta, run.training, run.seed)._asdict())


def _layers(run: _Run) -> dict[str, Any]:
    from metarl.analysis.similarity import similarities

    found = similarities(run.learner, run.meta, run.test, run.seed, run.steps)
    return {"mean": found.mean(1).tolist(), "values": found.tolist()}


def _head(run: _Run) -> dict[str, Any]:
    from metarl.analysis.similarity import parts

    found = parts(run.learner, run.meta, run.test, run.seed, run.steps)
    return {name: curve.to_json() for name, curve in found.items()}


def _rates(run: _Run) -> dict[str, Any]:
    from metarl.analysis.diagnostics import sweep

    rates = [run.inner_lr * factor for factor in (0.1, 0.3, 1.0, 3.0, 10.0)]
    found = sweep(run.learner, run.meta, run.test, run.seed, run.steps, rates)
    return {f"{rate:.6g}": None if curve is None else curve.to_json() for rate, curve in found.items()}


def _steps(run: _Run) -> dict[str, Any]:
    from metarl.analysis.curves import update_curve

    return update_curve(run.learner, run.meta, run.test, run.seed, max(run.settings.far, run.steps)).to_json()


def _rollouts(run: _Run) -> dict[str, Any]:
    from metarl.analysis.diagnostics import by_episodes
    from metarl.rl.domain import RLDomain

    domain = run.learner.domain
    if not isinstance(domain, RLDomain):
        raise SettingsError("rollouts belong to reinforcement learning; this run has labelled shots")
    counts = sorted({max(1, round(domain.episodes * factor)) for factor in (0.25, 0.5, 1, 2, 4)})
    found = by_episodes(run.learner, run.meta, run.test, run.seed, run.steps, counts)
    return {str(count): curve.to_json() for count, curve in found.items()}


_COMPUTED: Mapping[str, Callable[[_Run], dict[str, Any]]] = {
    "risk": _risk,
    "left_out": _left_out,
    "alignment": _alignment,
    "orders": _orders,
    "layers": _layers,
    "head": _head,
    "rates": _rates,
    "steps": _steps,
    "rollouts": _rollouts,
}


def _shown(value: float | None, spec: str) -> str:
    """Format a number, which is null in JSON where it is none: what diverges, or the similarity of what never varies."""
    return "nan" if value is None else format(value, spec)


def _last(curves: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name}: {'nan' if one is None else _shown(one['mean'][-1], '.4g')}" for name, one in curves.items()
    )


def _steps_text(found: Mapping[str, Any]) -> str:
    return "  ".join(f"{k}: {_shown(mean, '.4g')}" for k, mean in zip(found["updates"], found["mean"], strict=True))


def _risk_text(found: Mapping[str, Any]) -> str:
    low, high = (_shown(end, ".2f") for end in found["ci95"])
    warning = "  WARNING: it overfits its training tasks" if found["overfits"] else ""
    return f"R = {_shown(found['ratio'], '.2f')} [{low}, {high}]{warning}"


def _left_out_text(found: Mapping[str, Any]) -> str:
    return f"{_risk_text(found)}  ({len(found['tasks'])} trainings of {found['iterations']} meta-updates)"


TEXTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "risk": _risk_text,
    "left_out": _left_out_text,
    "alignment": lambda f: (
        f"cosine {_shown(f['mean_cosine'], '.3f')}, rank correlation with the first gain {_shown(f['correlation'], '.2f')}"
    ),
    "orders": lambda f: f"cosine {_shown(f['cosine'], '.4f')}, norm ratio {_shown(f['norm_ratio'], '.3f')}",
    "layers": lambda f: "  ".join(f"{layer}: {_shown(mean, '.3f')}" for layer, mean in enumerate(f["mean"], 1)),
    "head": _last,
    "rates": _last,
    "steps": _steps_text,
    "rollouts": _last,
}

if __name__ == "__main__":
    sys.exit(main())
