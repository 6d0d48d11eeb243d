"""CIFAR-100 as people have it on their disks: the official archive, what is in it, or a folder for each class."""

from __future__ import annotations

import functools
import pathlib
import tarfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from metarl.envs.fewshot import files, images, unpickling
from metarl.envs.fewshot.files import Source
from metarl.envs.fewshot.published import Published, words
from metarl.settings import SettingsError

SIDE, EACH = 32, 600  # pixels; images of a class, 500 of which CIFAR trains on and 100 of which it tests
# The classes by their superclasses, Krizhevsky (2009).
SUPERCLASSES: Mapping[str, tuple[str, ...]] = {
    name: words(members)
    for name, members in {
        "aquatic_mammals": "beaver dolphin otter seal whale",
        "fish": "aquarium_fish flatfish ray shark trout",
        "flowers": "orchid poppy rose sunflower tulip",
        "food_containers": "bottle bowl can cup plate",
        "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
        "household_electrical_devices": "clock keyboard lamp telephone television",
        "household_furniture": "bed chair couch table wardrobe",
        "insects": "bee beetle butterfly caterpillar cockroach",
        "large_carnivores": "bear leopard lion tiger wolf",
        "large_man-made_outdoor_things": "bridge castle house road skyscraper",
        "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
        "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
        "medium_mammals": "fox porcupine possum raccoon skunk",
        "non-insect_invertebrates": "crab lobster snail spider worm",
        "people": "baby boy girl man woman",
        "reptiles": "crocodile dinosaur lizard snake turtle",
        "small_mammals": "hamster mouse rabbit shrew squirrel",
        "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "vehicles_1": "bicycle bus motorcycle pickup_truck train",
        "vehicles_2": "lawn_mower rocket streetcar tank tractor",
    }.items()
}
ARCHIVE, FOLDER = "cifar-100-python.tar.gz", "cifar-100-python"
# of the archive and of what is in it, from www.cs.toronto.edu/~kriz/cifar.html
MD5 = {
    ARCHIVE: "eb9058c3a382ffc7106e4002c42a8d85",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
_WANTED = (
    f"put {ARCHIVE} from www.cs.toronto.edu/~kriz/cifar.html (or the folder {FOLDER} that is in it, or a folder of images for each"
    f" class) {files.NAME_IT}; nothing is downloaded for you"
)
_BELOW = ("", "cifar100", "cifar-100", "cifar-fs", "cifarfs", "cifarfs/cifar100", "fc100")
_DATA = ("", "data")  # the folders of classes are in data/ where Bertinetto et al. handed them out


def find(env: str, root: str | None, names: tuple[str, ...]) -> Source:
    """Look for the data in ``root``, or else in METARL_DATA, and in folders below it that are called after the sets.

    Args:
        env: the family, for messages.
        root: directory; None reads the environment.
        names: the classes.

    Raises:
        SettingsError: one line that says what to put where.
    """
    top = files.root(env, root, _WANTED)
    places = [top / below for below in _BELOW]
    for place in places:
        parts = [place / FOLDER / part for part in ("train", "test", "meta")]
        if all(part.is_file() for part in parts):
            return Source.of("folder", parts)
    for place in places:
        if (place / ARCHIVE).is_file():
            return Source.of("archive", [place / ARCHIVE])
    for place in (place / data for place in places for data in _DATA):
        if any((place / name).is_dir() for name in names):
            return Source.of("classes", [place])
    raise SettingsError(f"env={env} found no data in {top}: {_WANTED}")


@functools.lru_cache(maxsize=2)
def read(source: Source, published: Published) -> np.ndarray:
    """Read all images, uint8 (60000, 3, 32, 32), class after class in the order of their names.

    Within a class they are CIFAR's training images and then its test images, each in CIFAR's order; those of folders are in
    the order of their names.

    Raises:
        SettingsError: for damaged or incomplete files, naming the first.
    """
    try:
        if source.kind == "classes":
            return _unfolded(source.paths[0], published)
        if source.kind == "folder":
            for path in source.paths:
                files.refuse_other(path, MD5[path.name], "download it again")
            return _unpickled(lambda part: (source.paths[0].parent / part).open("rb"), source.name, published)
        files.refuse_other(source.paths[0], MD5[ARCHIVE], "download it again")
        with tarfile.open(source.paths[0]) as archive:
            return _unpickled(functools.partial(_member, archive), source.name, published)
    except files.DAMAGE as error:
        if isinstance(error, SettingsError):
            raise
        raise files.damaged(source, error) from error


def _member(archive: tarfile.TarFile, part: str) -> IO[bytes]:
    file = archive.extractfile(f"{FOLDER}/{part}")  # read where it is: nothing is unpacked
    if file is None:
        raise ValueError(f"{FOLDER}/{part} is no file")
    return file


def _unfolded(place: pathlib.Path, published: Published) -> np.ndarray:
    found = images.class_folders(place)
    published.refuse_incomplete(str(place), {name: len(found[name]) for name in published.names if name in found})
    return images.read(tuple((name, found[name]) for name in published.names), published.side, "rgb").images


def _unpickled(opened: Callable[[str], IO[bytes]], where: str, published: Published) -> np.ndarray:
    """Read the official pickles: rows of 3072 bytes, red, green and blue, and the number of each one's class."""
    parts: dict[str, dict[str, Any]] = {}
    for part in ("meta", "train", "test"):
        with opened(part) as file:
            parts[part] = unpickling.load(file)
    names = [str(name) for name in parts["meta"]["fine_label_names"]]
    pixels: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for batch in (parts["train"], parts["test"]):
        rows, numbers = batch["data"], np.asarray(batch["fine_labels"])
        wanted = (len(numbers), 3 * published.side**2)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape != wanted:
            raise ValueError(f"'data' is no uint8 array of shape {wanted}")
        if not np.issubdtype(numbers.dtype, np.integer) or not set(numbers.tolist()) <= set(range(len(names))):
            raise ValueError(f"'fine_labels' are not all numbers from 0 to {len(names) - 1}")
        pixels.append(rows)
        labels.append(numbers)
    every, whole = np.concatenate(labels), np.concatenate(pixels)
    counts = np.bincount(every, minlength=len(names))
    published.refuse_incomplete(where, {name: int(n) for name, n in zip(names, counts, strict=True) if n})
    rank = np.searchsorted(published.names, names)  # of each of the file's classes among the sorted
    order = np.argsort(rank[every], kind="stable")
    return whole[order].reshape(-1, 3, published.side, published.side)
