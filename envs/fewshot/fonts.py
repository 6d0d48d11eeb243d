"""Characters drawn with TrueType fonts, as classes of images: one image for every font that has the character."""

from __future__ import annotations

import importlib.util
import pathlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFont

from metarl.envs import counters
from metarl.envs.fewshot.classes import ImageSet
from metarl.settings import SettingsError

# Fonts that come with matplotlib, on which this package depends: text faces; its others map letters to symbols.
_BUNDLED = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
_SUFFIXES = (".ttf", ".otf")
_CATEGORIES = {"Lu", "Ll", "Lo", "Nd", "Sc", "Sm"}  # letters, digits, and signs of currencies and mathematics
LAST = 0x2FFF  # up to the symbols; what follows are scripts of thousands of characters, which no text face here has
_SMALL = 16  # pixels at which fonts are asked for what they have, and shapes are compared
_NOBODY_HAS = chr(0x10FFFF)
_SCALE = 2  # drawn so many times larger, then averaged
_ALIKE = 0.94  # correlation of mean shapes above which two characters count as one
# Largest distortion: turn (rad), shear, change of size, and shift as a part of the image.
_TURN, _SHEAR, _ZOOM, _SHIFT = 0.15, 0.15, 0.12, 0.06

Face = ImageFont.FreeTypeFont


def find(root: str | None) -> tuple[pathlib.Path, ...]:
    """Return the font files of a directory and all below it, sorted by name; None takes those that matplotlib brings.

    Raises:
        SettingsError: if there are none.
    """
    if root is not None:
        files = [path for path in pathlib.Path(root).rglob("*") if path.suffix.lower() in _SUFFIXES]
        remedy = f"{root} holds no TrueType or OpenType font ({', '.join(_SUFFIXES)}); name a directory of fonts"
    else:
        spec = importlib.util.find_spec("matplotlib")
        places = spec.submodule_search_locations if spec is not None else None
        folder = pathlib.Path(next(iter(places or ["matplotlib"])), "mpl-data", "fonts", "ttf")
        files = [path for path in folder.glob("*.ttf") if any(path.match(f"{name}.ttf") for name in _BUNDLED)]
        files = [path for path in files if "Display" not in path.name]  # of a few signs only
        remedy = f"matplotlib has no fonts in {folder}; install it again, or name a directory of fonts by env.root=DIR"
    if not files:
        raise SettingsError(f"env=glyphs finds no fonts: {remedy}")
    return tuple(sorted(files, key=lambda path: path.name))


def render(files: tuple[pathlib.Path, ...], size: int, least: int) -> ImageSet:
    """Draw every character that at least ``least`` fonts have, each font's with a distortion of its own.

    Characters that look alike (A of three scripts; c and C, which differ in size alone, since each is made to fill the
    image) are one class, that of the lowest code point, so that no shape can be in two splits. Composed letters such as an E
    with an accent are left out. A font that would draw the box for what it lacks draws nothing.

    Args:
        files: fonts, in order.
        size: height and width of an image, pixels.
        least: fonts that must have a character.

    Returns:
        Classes named ``U+0041 LATIN CAPITAL LETTER A``, and images uint8 (P, 1, size, size), ink 255.

    Raises:
        SettingsError: for a file that is no font, or if nothing is left.
    """
    texts = [file for file in files if _is_text(_opened(file, _SMALL))]
    classes = _classes([_opened(file, _SMALL) for file in texts], least)
    if not classes:
        raise SettingsError(f"no character is in {least} of {len(texts)} text fonts; lower env.shots= or env.queries=")
    faces = [_opened(file, _SCALE * size) for file in texts]
    images, counts, names = [], [], []
    for code, fonts in classes.items():
        masks = [(font, mask) for font in fonts if (mask := _mask(faces[font], chr(code))) is not None]
        keys = counters.keys(np.array([code << 16 | font for font, _ in masks], dtype=np.uint64))
        wobble = 2 * counters.table(keys, 5) - 1
        images += [_image(mask, size, own) for (_, mask), own in zip(masks, wobble, strict=True)]
        counts.append(len(masks))
        names.append(f"U+{code:04X} {unicodedata.name(chr(code), '')}".strip())
    return ImageSet(tuple(names), np.array(images)[:, None], np.array(counts))


