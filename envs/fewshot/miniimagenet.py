"""miniImageNet: 60,000 images of 100 of ImageNet's classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl import pooled
from metarl.envs.fewshot import miniimagenet_files
from metarl.envs.fewshot.classes import COLOURED, Shape
from metarl.envs.fewshot.miniimagenet_files import MINI_IMAGENET
from metarl.families import Shots, ShotSpec, Split, Tasks
from metarl.pooled import Picks
from metarl.settings import setting


@dataclasses.dataclass(frozen=True)
class MiniImageNet:
    """Tell W of ImageNet's classes apart after K examples of each: 64 classes train, 16 validate, 20 test.

    Inputs are colours in [0, 1], shape (3, 84, 84). Loss: cross entropy, the mean over a task's images. Metric: accuracy on
    the W*Q queries. A task's numbers are its classes' in the order of their names.

    Recommended are the settings of Finn et al. for 1 shot, but for the scale of the inner step: their code sums the loss over
    examples and divides by the shots, so that their 0.01 is 5 * 0.01 = 0.05 on our mean.

    Reference: Vinyals et al. (2016), arXiv:1606.04080; Ravi and Larochelle (2017), the split; Finn, Abbeel and Levine (2017),
    arXiv:1703.03400, section 5.2 (which prints 64, 12 and 24 classes, and used 64, 16 and 20).
    """

    ways: int = setting(5, "classes of a task, at most the 16 that validate", low=2, high=16)
    shots: int = setting(1, "support images of each class", low=1)
    queries: int = setting(15, "query images of each class", low=1)
    root: str | None = setting(None, "directory of the data; null takes the environment variable METARL_DATA")

    recommended: ClassVar[Mapping[str, Any]] = COLOURED

    def __post_init__(self) -> None:
        """Refuse more images of a class than there are."""
        MINI_IMAGENET.refuse_many(self._shape)

    @property
    def spec(self) -> ShotSpec:
        """Sizes, ranges and units."""
        return MINI_IMAGENET.spec(self._shape)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the classes of every task."""
        return MINI_IMAGENET.sample(self._shape, num_tasks, split, seed)

    def pick(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose support and query images of every task."""
        return MINI_IMAGENET.pick(self._shape, tasks, seeds)

    def pool(self) -> np.ndarray:
        """Return all images, uint8 (60000, 3, 84, 84).

        Raises:
            SettingsError: where the data are missing or damaged.
        """
        return miniimagenet_files.read(miniimagenet_files.find(self.root), MINI_IMAGENET)

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw support and query examples."""
        return pooled.shots(self, tasks, seeds)

    @property
    def _shape(self) -> Shape:
        return Shape(self.ways, self.shots, self.queries)
