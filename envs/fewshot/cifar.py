"""CIFAR-FS and FC100: two few-shot benchmarks of the 60,000 images of CIFAR-100."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl import pooled
from metarl.envs.fewshot import cifar_files
from metarl.envs.fewshot.cifar_files import EACH, SIDE, SUPERCLASSES
from metarl.envs.fewshot.classes import COLOURED, Shape
from metarl.envs.fewshot.published import Published, words
from metarl.families import Shots, ShotSpec, Split, Tasks
from metarl.pooled import Picks
from metarl.settings import setting

_CLASSES = sorted(name for group in SUPERCLASSES.values() for name in group)
_FS_VALIDATION = words(
    "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television tractor"
)
_FS_TEST = words(
    "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone wardrobe"
    " whale woman worm"
)
_FC_VALIDATION = ("large_carnivores", "large_omnivores_and_herbivores", "non-insect_invertebrates", "small_mammals")
_FC_TEST = ("aquatic_mammals", "insects", "medium_mammals", "people")


def _published(validation: Sequence[str], test: Sequence[str]) -> Published:
    rest = tuple(name for name in _CLASSES if name not in (*validation, *test))
    return Published({"train": rest, "validation": tuple(validation), "test": tuple(test)}, EACH, SIDE)


CIFAR_FS = _published(_FS_VALIDATION, _FS_TEST)
FC100_SET = _published(
    *([name for group in groups for name in SUPERCLASSES[group]] for groups in (_FC_VALIDATION, _FC_TEST))
)


@dataclasses.dataclass(frozen=True)
class CifarFS:
    """Tell W classes of CIFAR-100 apart after K examples of each, split at random: 64 classes train, 16 validate, 20 test.

    Inputs are colours in [0, 1], shape (3, 32, 32). Loss: cross entropy, the mean over a task's images. Metric: accuracy on
    the W*Q queries. A task's numbers are its classes' in the order of their names. Recommended are the settings of Finn et
    al. (2017) for miniImageNet, arXiv:1703.03400.

    Reference: Bertinetto, Henriques, Torr and Vedaldi (2019), arXiv:1805.08136; images of Krizhevsky (2009).
    """

    ways: int = setting(5, "classes of a task, at most the 16 that validate", low=2, high=16)
    shots: int = setting(1, "support images of each class", low=1)
    queries: int = setting(15, "query images of each class", low=1)
    root: str | None = setting(None, "directory of the data; null takes the environment variable METARL_DATA")

    recommended: ClassVar[Mapping[str, Any]] = COLOURED

    def __post_init__(self) -> None:
        """Refuse more images of a class than there are."""
        CIFAR_FS.refuse_many(self._shape)

    @property
    def spec(self) -> ShotSpec:
        """Sizes, ranges and units."""
        return CIFAR_FS.spec(self._shape)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the classes of every task."""
        return CIFAR_FS.sample(self._shape, num_tasks, split, seed)

    def pick(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose support and query images of every task."""
        return CIFAR_FS.pick(self._shape, tasks, seeds)

    def pool(self) -> np.ndarray:
        """Return all images, uint8 (60000, 3, 32, 32).

        Raises:
            SettingsError: where the data are missing or damaged.
        """
        return cifar_files.read(cifar_files.find("cifar-fs", self.root, CIFAR_FS.names), CIFAR_FS)

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw support and query examples."""
        return pooled.shots(self, tasks, seeds)

    @property
    def _shape(self) -> Shape:
        return Shape(self.ways, self.shots, self.queries)


@dataclasses.dataclass(frozen=True)
class FC100:
    """Tell W classes of CIFAR-100 apart after K examples of each, split by superclasses: 12 train, 4 validate, 4 test.

    So 60, 20 and 20 classes of 600 images each; what is tested is less like what was trained on than in ``cifar-fs``, which
    it equals in all else.

    Reference: Oreshkin, Rodriguez and Lacoste (2018), arXiv:1805.10123; images of Krizhevsky (2009).
    """

    ways: int = setting(5, "classes of a task, at most the 20 that validate", low=2, high=20)
    shots: int = setting(1, "support images of each class", low=1)
    queries: int = setting(15, "query images of each class", low=1)
    root: str | None = setting(None, "directory of the data; null takes the environment variable METARL_DATA")

    recommended: ClassVar[Mapping[str, Any]] = COLOURED

    def __post_init__(self) -> None:
        """Refuse more images of a class than there are."""
        FC100_SET.refuse_many(self._shape)

    @property
    def spec(self) -> ShotSpec:
        """Sizes, ranges and units."""
        return FC100_SET.spec(self._shape)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the classes of every task."""
        return FC100_SET.sample(self._shape, num_tasks, split, seed)

    def pick(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose support and query images of every task."""
        return FC100_SET.pick(self._shape, tasks, seeds)

    def pool(self) -> np.ndarray:
        """Return all images, uint8 (60000, 3, 32, 32).

        Raises:
            SettingsError: where the data are missing or damaged.
        """
        return cifar_files.read(cifar_files.find("fc100", self.root, FC100_SET.names), FC100_SET)

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw support and query examples."""
        return pooled.shots(self, tasks, seeds)

    @property
    def _shape(self) -> Shape:
        return Shape(self.ways, self.shots, self.queries)
