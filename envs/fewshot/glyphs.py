"""Characters of TrueType fonts: real images for few-shot learning, with no download."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl import pooled
from metarl.envs.fewshot import classes, fonts
from metarl.envs.fewshot.classes import ImageSet, Shape
from metarl.families import SPLITS, Shots, ShotSpec, Split, Tasks
from metarl.pooled import Picks
from metarl.settings import SettingsError, setting


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """Tell W characters apart after each has been seen in K fonts; a benchmark of its own, easier than handwriting.

    A class is a character: a letter, a digit or a sign (:func:`metarl.envs.fewshot.fonts.render` says which, and that those
    that look alike are one). Each of its images is that of another font, a little turned, sheared, scaled and shifted, the
    same in every task. Inputs are grey levels in [0, 1], ink 1, shape (1, size, size). Loss: cross entropy, the mean over a
    task's images. Metric: accuracy on the W*Q queries. A task's numbers are its characters' code points.

    By default the fonts are those that come with matplotlib, 21 faces of four families (of DejaVu, STIX and Computer
    Modern), some 470 characters, of which 64 % train, 16 % validate and 20 % test, in an order that ``split_seed`` determines.
    Drawing them takes some seconds.
    """

    ways: int = setting(5, "classes of a task", low=2, high=40)
    shots: int = setting(1, "support images of each class", low=1)
    queries: int = setting(10, "query images of each class", low=1)
    size: int = setting(28, "height and width of an image, pixels", low=8, high=256)
    split_seed: int = setting(1, "which characters train, validate and test", low=0)
    root: str | None = setting(None, "directory of TrueType or OpenType fonts; null: those that matplotlib brings")

    recommended: ClassVar[Mapping[str, Any]] = {
        "algo": "maml-adam",
        "iterations": 5000,
        "meta_batch_size": 16,
        "inner_steps": 1,
        "inner_lr": 0.4,
        "filters": 64,
        "downsampling": "stride",
        "normalization": "transductive",
        "eval_every": 250,
        "eval_tasks": 100,
        "eval_steps": 3,
        "checkpoint_every": 50,
    }

    @property
    def spec(self) -> ShotSpec:
        """Sizes, ranges and units."""
        return self._shape.spec(fonts.LAST + 1, (1, self.size, self.size))

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the characters of every task."""
        return classes.tasks_of(
            self._shape, classes.sample(self._shape, self.members(split), num_tasks, split, seed)[0]
        )

    def members(self, split: Split) -> np.ndarray:
        """Return the code points of a split, int64 (C,)."""
        drawn = self._images
        return fonts.codes(drawn)[classes.parted(drawn.names, self.split_seed)[SPLITS.index(split)]]

    def pick(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose support and query images of every task."""
        drawn = self._images
        index = np.searchsorted(fonts.codes(drawn), tasks.values.astype(np.int64))
        return classes.pick(self._shape, index, drawn.counts, seeds)

    def pool(self) -> np.ndarray:
        """Return the images of all characters, uint8 (P, 1, size, size).

        Raises:
            SettingsError: if there are no fonts, or too few for so many ways, shots and queries.
        """
        classes.refuse_few(self.root or "env=glyphs", self.ways, self.members)
        return self._images.images

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw support and query examples."""
        return pooled.shots(self, tasks, seeds)

    @property
    def _shape(self) -> Shape:
        return Shape(self.ways, self.shots, self.queries)

    @property
    def _images(self) -> ImageSet:
        return _rendered(self.root, self.size, max(12, self.shots + self.queries))


@functools.lru_cache(maxsize=4)
def _rendered(root: str | None, size: int, least: int) -> ImageSet:
    if root is not None and not pathlib.Path(root).is_dir():
        raise SettingsError(f"env.root={root} is no directory; name one of TrueType or OpenType fonts")
    return fonts.render(fonts.find(root), size, least)
