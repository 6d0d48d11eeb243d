"""Tasks of W ways out of images in classes. Shapes: M tasks, W ways, K shots, Q queries, C classes, P images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarl.envs import counters
from metarl.families import SPLITS, ShotSpec, Split, TaskParameter, Tasks
from metarl.pooled import Picks
from metarl.settings import SettingsError, nearest

TURNS = 4  # by 0, 90, 180 and 270 degrees
# Settings of Finn et al. (2017) for miniImageNet, 1 shot; their 0.01 is 0.05 on our mean of five ways.
COLOURED: Mapping[str, Any] = {
    "algo": "maml-adam",
    "iterations": 60000,
    "meta_batch_size": 4,
    "inner_steps": 5,
    "inner_lr": 0.05,
    "filters": 32,
    "downsampling": "pool",
    "normalization": "transductive",
    "eval_every": 500,
    "eval_tasks": 100,
    "eval_steps": 10,
    "checkpoint_every": 100,
}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of C classes, one class after the other.

    Attributes:
        names: of the classes, (C,).
        images: uint8 (P, channels, height, width).
        counts: images of each class, int64 (C,), P in all.
    """

    names: tuple[str, ...]
    images: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Shape:
    """What a task is made of.

    Attributes:
        ways: W, classes of a task.
        shots: K, support images of each.
        queries: Q, query images of each.
    """

    ways: int
    shots: int
    queries: int

    @property
    def names(self) -> tuple[str, ...]:
        """The task's parameters: which class stands for answer 0, for answer 1, and so on."""
        return tuple(f"class{way}" for way in range(self.ways))

    def spec(self, classes: int, image: tuple[int, int, int]) -> ShotSpec:
        """Describe the family: ``classes`` is the number of all classes, of all splits and turns."""
        return ShotSpec(
            parameters=tuple(TaskParameter(name, 0.0, classes - 1.0, "") for name in self.names),
            input_shape=image,
            target_size=self.ways,
            loss="cross_entropy",
            metric="accuracy",
            unit="fraction",
        )


def distinct(uniform: np.ndarray, population: int | np.ndarray) -> np.ndarray:
    """Draw without replacement: every ordered choice of k of the numbers below ``population`` is equally likely.

    Args:
        uniform: independent uniform numbers in [0, 1), (..., k).
        population: n, at least k, or one n for each choice (...).

    Returns:
        int64 (..., k), all different along the last axis.
    """
    picked = np.empty(uniform.shape, dtype=np.int64)
    for draw in range(uniform.shape[-1]):
        # a number below n - draw counts those that are left; each smaller one that is gone moves it up by one
        value = np.floor(uniform[..., draw] * (population - draw)).astype(np.int64)
        for gone in np.moveaxis(np.sort(picked[..., :draw], axis=-1), -1, 0):
            value += value >= gone
        picked[..., draw] = value
    return picked


def sample(
    shape: Shape, members: np.ndarray, num_tasks: int, split: Split, seed: int | Sequence[int], turns: int = 1
) -> np.ndarray:
    """Draw the classes of every task, all different, in an order that is drawn as well.

    Args:
        shape: of a task.
        members: the split's classes, int64 (C,).
        num_tasks: M.
        split: which split they are; no two draw alike.
        seed: of the draw.
        turns: each class is turned by one of so many right angles, drawn as well.

    Returns:
        Classes int64 (M, W) and their turns int64 (M, W), stacked: (2, M, W). Row i does not depend on M.
    """
    if split not in SPLITS:
        raise SettingsError(f"Unknown split '{split}'. {nearest(split, SPLITS)}")
    words = [int(seed)] if isinstance(seed, int | np.integer) else [int(word) for word in seed]
    if min(words, default=0) < 0:
        raise SettingsError(f"seed={words} must not be negative")
    # the length comes first, because NumPy takes (5,) and (5, 0) for the same seed
    uniform = np.random.default_rng([len(words), *words, SPLITS.index(split)]).random((num_tasks, 2 * shape.ways))
    classes = members[distinct(uniform[:, : shape.ways], len(members))]
    return np.stack([classes, np.floor(uniform[:, shape.ways :] * turns).astype(np.int64)])


def pick(shape: Shape, classes: np.ndarray, counts: np.ndarray, seeds: np.ndarray) -> tuple[Picks, Picks]:
    """Choose K + Q different images of every class of every task.

    Args:
        shape: of a task.
        classes: int64 (M, W).
        counts: images of all classes, int64 (C,), at least K + Q each.
        seeds: uint32 (M,); the choice of task i is a function of ``classes[i]`` and ``seeds[i]``.

    Returns:
        Support and query: rows int64 (M, W*K) and (M, W*Q) of the images of :class:`ImageSet`, and targets alike.
    """
    tasks, each = len(classes), shape.shots + shape.queries
    uniform = counters.table(counters.keys(seeds), shape.ways * each).reshape(tasks, shape.ways, each)
    starts = np.cumsum(counts) - counts
    rows = starts[classes][..., None] + distinct(uniform, counts[classes])
    return _labelled(rows[..., : shape.shots]), _labelled(rows[..., shape.shots :])


def tasks_of(shape: Shape, values: np.ndarray) -> Tasks:
    """Return tasks of these classes (M, W)."""
    return Tasks(shape.names, values)


def turned(images: np.ndarray) -> np.ndarray:
    """Return images (P, channels, side, side) turned by 0, 90, 180 and 270 degrees, one turn after the other, (4 P, ...)."""
    return np.concatenate([np.rot90(images, turn, axes=(2, 3)) for turn in range(TURNS)])


def shuffled(names: Sequence[str], seed: int) -> np.ndarray:
    """Return all classes, int64 (C,), in the order of the SHA-256 of seed and name: the same with every library."""
    return np.array(sorted(range(len(names)), key=lambda c: hashlib.sha256(f"{seed}/{names[c]}".encode()).hexdigest()))


def parted(names: Sequence[str], seed: int) -> tuple[np.ndarray, ...]:
    """Return the classes that train, validate and test: 64, 16 and 20 % of them in shuffled order, each part ascending."""
    ends = (np.array([0.64, 0.80]) * len(names)).round().astype(int)
    return tuple(np.sort(part) for part in np.split(shuffled(names, seed), ends))


def refuse_few(where: str, ways: int, members: Callable[[Split], np.ndarray]) -> None:
    """Refuse tasks of more classes than a split has.

    Raises:
        SettingsError: for the first such split.
    """
    for split in SPLITS:
        if len(members(split)) < ways:
            raise SettingsError(
                f"{where} has {len(members(split))} classes for split {split}, and env.ways={ways} needs as many; lower it or"
                " add some"
            )


def _labelled(rows: np.ndarray) -> Picks:
    tasks, ways, each = rows.shape
    targets = np.broadcast_to(np.arange(ways)[:, None], rows.shape)
    return Picks(rows.reshape(tasks, -1), targets.reshape(tasks, ways * each).copy())
