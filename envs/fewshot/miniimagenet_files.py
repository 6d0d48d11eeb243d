"""miniImageNet as people have it on their disks: pickles, tables of image files, or folders of classes."""

from __future__ import annotations

import csv
import functools
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO

import numpy as np

from metarl.envs.fewshot import files, images, unpickling
from metarl.envs.fewshot.files import Source
from metarl.envs.fewshot.images import PARTS
from metarl.envs.fewshot.published import Published, words
from metarl.families import SPLITS, Split
from metarl.settings import SettingsError

ARCHIVE, MD5 = "mini-imagenet.tar.gz", "b38f1eb4251fb9459ecc8e7febf9b2eb"
PICKLE = "mini-imagenet-cache-{}.pkl"
# Classes of ImageNet in the split of Ravi and Larochelle (2017), 600 images of each, 84 x 84 pixels.
MINI_IMAGENET = Published(
    {
        "train": words(
            "n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006 "
            "n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172 "
            "n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037 "
            "n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472 "
            "n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742 "
            "n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613"
        ),
        "validation": words(
            "n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780 "
            "n03584254 n03770439 n03773504 n03980874 n09256479"
        ),
        "test": words(
            "n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925 "
            "n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480"
        ),
    },
    each=600,
    side=84,
)
_WANTED = (
    f"put {ARCHIVE}, or its {PICKLE.format('train')}, {PICKLE.format('val')} and {PICKLE.format('test')}, or train.csv, val.csv and"
    f" test.csv beside the folder images, or the folders train, val and test of class folders, {files.NAME_IT}; nothing is"
    " downloaded for you, which ImageNet's terms do not allow"
)
_BELOW = ("", "miniimagenet", "miniImagenet", "mini-imagenet", "mini_imagenet", "mini_imagenet_full_size")
# The columns of class and file: of Ravi and Larochelle, and of easyfsl.
_COLUMNS = (("label", "filename"), ("class_name", "image_name"))


def find(root: str | None) -> Source:
    """Look for the data in ``root``, or else in METARL_DATA, and in folders below it that are called after the set.

    Raises:
        SettingsError: one line that says what to put where.
    """
    top = files.root("miniimagenet", root, _WANTED)
    places = [top / below for below in _BELOW]
    forms: dict[str, Callable[[pathlib.Path], list[pathlib.Path]]] = {
        "pickles": lambda place: _existing(place, PICKLE.format),
        "archive": lambda place: [place / ARCHIVE] if (place / ARCHIVE).is_file() else [],
        # before the tables, which the code of Finn et al. leaves beside the folders that it moves the images into
        "folders": lambda place: _existing(place, str, folders=True),
        "tables": lambda place: _existing(place, "{}.csv".format),
    }
    for kind, paths in forms.items():
        for place in places:
            found = paths(place)
            if found:
                return Source.of(kind, found)
    raise SettingsError(f"env=miniimagenet found no data in {top}: {_WANTED}")


def _existing(place: pathlib.Path, name: Callable[[str], str], folders: bool = False) -> list[pathlib.Path]:
    """Return the files, or folders, of training, validation and test in this order; none if one is missing."""
    found = []
    for names in PARTS.values():
        paths = [place / name(word) for word in names]
        found += [path for path in paths if (path.is_dir() if folders else path.is_file())][:1]
    return found if len(found) == len(PARTS) else []


@functools.lru_cache(maxsize=1)
def read(source: Source, published: Published) -> np.ndarray:
    """Read all images, uint8 (60000, 3, 84, 84), class after class in the order of their names.

    Within a class they are in the order of a pickle's numbers, or of the files' names. Files of other sizes are scaled by
    Lanczos' filter.

    Raises:
        SettingsError: for damaged or incomplete files, naming the first.
    """
    try:
        if source.kind in ("tables", "folders"):
            return _images(source, published)
        if source.kind == "pickles":
            return _unpickled(lambda split: source.paths[SPLITS.index(split)].open("rb"), source.name, published)
        files.refuse_other(source.paths[0], MD5, "download it again, or unpack it: its pickles are taken as they are")
        with tarfile.open(source.paths[0]) as archive:
            return _unpickled(functools.partial(_member, archive), source.name, published)
    except (*files.DAMAGE, csv.Error) as error:
        if isinstance(error, SettingsError):
            raise
        raise files.damaged(source, error) from error


