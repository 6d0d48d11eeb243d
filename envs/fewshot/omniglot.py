"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl import pooled
from metarl.envs.fewshot import classes, omniglot_files
from metarl.envs.fewshot.classes import TURNS, ImageSet, Shape
from metarl.envs.fewshot.files import Source
from metarl.envs.fewshot.omniglot_files import DRAWERS, TOTAL
from metarl.families import SPLITS, Shots, ShotSpec, Split, Tasks
from metarl.pooled import Picks
from metarl.settings import SettingsError, setting

# The background alphabets that Vinyals et al. validate on, in the version of Snell et al.
_VALIDATION = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
# Training, validation and test characters
_MAML, _VINYALS_TEST = (1100, 100, 423), 423


@dataclasses.dataclass(frozen=True)
class Omniglot:
    r"""Tell W handwritten characters apart after K drawings of each.

    A task draws W characters of its split, in an order that says which is answer 0, 1, ...; of each it draws K support and Q
    query images, all different. Inputs are grey levels in [0, 1], ink 1, shape (1, size, size). Loss: cross entropy, the
    mean over a task's images. Metric: accuracy on the W*Q queries.

    Characters are sorted by name, ``images_background/Alphabet/characterNN``, and numbered from 0; a task's number is the
    character's plus 1623 times its turn. The splits, of whole characters with all their turns:

    - ``maml``: 1100 characters to train on, 100 to validate, 423 to test, irrespective of alphabets (Finn et al. and their
      code), in an order that ``split_seed`` determines: that of the SHA-256 of seed and name, the same with every library.
    - ``vinyals``: 1028, 172 and 423 (Vinyals et al. in the version of Snell et al., 2017): the test characters are the last
      423, the last four of Gurmukhi and all alphabets behind it; five background alphabets validate.
    - ``lake``: trained on the background alphabets, tested on the evaluation ones (Lake et al.): 792, 172 and 659, where the
      same five background alphabets validate.

    Turns by right angles: ``task`` turns each class of each task (Finn et al.), ``new`` makes them classes of their own
    (Vinyals et al.), of which two of one character may meet in a task, ``none`` leaves them out.

    Recommended are the settings of Finn et al. for 5 ways, but for the scale of the inner step: their code sums the loss over
    examples and divides by the shots, so that their 0.4 would be 5 * 0.4 = 2 on our mean, with another initialisation of
    the network. Here 0.4 applies to the mean. For 20 ways they take five steps of 0.1 (2 on the mean) and 16 tasks.

    Reference: Lake, Salakhutdinov and Tenenbaum (2015), Science 350, 1332; Vinyals et al. (2016), arXiv:1606.04080; Finn,
    Abbeel and Levine (2017), arXiv:1703.03400, section 5.2; Snell et al. (2017), arXiv:1703.05175.
    """

    ways: int = setting(5, "classes of a task", low=2, high=100)
    shots: int = setting(1, "support images of each class", low=1)
    queries: int = setting(15, "query images of each class", low=1)
    split: str = setting("maml", "which characters train, validate and test", choices=("maml", "vinyals", "lake"))
    split_seed: int = setting(1, "of split=maml", low=0)
    rotations: str = setting("task", "turned in each task, new classes, or none", choices=("task", "new", "none"))
    size: int = setting(28, "height and width of an image, pixels", low=8, high=105)
    root: str | None = setting(None, "directory of the data; null takes the environment variable METARL_DATA")
    download: bool = setting(False, "fetch the official archives into that directory, if it has no data")

    recommended: ClassVar[Mapping[str, Any]] = {
        "algo": "maml-adam",
        "iterations": 60000,
        "meta_batch_size": 32,
        "inner_steps": 1,
        "inner_lr": 0.4,
        "filters": 64,
        "downsampling": "stride",
        "normalization": "transductive",
        "eval_every": 500,
        "eval_tasks": 100,
        "eval_steps": 3,
        "checkpoint_every": 100,
    }

    def __post_init__(self) -> None:
        """Refuse more images of a class than there are."""
        if self.shots + self.queries > DRAWERS:
            raise SettingsError(
                f"env.shots={self.shots} and env.queries={self.queries} are more than the {DRAWERS} drawings of a character;"
                " lower one of them"
            )

    @property
    def spec(self) -> ShotSpec:
        """Sizes, ranges and units."""
        turns = 1 if self.rotations == "none" else TURNS
        return self._shape.spec(TOTAL * turns, (1, self.size, self.size))

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the classes of every task."""
        members = self.members(split)
        if self.rotations == "new":
            members = np.concatenate([members + TOTAL * turn for turn in range(TURNS)])
        turns = TURNS if self.rotations == "task" else 1
        characters, turn = classes.sample(self._shape, members, num_tasks, split, seed, turns)
        return classes.tasks_of(self._shape, characters + TOTAL * turn)

    def members(self, split: Split) -> np.ndarray:
        """Return the characters of a split, int64 (C,)."""
        return _members(self._images.names, self.split, self.split_seed)[SPLITS.index(split)]

    def pick(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Picks, Picks]:
        """Choose support and query drawings of every task."""
        turn, character = np.divmod(tasks.values.astype(np.int64), TOTAL)
        counts = np.full(TOTAL, DRAWERS)
        both = classes.pick(self._shape, character, counts, seeds)
        moved = [np.repeat(turn, len(picks.rows[0]) // self.ways, axis=1) * (TOTAL * DRAWERS) for picks in both]
        return Picks(both[0].rows + moved[0], both[0].targets), Picks(both[1].rows + moved[1], both[1].targets)

    def pool(self) -> np.ndarray:
        """Return all drawings, one turn after the other, uint8 (4 * 32460, 1, size, size), or unturned without turns.

        Raises:
            SettingsError: where the data are missing or damaged.
        """
        return self._images.images

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw support and query examples."""
        return pooled.shots(self, tasks, seeds)

    @property
    def _shape(self) -> Shape:
        return Shape(self.ways, self.shots, self.queries)

    @property
    def _images(self) -> ImageSet:
        return _loaded(omniglot_files.find(self.root, self.size, self.download), self.size, self.rotations != "none")


@functools.lru_cache(maxsize=2)
def _loaded(source: Source, size: int, turning: bool) -> ImageSet:
    names, images = omniglot_files.read(source, size)
    flat = images.reshape(-1, 1, size, size)
    return ImageSet(names, classes.turned(flat) if turning else flat, np.full(TOTAL, DRAWERS))


@functools.lru_cache(maxsize=8)
def _members(names: tuple[str, ...], split: str, seed: int) -> tuple[np.ndarray, ...]:
    """Return the characters of training, validation and test, each ascending."""
    if split == "maml":
        return tuple(np.sort(part) for part in np.split(classes.shuffled(names, seed), np.cumsum(_MAML)[:2]))
    test = np.arange(len(names)) >= len(names) - _VINYALS_TEST
    if split == "lake":
        test = np.array([name.startswith("images_evaluation/") for name in names])
    validation = np.array([name.split("/")[1] in _VALIDATION for name in names]) & ~test
    return tuple(np.flatnonzero(part) for part in (~test & ~validation, validation, test))