def codes(drawn: ImageSet) -> np.ndarray:
    """Return the code points of drawn classes, int64 (C,), ascending."""
    return np.array([int(name[2:].split()[0], 16) for name in drawn.names])


def _classes(faces: Sequence[Face], least: int) -> dict[int, list[int]]:
    """Return the characters that at least so many fonts have, no two alike, with the numbers of these fonts."""
    empty = [_mask(face, _NOBODY_HAS) for face in faces]
    found, shapes = {}, []
    for code in range(0x21, LAST + 1):
        if unicodedata.category(chr(code)) not in _CATEGORIES or unicodedata.decomposition(chr(code)):
            continue
        masks = [_mask(face, chr(code)) for face in faces]
        drawn = [font for font, mask in enumerate(masks) if mask is not None and not _same(mask, empty[font])]
        if len(drawn) >= least:
            plain = [_image(mask, _SMALL, np.zeros(5)) for font in drawn if (mask := masks[font]) is not None]
            shapes.append(np.mean(plain, axis=0).ravel())
            found[code] = drawn
    codes = list(found)
    return {codes[row]: found[codes[row]] for row in (_unlike(np.array(shapes)) if shapes else [])}


def _opened(file: pathlib.Path, pixels: int) -> Face:
    try:
        return ImageFont.truetype(str(file), pixels, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise SettingsError(f"{file} cannot be read as a font ({error}); remove it or copy it again") from error


def _mask(face: Face, character: str) -> np.ndarray | None:
    """Return the grey levels of a character's ink, cut to it; None where there is none."""
    mask = face.getmask(character, mode="L")
    levels = np.asarray(mask, dtype=np.uint8).reshape(mask.size[::-1])
    rows, columns = np.flatnonzero(levels.any(axis=1)), np.flatnonzero(levels.any(axis=0))
    if not len(rows):
        return None
    return levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _is_text(face: Face) -> bool:
    """Tell whether a font draws A, B and C as three different things: some have one sign for all characters."""
    masks = [_mask(face, letter) for letter in (*"ABC", _NOBODY_HAS)]
    return all(one is not None and not _same(one, other) for i, one in enumerate(masks[:3]) for other in masks[i + 1 :])


def _same(one: np.ndarray, other: np.ndarray | None) -> bool:
    return other is not None and np.array_equal(one, other)


def _image(mask: np.ndarray, size: int, wobble: np.ndarray) -> np.ndarray:
    """Put ink into the middle of an image, 5/7 of its size, distorted by five numbers in [-1, 1]: uint8 (size, size)."""
    side = _SCALE * size
    turn, shear, zoom = wobble[0] * _TURN, wobble[1] * _SHEAR, 1 + wobble[2] * _ZOOM
    scale = max(mask.shape) / (5 / 7 * side) / zoom
    cos, sin = np.cos(turn), np.sin(turn)
    # where each pixel of the image comes from: the middle of the ink, and a turn and a shear about it
    matrix = scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    middle, shift = np.array(mask.shape[::-1]) / 2, wobble[3:] * _SHIFT * side
    offset = middle - matrix @ (np.array([side, side]) / 2 + shift)
    data = [matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1]]
    drawn = Image.fromarray(mask).transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return np.asarray(drawn.reduce(_SCALE), dtype=np.uint8)


def _unlike(shapes: np.ndarray) -> list[int]:
    """Return the rows of which none looks like an earlier one that is kept."""
    centred = shapes - shapes.mean(axis=1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    alike = unit @ unit.T > _ALIKE
    kept: list[int] = []
    for row in range(len(shapes)):
        if not alike[row, kept].any():
            kept.append(row)
    return kept
