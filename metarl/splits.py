"""The splits of a family's tasks, disjoint by construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from metarl.settings import SettingsError, nearest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# The unit interval is cut into this many cells; the last digit of a cell's number says which split owns it.
_CELLS = 1000
_SPLIT_DIGITS: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "validation": (8,), "test": (9,)}


def split_uniform(num_tasks: int, split: Split, seed: int | Sequence[int], dimensions: int = 1) -> np.ndarray:
    """Draw points of the unit cube whose first coordinate tells their split: disjoint by construction.

    The unit interval is cut into 1000 cells. Cells whose number ends in 0-7 belong to ``train``, in 8 to ``validation``, in
    9 to ``test``; a point falls uniformly into the cells of its split. So every split covers the whole range evenly (to
    one hundredth of it) and no value can occur in two.

    Returns:
        float64, shape (num_tasks, dimensions), in [0, 1). Row i does not depend on ``num_tasks``.
    """
    if split not in _SPLIT_DIGITS:
        raise SettingsError(f"Unknown split '{split}'. {nearest(split, SPLITS)}")
    digits = _SPLIT_DIGITS[split]
    words = [int(seed)] if isinstance(seed, int | np.integer) else [int(word) for word in seed]
    if min(words, default=0) < 0:
        raise SettingsError(f"seed={words} must not be negative")
    # the length comes first, because NumPy takes (5,) and (5, 0) for the same seed
    rng = np.random.default_rng([len(words), *words, SPLITS.index(split)])
    points = rng.random((num_tasks, dimensions + 1))
    cells = np.floor(points[:, 0] * (_CELLS // 10) * len(digits)).astype(np.int64)
    numbers = cells // len(digits) * 10 + np.asarray(digits)[cells % len(digits)]
    # 1 - 1e-9 keeps rounding from carrying a point into the next cell, which another split may own
    points[:, 1] = (numbers + points[:, 1] * (1 - 1e-9)) / _CELLS
    return points[:, 1:]


def split_of(unit: float) -> Split:
    """Return the split that owns a point of the unit interval (see :func:`split_uniform`)."""
    digit = int(unit * _CELLS) % 10
    return next(split for split, digits in _SPLIT_DIGITS.items() if digit in digits)
