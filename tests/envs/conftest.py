"""Pickles as Python 2 and NumPy 1 wrote them, by their opcodes: no Python 3 writes such files any more."""

from __future__ import annotations

import struct

import numpy as np
import pytest


def _text(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING


def _whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)  # BININT


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _written(value: object) -> bytes:
    if isinstance(value, np.ndarray):
        made = b"cnumpy.core.multiarray\n_reconstruct\n" + _tuple(b"cnumpy\nndarray\n", _tuple(_whole(0)), _text(b"b"))
        kind = b"cnumpy\ndtype\n" + _tuple(_text(value.dtype.str[1:].encode()), _whole(0), _whole(1)) + b"R"
        order = b"|" if value.dtype.itemsize == 1 else b"<"
        kind += _tuple(_whole(3), _text(order), b"N", b"N", b"N", _whole(-1), _whole(-1), _whole(0)) + b"b"
        shape = _tuple(*map(_whole, value.shape))
        return made + b"R" + _tuple(_whole(1), shape, kind, b"I00\n", _text(value.tobytes())) + b"b"
    if isinstance(value, dict):
        return b"}(" + b"".join(_written(key) + _written(one) for key, one in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_written, value)) + b"e"
    return _text(value.encode("latin1")) if isinstance(value, str) else _whole(int(value))


@pytest.fixture
def python2():
    """A function from dictionaries of arrays, lists, texts and numbers to such a pickle."""
    return lambda value: b"\x80\x02" + _written(value) + b"."
