"""Image sets whose classes, numbers of images and splits are published: what they are is known before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metarl.envs.fewshot import classes
from metarl.envs.fewshot.classes import Shape
from metarl.families import SPLITS, ShotSpec, Split, Tasks
from metarl.pooled import Picks
from metarl.settings import SettingsError


@dataclass(frozen=True, eq=False)
class Published:
    """A set of 100 classes.

    Attributes:
        parts: names of the classes of every split.
        each: images of every class.
        side: height and width of an image, pixels; images have three colours.
    """

    parts: Mapping[Split, tuple[str, ...]]
    each: int
    side: int

    @property
    def names(self) -> tuple[str, ...]:
        """All classes, sorted; a task's numbers are positions in it."""
        return tuple(sorted(name for part in self.parts.values() for name in part))

    def members(self, split: Split) -> np.ndarray:
        """Return the classes of a split, int64 (C,), ascending."""
        if split not in SPLITS:
            return np.zeros(0, dtype=np.int64)  # whoever draws of it refuses it
        chosen = set(self.parts[split])
        return np.flatnonzero([name in chosen for name in self.names])

    def spec(self, shape: Shape) -> ShotSpec:
        """Describe the family."""
        return shape.spec(len(self.names), (3, self.side, self.side))

    def sample(self, shape: Shape, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the classes of every task."""
        return classes.tasks_of(shape, classes.sample(shape, self.members(split), num_tasks, split, seed)[0])

    def pick(self, shape: Shape, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose support and query images of every task."""
        counts = np.full(len(self.names), self.each)
        return classes.pick(shape, tasks.values.astype(np.int64), counts, seeds)

    def refuse_many(self, shape: Shape) -> None:
        """Refuse more images of a class than there are.

        Raises:
            SettingsError: naming both settings.
        """
        if shape.shots + shape.queries > self.each:
            raise SettingsError(
                f"env.shots={shape.shots} and env.queries={shape.queries} are more than the {self.each} images of a class;"
                " lower one of them"
            )

    def refuse_incomplete(self, where: str, found: Mapping[str, int], wanted: Sequence[str] | None = None) -> None:
        """Refuse files that have other classes than the published ones, or another number of images of one.

        Args:
            where: the files, for the message.
            found: number of images of each class by name.
            wanted: classes that should be there; None: all.

        Raises:
            SettingsError: naming the first class that is wrong.
        """
        wanted = self.names if wanted is None else wanted
        for name in sorted({*wanted} - {*found}):
            raise SettingsError(f"{where} lacks class {name}; copy or download it again")
        for name in sorted({*found} - {*wanted}):
            raise SettingsError(f"{where} has class {name}, which the published split has not there; remove it")
        for name, count in sorted(found.items()):
            if count != self.each:
                raise SettingsError(f"{where}: class {name} has {count} images, not {self.each}; copy it again")


def words(text: str) -> tuple[str, ...]:
    """Return the names in a text."""
    return tuple(text.split())
