"""The training loop: iterate, log, checkpoint, validate; stop when asked; continue where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

from metarl.core.inner import RATE
from metarl.core.params import Params
from metarl.families import EnvFault, FamilyError
from metarl.learner import VALIDATION, MetaLearner, MetaState
from metarl.run.build import build_learner
from metarl.run.checkpoint import Checkpoint, CheckpointStore
from metarl.run.command import say
from metarl.run.config import RunConfig
from metarl.run.directory import CHECKPOINTS, METRICS, TENSORBOARD, held, prepare, read_config, write_config, writing
from metarl.run.log import Board, MetricsFile, progress
from metarl.run.provenance import record_session
from metarl.settings import SettingsError


@dataclasses.dataclass(frozen=True)
class Best:
    """The best validation so far: its score and its iteration."""

    score: float
    iteration: int


def train(config: RunConfig, command: str) -> int:
    """Run or continue a training, and return the process's exit code.

    Args:
        config: the resolved configuration.
        command: the command line, recorded with the results.

    Returns:
        0 when all iterations are done, 130 or 143 when SIGINT or SIGTERM ended it early (after a checkpoint).

    Raises:
        SettingsError: for what the user can correct; nothing has been written then.
    """
    learner = build_learner(config)
    place = prepare(config)
    path = place.path
    quoted = shlex.quote(f"run_dir={path}")
    with held(place), _Stop() as stop:
        say(f"run_dir: {path}")
        for warning in place.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        store = CheckpointStore(path / CHECKPOINTS)
        store.clean()
        saved = store.latest()
        _refuse_lost_checkpoints(path, config, bool(saved))
        state, best = restored(saved, learner) if saved else (_warm_started(learner, config), None)
        if state.iteration >= config.run.iterations:
            say(f"complete: all {config.run.iterations} iterations are done")
            return 0
        with writing(path):
            write_config(path, config)
            record_session(path, command, config, learner, state.iteration)
        state = _loop(learner, state, best, config, path, store, stop)
        if stop.signal and state.iteration < config.run.iterations:
            name = signal.Signals(stop.signal).name
            say(f"stopped by {name}; continue with the same command and {quoted} resume=auto")
            return 128 + stop.signal
    say(f"complete: now run  python -m metarl.evaluate {shlex.quote(f'run={path}')}")
    return 0


def _loop(
    learner: MetaLearner,
    state: MetaState,
    best: Best | None,
    config: RunConfig,
    path: pathlib.Path,
    store: CheckpointStore,
    stop: _Stop,
) -> MetaState:
    run, saved = config.run, state.iteration
    file = MetricsFile(path / METRICS, state.iteration)
    with (
        contextlib.closing(Board(path / TENSORBOARD, state.env_steps)) as board,
        contextlib.closing(
            progress(run.iterations, state.iteration, learner.domain.metric, learner.domain.protocol)
        ) as shown,
    ):
        while state.iteration < run.iterations and not stop.signal:
            before = state.env_steps
            try:
                state, metrics = learner.iteration(state)
            except (SettingsError, FamilyError):
                if state.iteration > saved:  # what is good so far is kept: it can be another run's init_from
                    store.save(state.iteration, _tensors(state), _record(state, best), best=False)
                raise
            row = dict(metrics)
            row["env_steps_per_second"] = (state.env_steps - before) / row["seconds_iteration"]
            is_best = False
            if run.eval_every and state.iteration % run.eval_every == 0:
                steps = run.eval_steps or 0
                row |= _validated(learner, state, run.eval_tasks, steps)
                # after the last update, so that eval_steps says for what the best is chosen; what never adapts in training
                # (an oracle) must not be chosen by how it adapts
                score = row.get(f"validation_{learner.domain.metric}_{steps if run.inner_steps else 0}", math.nan)
                score = row.get(f"validation_trial_{learner.domain.metric}", score)
                is_best = math.isfinite(score) and (best is None or _better(learner, score, best.score))
                best = Best(score, state.iteration) if is_best else best
            file.write(row)  # before the checkpoint: a kill between the two repeats the iteration and its row
            if is_best or stop.signal or state.iteration in (run.iterations, _due(state, run.checkpoint_every)):
                store.save(state.iteration, _tensors(state), _record(state, best), best=is_best)
                saved = state.iteration
            board.write(row)
            shown.show(row)
    return state


def _refuse_lost_checkpoints(path: pathlib.Path, config: RunConfig, found: bool) -> None:
    """A run that has more rows than it makes between two checkpoints had one: starting afresh would erase them."""
    rows = (path / METRICS).read_bytes().count(b"\n") if (path / METRICS).is_file() else 0
    if not found and rows > config.run.checkpoint_every:
        raise SettingsError(
            f"{path} holds {rows} iterations in {METRICS} and no checkpoint to continue from; put its {CHECKPOINTS} back,"
            " or choose another run_dir"
        )


def _validated(learner: MetaLearner, state: MetaState, tasks: int, steps: int) -> dict[str, float]:
    """Validate; where only adapting fails (a reference that was never trained to adapt may diverge) training goes on."""
    try:
        return validate(learner, state, tasks, steps)
    except (SettingsError, FamilyError) as error:
        if isinstance(error, FamilyError) and not isinstance(error.__cause__, EnvFault):
            raise  # a mistake in the family, which training meets as well
        warnings.warn(f"validation after iteration {state.iteration} failed: {error}", RuntimeWarning, stacklevel=2)
        return {}


def _better(learner: MetaLearner, score: float, than: float) -> bool:
    return score > than if learner.domain.higher_is_better else score < than


def _due(state: MetaState, every: int) -> int:
    """Return the last iteration, up to now, at which a checkpoint was due."""
    return state.iteration // every * every


def validate(learner: MetaLearner, state: MetaState, tasks: int, steps: int) -> dict[str, float]:
    """Adapt on fixed validation tasks; return ``validation_METRIC_k`` for k = 0..steps, and so the success rate if any.

    Of trials k counts episodes: the first, the last, and ``validation_trial_METRIC``, the mean of all.
    """
    started = time.perf_counter()
    seed = (state.seed, VALIDATION)
    drawn = learner.domain.sample_tasks(tasks, "validation", seed)
    trail = learner.at(state).explore(state.meta, drawn, seed, steps)
    samples, metric = (*trail.supports, trail.query), learner.domain.metric
    row = {f"validation_{metric}_{k}": float(sample.scores.mean()) for k, sample in enumerate(samples)}
    course = samples[-1].course
    if course is not None:
        ends = {f"validation_{metric}_{k}": float(course[:, k].mean()) for k in (0, course.shape[1] - 1)}
        row = {**ends, f"validation_trial_{metric}": float(course.mean())}
    for k, sample in enumerate(samples):
        if sample.success is not None:
            row[f"validation_success_{k}"] = float(sample.success.mean())
    return row | {"seconds_validation": time.perf_counter() - started}


def restored(
    checkpoint: Checkpoint, learner: MetaLearner, where: str = "the checkpoint", rates: bool = True
) -> tuple[MetaState, Best | None]:
    """Return the state that a checkpoint holds, on the learner's device.

    Args:
        checkpoint: what was saved.
        learner: that goes on with it.
        where: how messages call it.
        rates: whether learned rates must be in it, too; otherwise those that are missing start afresh.

    Raises:
        SettingsError: if it is that of another network, or its observations were normalised and ours are not, or the other
            way round; the message begins with ``where``.
    """
    record, device = checkpoint.record, learner.domain.workers.device
    groups: dict[str, dict[str, torch.Tensor]] = {"meta": {}, "outer": {}, "statistics": {}}
    for name, value in checkpoint.tensors.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = value
    meta, own = {name: value.to(device) for name, value in groups["meta"].items()}, learner.init(record["seed"]).meta
    if not rates:
        meta |= {name: value for name, value in own.items() if name.startswith(RATE) and name not in meta}
    # on the device where the rule puts it (counters are read on the CPU), and as at the start where an older version of
    # the rule did not save it
    fresh = learner.outer.init(meta)
    outer = {name: groups["outer"].get(name, value).to(value.device) for name, value in fresh.items()}
    _refuse_other_network(meta, own, where)
    statistics = groups["statistics"]  # they stay on the CPU
    if statistics.keys() != learner.domain.learned([]).keys():
        told = str(bool(statistics)).lower()
        raise SettingsError(f"{where} was trained with normalize_observations={told}; use the same here")
    state = MetaState(meta, outer, record["iteration"], record["env_steps"], record["seed"], statistics)
    return state, Best(**record["best"]) if record["best"] else None


def _tensors(state: MetaState) -> dict[str, torch.Tensor]:
    groups = {"meta": state.meta, "outer": state.outer, "statistics": state.statistics}
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}


def _record(state: MetaState, best: Best | None) -> Mapping[str, Any]:
    return {
        "iteration": state.iteration,
        "env_steps": state.env_steps,
        "seed": state.seed,
        "best": dataclasses.asdict(best) if best else None,
    }


def _warm_started(learner: MetaLearner, config: RunConfig) -> MetaState:
    state = learner.init(config.run.seed)
    if config.run.init_from is None:
        return state
    source = pathlib.Path(config.run.init_from)
    read_config(source)
    checkpoint = CheckpointStore(source / CHECKPOINTS).latest()
    if checkpoint is None:
        raise SettingsError(f"init_from={source} has no checkpoint yet")
    found = restored(checkpoint, learner, f"init_from={source}", rates=False)[0]
    return dataclasses.replace(
        state, meta=found.meta, outer=learner.outer.init(found.meta), statistics=found.statistics
    )


def _refuse_other_network(meta: Params, own: Params, where: str) -> None:
    shapes, wanted = ({name: tuple(v.shape) for name, v in params.items()} for params in (meta, own))
    if shapes != wanted:
        culprit = next(name for name in {**wanted, **shapes} if shapes.get(name) != wanted.get(name))
        there, here = (found.get(culprit, "missing") for found in (shapes, wanted))
        raise SettingsError(
            f"{where} has another network: {culprit} is {there} there and {here} here;"
            " use the same hidden_sizes, family and algorithm"
        )


class _Stop:
    """Takes SIGINT and SIGTERM: the first asks for an end after the iteration, the second ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        message = "stopping after this iteration, with a checkpoint; once more stops at once\n"
        with contextlib.suppress(OSError):
            os.write(2, message.encode())