def _member(archive: tarfile.TarFile, split: Split) -> IO[bytes]:
    wanted = [PICKLE.format(word) for word in PARTS[split]]
    for member in archive.getmembers():
        file = archive.extractfile(member) if pathlib.PurePosixPath(member.name).name in wanted else None
        if file is not None:  # read where it is: nothing is unpacked
            return file
    raise ValueError(f"{wanted[0]} is not in it")


def _unpickled(opened: Callable[[Split], IO[bytes]], where: str, published: Published) -> np.ndarray:
    """Read pickles of ``image_data``, uint8 (P, 84, 84, 3), and ``class_dict``, the numbers of each class's images."""
    names, side, each = published.names, published.side, published.each
    pool = np.empty((len(names), each, 3, side, side), dtype=np.uint8)  # at once: the whole is more than a gigabyte
    for split in SPLITS:
        with opened(split) as file:
            found = unpickling.load(file)
        images_, classes = found["image_data"], found["class_dict"]
        if not isinstance(classes, dict):
            raise ValueError(f"'class_dict' is a {type(classes).__name__}, not a dictionary")
        if not (isinstance(images_, np.ndarray) and images_.dtype == np.uint8 and images_.shape[1:] == (side, side, 3)):
            raise ValueError(f"'image_data' of {split} is no uint8 array of shape ('P', {side}, {side}, 3)")
        counts = {str(name): len(numbers) for name, numbers in classes.items()}
        published.refuse_incomplete(f"the {split} part of {where}", counts, published.parts[split])
        rows = np.array(list(classes.values()))
        whole = np.issubdtype(rows.dtype, np.integer) and rows.min() >= 0 and rows.max() < len(images_)
        if not whole or len(np.unique(rows)) != rows.size:
            raise ValueError(f"'class_dict' of {split} does not name {rows.size} different images")
        for name, numbers in zip(classes, rows, strict=True):
            pool[names.index(name)] = images_[numbers].transpose(0, 3, 1, 2)
    return pool.reshape(-1, 3, side, side)


def _images(source: Source, published: Published) -> np.ndarray:
    """Read the image files of three tables, or of the class folders in three folders."""
    found: dict[str, tuple[pathlib.Path, ...]] = {}
    for split, path in zip(SPLITS, source.paths, strict=True):
        part = images.class_folders(path) if source.kind == "folders" else _table(path)
        counts = {name: len(listed) for name, listed in part.items()}
        published.refuse_incomplete(str(path), counts, published.parts[split])
        found |= part
    return images.read(tuple((name, found[name]) for name in published.names), published.side, "rgb").images


def _table(path: pathlib.Path) -> Mapping[str, tuple[pathlib.Path, ...]]:
    """Return the image files of each class in a table, sorted by name.

    Raises:
        SettingsError: if there is no such file, or twice.
    """
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file, restval="")
        pairs = [pair for pair in _COLUMNS if set(pair) <= set(table.fieldnames or ())]
        if not pairs:
            raise SettingsError(f"{path} has neither columns {' or '.join(' and '.join(pair) for pair in _COLUMNS)}")
        rows = [(row[pairs[0][0]], row[pairs[0][1]]) for row in table]
    classes: dict[str, set[pathlib.Path]] = {}
    for label, name in rows:
        found = next((place for place in _places(path.parent, label, name) if place.is_file()), None)
        if found is None:
            raise SettingsError(f"{path} names {name}, which is not in {path.parent / 'images'}; copy it there")
        if found in classes.setdefault(label, set()):
            raise SettingsError(f"{path} names {name} twice; remove one of the lines")
        classes[label].add(found)
    return {label: tuple(sorted(paths)) for label, paths in classes.items()}


def _places(top: pathlib.Path, label: str, name: str) -> Iterator[pathlib.Path]:
    """Yield where a table's image may be: in one folder, or in a folder of its class."""
    yield top / "images" / name
    yield top / "images" / label / name
    yield top / label / name
