"""A directory of class folders: few-shot learning on one's own images."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl import pooled
from metarl.envs.fewshot import classes, images
from metarl.envs.fewshot.classes import COLOURED, Shape
from metarl.envs.fewshot.images import Listing
from metarl.families import SPLITS, Shots, ShotSpec, Split, Tasks
from metarl.pooled import Picks
from metarl.settings import SettingsError, setting


@dataclasses.dataclass(frozen=True)
class Folder:
    """Tell W classes of images apart after K examples of each: ``env.root=DIR``.

    DIR holds either a folder for each class, ``DIR/zebra/1.jpg``, of which 64 % train, 16 % validate and 20 % test, in an order
    that ``split_seed`` determines; or folders ``train``, ``val`` (or ``validation``, ``valid``) and ``test`` that do. No class
    may be in two of them. Images are scaled to size x size by Lanczos' filter, whatever their shape. Inputs are in [0, 1],
    shape (3 or 1, size, size). Loss: cross entropy, the mean over a task's images. Metric: accuracy on the W*Q queries. A
    task's numbers are its classes' in the order of their names.

    Recommended are the settings of Finn et al. (2017), arXiv:1703.03400, section 5.2, for 84x84 images; their inner step of
    0.01 is 0.05 on the mean loss of five ways.
    """

    root: str | None = setting(None, "directory of class folders, or of train, val and test folders of such")
    ways: int = setting(5, "classes of a task", low=2, high=100)
    shots: int = setting(1, "support images of each class", low=1)
    queries: int = setting(15, "query images of each class", low=1)
    size: int = setting(84, "height and width to which images are scaled, pixels", low=8, high=1024)
    colour: str = setting("rgb", "what is kept of an image", choices=("rgb", "grey"))
    split_seed: int = setting(1, "which classes train, validate and test, where DIR does not say", low=0)

    recommended: ClassVar[Mapping[str, Any]] = COLOURED

    def __post_init__(self) -> None:
        """Ask for the directory."""
        if self.root is None:
            raise SettingsError("env.root is missing: name a directory of class folders")

    @property
    def spec(self) -> ShotSpec:
        """Sizes, ranges and units."""
        channels = 3 if self.colour == "rgb" else 1
        return self._shape.spec(len(self._listing), (channels, self.size, self.size))

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the classes of every task."""
        drawn = classes.sample(self._shape, self.members(split), num_tasks, split, seed)
        return classes.tasks_of(self._shape, drawn[0])

    def members(self, split: Split) -> np.ndarray:
        """Return the classes of a split, int64 (C,)."""
        names = [name for name, _ in self._listing]
        if "/" in names[0]:
            return np.flatnonzero([name.split("/")[0] in images.PARTS[split] for name in names])
        return classes.parted(names, self.split_seed)[SPLITS.index(split)]

    def pick(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose support and query images of every task."""
        counts = np.array([len(files) for _, files in self._listing])
        return classes.pick(self._shape, tasks.values.astype(np.int64), counts, seeds)

    def pool(self) -> np.ndarray:
        """Return all images, uint8 (P, channels, size, size).

        Raises:
            SettingsError: for an image that cannot be read, too few images of a class, or too few classes.
        """
        each = self.shots + self.queries
        for name, files in self._listing:
            if len(files) < each:
                raise SettingsError(
                    f"class {name} in {self.root} has {len(files)} images, and env.shots={self.shots} and env.queries="
                    f"{self.queries} need {each}; add some, or lower these"
                )
        classes.refuse_few(str(self.root), self.ways, self.members)
        return images.read(self._listing, self.size, self.colour).images

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw support and query examples."""
        return pooled.shots(self, tasks, seeds)

    @property
    def _shape(self) -> Shape:
        return Shape(self.ways, self.shots, self.queries)

    @property
    def _listing(self) -> Listing:
        root = pathlib.Path(self.root or "")
        return _listed(root, root.stat().st_mtime_ns if root.is_dir() else 0)


@functools.lru_cache(maxsize=4)
def _listed(root: pathlib.Path, stamp: int) -> Listing:
    """Return the classes below a directory and their files, both sorted by name; ``stamp`` is the directory's time."""
    del stamp
    if not root.is_dir():
        raise SettingsError(f"env.root={root} is no directory; name one of class folders")
    parts = {split: [root / name for name in names if (root / name).is_dir()] for split, names in images.PARTS.items()}
    found: dict[str, tuple[pathlib.Path, ...]] = {}
    if any(parts.values()):
        missing = [f"{root}/{images.PARTS[split][0]}" for split, folders in parts.items() if len(folders) != 1]
        if missing:
            raise SettingsError(
                f"{missing[0]} is missing, or there twice; classes that train, validate and test need one each"
            )
        places = [folders[0] for folders in parts.values()]
    else:
        places = [root]
    for place in places:
        top = "" if place == root else f"{place.name}/"
        found |= {f"{top}{name}": files for name, files in images.class_folders(place).items()}
    if not found:
        raise SettingsError(f"env.root={root} has no folder with images ({', '.join(sorted(images.SUFFIXES))}) in it")
    _refuse_shared(root, list(found))
    return tuple(sorted(found.items()))


def _refuse_shared(root: pathlib.Path, names: Sequence[str]) -> None:
    """Refuse a class that is in two splits: what is tested must not have been trained on."""
    seen: dict[str, str] = {}
    for name in names:
        split, _, own = name.rpartition("/")
        if own in seen:
            raise SettingsError(f"class {own} is in {seen[own]} and in {split} of {root}; leave it in one of them")
        seen[own] = split
