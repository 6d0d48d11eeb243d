"""Foreign pickles: those of every Python and NumPy are understood, and nothing in them is ever called."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pathlib
import pickle

import numpy as np
import pytest

from metarl.envs.fewshot import unpickling

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
DATA = {"image_data": IMAGES, "class_dict": {"n01": [0, 2], "n02": [1]}, "numbers": np.arange(-3, 5, dtype=">i4")}


def _same(found):
    assert list(found) == list(DATA)
    assert found["class_dict"] == DATA["class_dict"]
    for name in ("image_data", "numbers"):
        assert np.array_equal(found[name], DATA[name])
    assert found["image_data"].dtype == np.uint8


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_3_wrote(protocol):
    """Catches a name that a newer protocol needs (0 to 2 encode bytes as text, 5 has a function of its own for arrays)."""
    _same(unpickling.load(io.BytesIO(pickle.dumps(DATA, protocol))))


def test_what_older_numpys_wrote():
    """NumPy 1 had its functions in numpy.core."""
    now = pickle.dumps(DATA, 2)
    old = now.replace(b"numpy._core.", b"numpy.core.")
    assert old != now
    _same(unpickling.load(io.BytesIO(old)))


def test_what_python_2_wrote(python2):
    """Its texts are bytes; an array of bytes above 127 is what a wrong encoding fails on."""
    assert IMAGES.max() > 127
    written = python2({**DATA, "numbers": DATA["numbers"].astype("<i4")})
    theirs = pickle.loads(written, encoding="latin1")  # of our own making; Python's reader is the judge
    assert np.array_equal(theirs["image_data"], IMAGES), "the test's own writer"
    _same(unpickling.load(io.BytesIO(written)))


def test_arrays_in_fortrans_order():
    by_columns = np.asfortranarray(IMAGES[..., 0])
    for protocol in (2, 5):
        found = unpickling.load(io.BytesIO(pickle.dumps({"x": by_columns}, protocol)))
        assert np.array_equal(found["x"], by_columns)


class _Calls:
    """Pickled as a call of something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _reaches(path):
    """Ways in which a pickle may try to write a file."""
    code = f"open({str(path)!r}, 'w')"
    yield r"(posix|nt)\.system", _Calls(os.system, f"echo > {path}")
    yield r"(builtins|__builtin__)\.eval", _Calls(builtins.eval, code)
    yield r"(builtins|__builtin__)\.exec", _Calls(builtins.exec, code)
    yield r"(builtins|__builtin__)\.getattr", _Calls(getattr, "", "join")
    yield r"_?io\.open", _Calls(io.open, str(path), "w")
    yield r"numpy(\.\w+)*\.load", _Calls(np.load, str(path))
    yield r"numpy(\.\w+)*\.memmap", _Calls(np.memmap, str(path), "uint8", "w+", 0, (3,))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("way", range(7))
def test_malicious_pickles_are_refused_and_not_run(tmp_path, way, protocol):
    """Catches a reader that allows too much, or refuses after the call. Hidden where data are, beside good data."""
    path = tmp_path / "written"
    name, bad = list(_reaches(path))[way]
    data = pickle.dumps({"image_data": IMAGES, "class_dict": {"n01": [0, bad]}}, protocol)
    with pytest.raises(ValueError, match=rf"no pickle of arrays: it asks for {name}, which data .* malicious"):
        unpickling.load(io.BytesIO(data))
    assert not list(tmp_path.iterdir())


def test_the_malicious_pickles_would_run(tmp_path):
    """Or the test above proves nothing."""
    path = tmp_path / "written"
    pickle.loads(pickle.dumps(next(_reaches(path))[1]))  # our own, which writes one file in this test's directory
    assert path.exists()


OTHERS = {
    "objects": (pickle.dumps({"x": np.array([None])}, 2), "an array of O8, not of whole numbers"),
    "fractions": (pickle.dumps({"x": np.ones(3)}, 2), "an array of f8, not of whole numbers"),
    "a list": (pickle.dumps([1]), "a pickled list, not a dictionary"),
    "names of ours": (
        b"\x80\x02cmetarl.envs.fewshot.unpickling\nload\n.",
        "asks for metarl.envs.fewshot.unpickling.load",
    ),
    "dots": (b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93.", "asks for numpy.dtype.__class__"),
    "a persistent id": (b"\x80\x02K\x01Q.", "persistent"),
    "another codec": (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0hex\x86R.", "bytes in the encoding 'hex'"),
    "many bytes": (b"\x80\x02cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.", "no pickle of arrays"),
    "cut short": (pickle.dumps(DATA)[:-40], "no pickle of arrays"),
    "empty": (b"", "no pickle of arrays"),
    "text": (b"<html>not found</html>", "no pickle of arrays"),
    "too few bytes": (pickle.dumps({"x": IMAGES}, 2).replace(b"K\x03K\x04K\x04", b"K\x09K\x04K\x04"), "cannot reshape"),
    "a bare type": (pickle.dumps({"x": np.dtype("u1")}, 2), "not described as arrays are"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_things_are_refused(what):
    """One kind of error for whatever is in the file."""
    data, message = OTHERS[what]
    with pytest.raises(ValueError, match=message) as caught:
        unpickling.load(io.BytesIO(data))
    assert "\n" not in str(caught.value)


def test_a_length_beyond_all_memory_is_no_traceback(tmp_path):
    """Four damaged bytes may say so; a file object then asks for the room before it looks at its end."""
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04\x8e" + (1 << 50).to_bytes(8, "little") + b"abc.")
    with path.open("rb") as file, pytest.raises(ValueError, match=r"too little memory|truncated"):
        unpickling.load(file)


def test_a_pickle_cannot_change_the_reader():
    """A stand-in's attributes may be written to (opcode BUILD); it is thrown away, and the next file meets a new one."""
    attack = b"\x80\x02}X\x01\0\0\0xcnumpy\ndtype\n}X\x08\0\0\0__call__K\x01s}X\x0c\0\0\0__defaults__K\x01\x85s\x86bs."
    before = dict(vars(unpickling))
    with contextlib.suppress(ValueError):
        unpickling.load(io.BytesIO(attack))
    assert vars(unpickling) == before
    assert unpickling._written.__defaults__ is None
    _same(unpickling.load(io.BytesIO(pickle.dumps(DATA))))


def test_no_name_leads_to_a_function_of_others():
    """Whoever adds a name to the list must write a stand-in for it."""
    ours = pathlib.Path(unpickling.__file__)
    for name, known in unpickling._KNOWN.items():
        assert known in (None, dict, list) or pathlib.Path(known.__code__.co_filename) == ours, name
