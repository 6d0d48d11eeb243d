"""What a page about runs is made of."""

from __future__ import annotations

import base64
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """A sentence, and whether it is a warning."""

    text: str
    warns: bool = False


class Picture(NamedTuple):
    """A drawing in base64 with a sentence on how to read it; without data the sentence stands alone."""

    title: str
    reading: str
    data: str
    kind: str = "svg+xml"


class Table(NamedTuple):
    """Rows of text with a head and a sentence on how to read them."""

    title: str
    reading: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def svg(draw: Callable[[pathlib.Path], None]) -> str:
    """Return what is drawn into a file, SVG in base64."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "picture.svg"
        draw(path)
        return base64.b64encode(path.read_bytes()).decode("ascii")
