"""Little images in classes, with no files: each class a pattern of its own, each example that pattern with noise."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest

from metarl import pooled
from metarl.envs.fewshot import classes
from metarl.families import SPLITS, ShotSpec

COUNT, EACH, SIDE = 60, 8, 8
_RANDOM = np.random.default_rng(0)
_PATTERNS = _RANDOM.integers(0, 2, (COUNT, 1, 1, SIDE, SIDE)) * 200
IMAGES = (_PATTERNS + _RANDOM.integers(0, 56, (COUNT, EACH, 1, SIDE, SIDE))).astype(np.uint8).reshape(-1, 1, SIDE, SIDE)


@dataclasses.dataclass(frozen=True)
class Patterns:
    """A pooled family of 60 classes: 40 to train on, 10 to validate, 10 to test."""

    ways: int = 3
    shots: int = 2
    queries: int = 4

    recommended: ClassVar[dict[str, Any]] = {"algo": "maml-adam"}

    @property
    def shape(self):
        return classes.Shape(self.ways, self.shots, self.queries)

    @property
    def spec(self) -> ShotSpec:
        return self.shape.spec(COUNT, (1, SIDE, SIDE))

    def sample_tasks(self, num_tasks, split, seed):
        members = np.split(np.arange(COUNT), [40, 50])[SPLITS.index(split)]
        return classes.tasks_of(self.shape, classes.sample(self.shape, members, num_tasks, split, seed)[0])

    def pick(self, tasks, seeds):
        return classes.pick(self.shape, tasks.values.astype(int), np.full(COUNT, EACH), seeds)

    def pool(self):
        return IMAGES

    def draw(self, tasks, seeds):
        return pooled.shots(self, tasks, seeds)


@pytest.fixture
def patterns():
    return Patterns
