"""Image files in classes, as arrays of bytes."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from metarl.envs.fewshot.classes import ImageSet
from metarl.families import Split
from metarl.settings import SettingsError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
# what the folders of training, validation and test classes are called
PARTS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
_MODES = {"rgb": "RGB", "grey": "L"}

Listing = tuple[tuple[str, tuple[pathlib.Path, ...]], ...]  # classes by name, with their files


def class_folders(place: pathlib.Path) -> dict[str, tuple[pathlib.Path, ...]]:
    """Return the folders of a directory that have images in them, with these, both sorted by name."""
    found = {}
    for folder in sorted(path for path in place.iterdir() if path.is_dir()):
        files = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES))
        if files:
            found[folder.name] = files
    return found


@functools.lru_cache(maxsize=2)
def read(listing: Listing, size: int, colour: str) -> ImageSet:
    """Read images, scaled to size x size by Lanczos' filter, whatever their shape.

    Args:
        listing: classes and their files.
        size: height and width, pixels.
        colour: "rgb" or "grey".

    Raises:
        SettingsError: naming the first file that is no image.
    """
    channels = 3 if colour == "rgb" else 1
    counts = np.array([len(files) for _, files in listing])
    images = np.empty((counts.sum(), channels, size, size), dtype=np.uint8)
    for row, file in enumerate(file for _, files in listing for file in files):
        try:
            with Image.open(file) as image:
                scaled = image.convert(_MODES[colour]).resize((size, size), Image.Resampling.LANCZOS)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())
            raise SettingsError(
                f"{os.fspath(file)} cannot be read as an image ({reason}); remove or replace it"
            ) from error
        images[row] = np.asarray(scaled, dtype=np.uint8).reshape(size, size, channels).transpose(2, 0, 1)
    return ImageSet(tuple(name for name, _ in listing), images, counts)
