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
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

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
    start = _warm_started(learner, config)
    place = prepare(config)
    path = place.path
    quoted = shlex.quote(f"run_dir={path}")
    with held(place):
        say(f"run_dir: {path}")
        for warning in place.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        store = CheckpointStore(path / CHECKPOINTS)
        store.clean()
        saved = store.latest()
        state, best = restored(saved, learner) if saved else (start, None)
        if state.iteration >= config.run.iterations:
            say(f"complete: all {config.run.iterations} iterations are done")
            return 0
        with writing(path):
            write_config(path, config)
            record_session(path, command, config, learner, state.iteration)
        with _Stop() as stop:
            _loop(learner, state, best, config, path, store, stop)
        if stop.signal:
            say(f"stopped by {signal.Signals(stop.signal).name}; continue with {quoted} resume=auto")
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
) -> None:
    run = config.run
    file = MetricsFile(path / METRICS, state.iteration)
    with (
        contextlib.closing(Board(path / TENSORBOARD, state.env_steps)) as board,
        contextlib.closing(progress(run.iterations, state.iteration, learner.domain.metric)) as shown,
    ):
        while state.iteration < run.iterations and not stop.signal:
            before = state.env_steps
            state, metrics = learner.iteration(state)
            row = dict(metrics)
            row["env_steps_per_second"] = (state.env_steps - before) / row["seconds_iteration"]
            is_best = False
            if run.eval_every and state.iteration % run.eval_every == 0:
                steps = run.eval_steps or 0
                row |= validate(learner, state, run.eval_tasks, steps)
                # judged as it is trained: what never adapts (an oracle) must not be chosen by how it adapts
                score = row[f"validation_{learner.domain.metric}_{min(steps, run.inner_steps)}"]
                is_best = math.isfinite(score) and (best is None or _better(learner, score, best.score))
                best = Best(score, state.iteration) if is_best else best
            file.write(row)  # before the checkpoint: a kill between the two repeats the iteration and its row
            if is_best or stop.signal or state.iteration in (run.iterations, _due(state, run.checkpoint_every)):
                store.save(state.iteration, _tensors(state), _record(state, best), best=is_best)
            board.write(row)
            shown.show(row)


def _better(learner: MetaLearner, score: float, than: float) -> bool:
    return score > than if learner.domain.higher_is_better else score < than


def _due(state: MetaState, every: int) -> int:
    """Return the last iteration, up to now, at which a checkpoint was due."""
    return state.iteration // every * every


def validate(learner: MetaLearner, state: MetaState, tasks: int, steps: int) -> dict[str, float]:
    """Adapt on fixed validation tasks; return ``validation_METRIC_k`` for k = 0..steps."""
    started = time.perf_counter()
    seed = (state.seed, VALIDATION)
    trail = learner.explore(state.meta, learner.domain.sample_tasks(tasks, "validation", seed), seed, steps)
    scores = [float(sample.scores.mean()) for sample in (*trail.supports, trail.query)]
    metric = learner.domain.metric
    return {f"validation_{metric}_{k}": score for k, score in enumerate(scores)} | {
        "seconds_validation": time.perf_counter() - started
    }


def restored(checkpoint: Checkpoint, learner: MetaLearner) -> tuple[MetaState, Best | None]:
    """Return the state that a checkpoint holds, on the learner's device."""
    record, device = checkpoint.record, learner.domain.workers.device
    groups: dict[str, dict[str, torch.Tensor]] = {"meta": {}, "outer": {}}
    for name, value in checkpoint.tensors.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = value
    meta = {name: value.to(device) for name, value in groups["meta"].items()}
    # on the device where the rule puts it (counters are read on the CPU), and as at the start where an older version of
    # the rule did not save it
    fresh = learner.outer.init(meta)
    outer = {name: groups["outer"].get(name, value).to(value.device) for name, value in fresh.items()}
    state = MetaState(meta, outer, record["iteration"], record["env_steps"], record["seed"])
    return state, Best(**record["best"]) if record["best"] else None


def _tensors(state: MetaState) -> dict[str, torch.Tensor]:
    meta = {f"meta/{name}": value for name, value in state.meta.items()}
    return meta | {f"outer/{name}": value for name, value in state.outer.items()}


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
    meta = restored(checkpoint, learner)[0].meta
    shapes, wanted = ({name: tuple(v.shape) for name, v in params.items()} for params in (meta, state.meta))
    if shapes != wanted:
        culprit = next(name for name in {**wanted, **shapes} if shapes.get(name) != wanted.get(name))
        raise SettingsError(
            f"init_from={source} has another network: {culprit} is {shapes.get(culprit)} there and"
            f" {wanted.get(culprit)} here; use the same hidden_sizes and family"
        )
    return dataclasses.replace(state, meta=meta, outer=learner.outer.init(meta))


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
