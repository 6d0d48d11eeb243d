"""Other people's pickles of arrays, read without running what is in them.

Nothing of ours is pickled, because a pickle names functions, and whoever opens it calls them. But miniImageNet and CIFAR are
handed out as pickles, and a user has no others. So this reader knows the few names that an array of numbers, a dictionary and
a list need, and for each name it has a stand-in that only writes down what it was given: no name leads to a function of
Python or NumPy. Any other name is refused before anything is called.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

_WHOLE = re.compile(r"[iu][1248]")  # whole numbers of 1, 2, 4 or 8 bytes


def load(file: IO[bytes]) -> dict[str, Any]:
    """Read a dictionary of arrays, lists, numbers, texts and dictionaries of such, whichever Python wrote it.

    Returns:
        The dictionary; arrays are of whole numbers.

    Raises:
        ValueError: if it is no such pickle, cut short, or asks for anything else.
    """
    try:
        found = _Reader(file, encoding="latin1").load()  # in which every byte of a text of Python 2 is one letter
    except MemoryError as error:  # which damaged bytes ask for as well
        raise ValueError("there is too little memory for what it says it holds") from error
    except Exception as error:  # of damaged bytes an unpickler may raise anything
        raise ValueError(f"no pickle of arrays: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise ValueError(f"a pickled {type(found).__name__}, not a dictionary")
    return {str(name): _plain(value) for name, value in found.items()}


@dataclasses.dataclass
class _Written:
    """What a pickle says of a type or an array: its arguments, and the state that it is given afterwards."""

    arguments: tuple[Any, ...]
    state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)


def _encoded(text: str, encoding: str) -> bytes:
    """The bytes of an array, as Python 3 writes them for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _nothing() -> bytes:
    """No bytes at all, likewise."""
    return b""


def _written(*arguments: Any) -> _Written:
    return _Written(arguments)


# The same things have moved from module to module. What is only named, never called, is None.
_KNOWN: Mapping[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _written,
    ("numpy.core.multiarray", "_reconstruct"): _written,
    ("numpy._core.multiarray", "_reconstruct"): _written,
    ("numpy.core.numeric", "_frombuffer"): _written,
    ("numpy._core.numeric", "_frombuffer"): _written,
    ("_codecs", "encode"): _encoded,
    ("builtins", "bytes"): _nothing,
    ("__builtin__", "bytes"): _nothing,
    ("builtins", "dict"): dict,
    ("__builtin__", "dict"): dict,
    ("builtins", "list"): list,
    ("__builtin__", "list"): list,
}


class _Reader(pickle.Unpickler):
    """Python's own unpickler, whose documentation tells to restrict names in this way: by a subclass."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in, made for this once: a pickle may write to the attributes of what it is given."""
        if (module, name) not in _KNOWN:
            raise ValueError(f"it asks for {module}.{name}, which data have no use for; it may be malicious")
        known = _KNOWN[module, name]
        return f"{module}.{name}" if known is None else lambda *arguments: known(*arguments)


def _plain(value: Any) -> Any:
    """Return arrays for what is written down of them."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return _array(value) if isinstance(value, _Written) else value


def _array(written: _Written) -> np.ndarray:
    try:
        if (
            written.state
        ):  # _reconstruct(type, shape, code), then version, shape, type, whether in Fortran's order, and bytes
            shape, kind, by_columns, raw = written.state[-4:]
        else:  # _frombuffer(bytes, type, shape, order)
            raw, kind, shape, order = written.arguments
            by_columns = order == "F"
        name, byte_order = kind.arguments[0], (kind.state or ("", "|"))[1]
        if not _WHOLE.fullmatch(name) or byte_order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of {name}, not of whole numbers")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        numbers = np.frombuffer(raw, np.dtype(name).newbyteorder(byte_order))
        return numbers.reshape(shape, order="F" if by_columns else "C")
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"an array that is not described as arrays are ({error})") from error
