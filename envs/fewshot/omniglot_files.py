"""Omniglot as people have it on their disks: packed files, the official archives, or the folders that are in them."""

from __future__ import annotations

import functools
import io
import pathlib
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from metarl.envs.fewshot import files
from metarl.envs.fewshot.files import Source
from metarl.settings import SettingsError

DRAWERS, SIDE = 20, 105
CLASSES = {"images_background": 964, "images_evaluation": 659}
TOTAL = sum(CLASSES.values())
PACKED, BITS = "omniglot_28.npz", "omniglot_105_bits.npz"
# of the archives in the folder python/ of github.com/brendenlake/omniglot
MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_WANTED = (
    f"put {PACKED} (or {BITS}, or {' and '.join(MD5)} from github.com/brendenlake/omniglot, or the folders of these names)"
    f" {files.NAME_IT}; env.download=true fetches the archives"
)

Drawings = dict[str, Callable[[], bytes]]  # files of one class by name


def find(root: str | None, size: int, download: bool = False) -> Source:
    """Look for the data in ``root``, or else in METARL_DATA, and in ``omniglot`` and ``omniglot-py`` below it.

    Args:
        root: directory; None reads the environment.
        size: height of the images that are wanted; ``omniglot_28.npz`` has them for 28 only.
        download: fetch the official archives into that directory, if it has no data.

    Raises:
        SettingsError: one line that says what to put where.
    """
    named = files.root("omniglot", root, _WANTED)
    found = _found(named, size)
    if not found and download:
        for name, md5 in MD5.items():
            if not (named / name).is_file():
                files.fetch(URL + name, named / name, md5)
        found = _found(named, size)
    if not found:
        lacking = any((top / PACKED).is_file() for top in _tops(named))
        only = f" (but {PACKED}, which is for env.size=28)" if lacking else ""
        raise SettingsError(f"env=omniglot found no data in {named}{only}: {_WANTED}")
    return found


def _tops(named: pathlib.Path) -> list[pathlib.Path]:
    return [named / below for below in ("", "omniglot", "omniglot-py")]


def _found(named: pathlib.Path, size: int) -> Source | None:
    kinds: list[tuple[str, tuple[str, ...]]] = [("packed", (PACKED,))] if size == 28 else []
    kinds += [("bits", (BITS,)), ("zip", tuple(MD5)), ("folder", tuple(CLASSES))]
    for kind, names in kinds:
        for top in _tops(named):
            paths = [top / name for name in names]
            if all(path.is_dir() if kind == "folder" else path.is_file() for path in paths):
                return Source.of(kind, paths)
    return None


def read(source: Source, size: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Read all images, ink 255 on 0; larger ones are reduced by Lanczos' filter, after conversion to grey levels.

    (Pillow reduces a bitmap by taking the nearest pixel, whatever filter is asked for: code that does not convert it first
    trains on other images.)

    Returns:
        Names ``images_background/Alphabet/characterNN``, sorted, and images uint8 (1623, 20, size, size).

    Raises:
        SettingsError: for damaged or incomplete files, naming the first.
    """
    try:
        if source.kind in ("packed", "bits"):
            names, images = _unpacked(source, size)
        else:
            found = [_zipped(path) if source.kind == "zip" else _unfolded(path) for path in source.paths]
            classes = {name: drawings for part in found for name, drawings in part.items()}
            names, images = list(classes), _drawn(classes, size)
    except files.DAMAGE as error:
        if isinstance(error, SettingsError):
            raise
        raise files.damaged(source, error) from error
    order = sorted(range(len(names)), key=names.__getitem__)
    if order != list(range(len(names))):
        images = images[order]
    return tuple(sorted(names)), images


def _unpacked(source: Source, size: int) -> tuple[list[str], np.ndarray]:
    path = source.paths[0]
    key, shape = ("images", (TOTAL, DRAWERS, 28, 28)) if source.kind == "packed" else ("bits", (TOTAL, DRAWERS, 1379))
    with np.load(path) as file:
        names, array = [str(name) for name in file["names"]], file[key]
    if array.shape != shape or array.dtype != np.uint8 or len(set(names)) != TOTAL:
        raise ValueError(f"'{key}' is {array.dtype} {array.shape} of {len(set(names))} classes, not uint8 {shape}")
    if source.kind == "packed":
        return names, array
    bits = np.unpackbits(array, axis=-1)[..., : SIDE * SIDE].reshape(-1, SIDE, SIDE)
    images = np.stack([_reduced(Image.fromarray((1 - one) * np.uint8(255)), size) for one in bits])
    return names, images.reshape(TOTAL, DRAWERS, size, size)


def _zipped(path: pathlib.Path) -> dict[str, Drawings]:
    """Return the drawings of an official archive, whose checksum must be the official one."""
    files.refuse_other(path, MD5[path.name], "download it again, or unpack it: folders are taken as they are")
    archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    names = (name for name in archive.namelist() if name.endswith(".png"))
    return complete(path, _classes({name: functools.partial(archive.read, name) for name in names}))


def _unfolded(path: pathlib.Path) -> dict[str, Drawings]:
    """Return the drawings below ``images_background`` or ``images_evaluation``."""
    drawings = sorted(path.glob("*/*/*.png"))
    return complete(path, _classes({file.relative_to(path.parent).as_posix(): file.read_bytes for file in drawings}))


def _classes(readers: Mapping[str, Callable[[], bytes]]) -> dict[str, Drawings]:
    """Sort files ``set/Alphabet/characterNN/file`` into classes."""
    classes: dict[str, Drawings] = {}
    for name, read in readers.items():
        folder, _, file = name.rpartition("/")
        classes.setdefault(folder, {})[file] = read
    return classes


def complete(path: pathlib.Path, classes: dict[str, Drawings]) -> dict[str, Drawings]:
    """Return the classes of an archive or a folder, if none and no drawing is missing.

    Raises:
        SettingsError: otherwise.
    """
    wanted = CLASSES[path.stem]
    if len(classes) != wanted:
        raise SettingsError(f"{path} has {len(classes)} characters, not {wanted}; download it again")
    for name, drawings in classes.items():
        if len(drawings) != DRAWERS:
            raise SettingsError(f"{path}: {name} has {len(drawings)} drawings, not {DRAWERS}; download it again")
    return classes


def _drawn(classes: Mapping[str, Drawings], size: int) -> np.ndarray:
    """Read drawings, uint8 (C, 20, size, size), those of a class in the order of their names."""
    rows = [[_decoded(read(), size) for _, read in sorted(drawings.items())] for drawings in classes.values()]
    return np.array(rows, dtype=np.uint8)


def _decoded(file: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        if image.size != (SIDE, SIDE):
            raise ValueError(f"a drawing has {image.size[0]}x{image.size[1]} pixels, not {SIDE}x{SIDE}")
        return _reduced(image.convert("L"), size)


def _reduced(image: Image.Image, size: int) -> np.ndarray:
    """Reduce black ink on white, and return white ink on black."""
    return 255 - np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)
