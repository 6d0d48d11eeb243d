"""All trainings of a comparison with references, one after another; what is finished is kept and not done again."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from metarl.analysis.methods import METHODS
from metarl.analysis.references import Cells, digest
from metarl.analysis.report import writing
from metarl.families import EnvFault, FamilyError, stream
from metarl.integrations.references import Advance, Problem, Score, Trained, learn, pretrain
from metarl.learner import TEST, TRAIN
from metarl.run.command import say
from metarl.run.disk import replace_file

_FORM = 1  # of cells: a change in how they are made must not take older ones for its own


@dataclass(frozen=True)
class Comparison:
    """What is trained: every method at every seed on every test task.

    Attributes:
        problem: family, test tasks, and episodes of a score.
        scores: at which environment steps on the test task, ascending from 0, and in which episodes.
        most: environment steps beyond which a method is not scored; methods that are not named are always.
        seeds: S.
        pretraining: environment steps on the training tasks.
        seed: all randomness is a function of it, of the method's seed and of the task.
        folder: where networks that were trained on the training tasks are kept.
    """

    problem: Problem
    scores: tuple[Score, ...]
    most: Mapping[str, int]
    seeds: int
    pretraining: int
    seed: int
    folder: pathlib.Path

    def scores_of(self, method: str) -> list[Score]:
        """Return the scores of a method: one where it does not learn on the test task."""
        if not METHODS[method].learns:
            return list(self.scores[:1])
        most = self.most.get(method)
        return [score for score in self.scores if most is None or score.steps <= most]

    def run(self, methods: Sequence[str], cells: Cells) -> dict[str, list[list[dict[str, Any]]]]:
        """Train whatever is missing; return the cells of every method, those of every seed, of every task.

        Raises:
            SettingsError: if what is finished cannot be kept.
        FamilyError: if a simulation breaks down.
        """
        missing = [
            (method, seed, task)
            for seed in range(self.seeds)
            for method in methods
            for task in range(len(self.problem.tasks))
            if cells.get(self._key(method, seed, task)) is None
        ]
        total = sum(self.scores_of(method)[-1].steps for method, _, _ in missing)
        untrained = {(m, s) for m, s, _ in missing if METHODS[m].pretrained and self._kept(m, s) is None}
        total += self.pretraining * len(untrained)
        with tqdm(total=total, unit="step", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            for number, (method, seed, task) in enumerate(missing, 1):
                bar.set_description(f"{method}, task {task}, seed {seed}")
                try:
                    found = self._cell(method, seed, task, bar.update)
                except EnvFault as fault:
                    what = f"while {method} learned: {fault.reason}; leave it out of methods="
                    raise FamilyError(f"Family {self.problem.family} failed {what}") from fault
                cells.add(self._key(method, seed, task), found)
                if bar.disable:
                    first, last = found["values"][0], found["values"][-1]
                    say(f"{number}/{len(missing)}  {method}, task {task}, seed {seed}: {first:.4g} -> {last:.4g}")
        return {
            method: [
                [self._finished(cells, method, seed, task) for task in range(len(self.problem.tasks))]
                for seed in range(self.seeds)
            ]
            for method in methods
        }

    def _finished(self, cells: Cells, method: str, seed: int, task: int) -> dict[str, Any]:
        found = cells.get(self._key(method, seed, task))
        assert found is not None
        return found

    def _cell(self, method: str, seed: int, task: int, advance: Advance) -> dict[str, Any]:
        trained = self._pretrained(method, seed, advance) if METHODS[method].pretrained else None
        scores, start = self.scores_of(method), _number((self.seed, TEST, 3, seed), task)
        weights = None if trained is None else trained.weights
        learned = learn(self.problem, method, task, scores, start, weights, advance)
        return {
            "method": method,
            "seed": seed,
            "task": task,
            "steps": [score.steps for score in scores],
            **learned._asdict(),
            "pretraining": None if trained is None else trained.hyperparameters,
        }

    def _pretrained(self, method: str, seed: int, advance: Advance) -> Trained:
        """Return a network that was trained on the training tasks: as kept, or trained now and kept."""
        kept = self._kept(method, seed)
        if kept is not None:
            return kept
        trained = pretrain(self.problem, method, self.pretraining, _number((self.seed, TRAIN, 3), seed), advance)
        words = {"hyperparameters": json.dumps(trained.hyperparameters)}
        with writing(self.folder):
            replace_file(self._file(method, seed), safetensors.torch.save(trained.weights, words))
        return trained

    def _kept(self, method: str, seed: int) -> Trained | None:
        """Return a network that was kept; None where there is none that can be read."""
        try:
            with safe_open(self._file(method, seed), "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
                return Trained(weights, json.loads(file.metadata()["hyperparameters"]))
        except (OSError, SafetensorError):
            return None

    def _file(self, method: str, seed: int) -> pathlib.Path:
        return self.folder / f"{method}-s{seed}-{digest(self._training(method, seed))[:16]}.safetensors"

    def _training(self, method: str, seed: int) -> dict[str, Any]:
        """Return all that a training on the training tasks depends on."""
        return {
            "form": _FORM,
            "family": self.problem.family,
            "settings": dict(self.problem.settings),
            "method": method,
            "seeds": [self.seed, seed],
            "pretraining": self.pretraining if METHODS[method].pretrained else None,
            "libraries": libraries(method == "recurrent-ppo" or self._masked),
        }

    def _key(self, method: str, seed: int, task: int) -> str:
        """Return what identifies a cell: all that it depends on, no other task or method."""
        scores = [[score.steps, *score.seed] for score in self.scores_of(method)]
        own = {"task": [task, self.problem.tasks.rows([task]).to_json()], "scores": scores}
        return digest({**self._training(method, seed), **own, "episodes": self.problem.episodes})

    @property
    def _masked(self) -> bool:
        choices = self.problem.opened(False).spec.choices
        return choices is not None and choices.masked


def libraries(contrib: bool) -> dict[str, str]:
    """Return the versions of the libraries that train."""
    names = ("stable-baselines3", *(("sb3-contrib",) if contrib else ()), "torch", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def _number(seed: Sequence[int], index: int) -> int:
    """Return a seed as SB3 takes it, of its own for every index."""
    return int(stream(seed, index).generate_state(1)[0]) >> 1
