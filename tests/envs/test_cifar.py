"""CIFAR-FS and FC100: CIFAR-100's files in every form, of six classes, and what may be wrong with them."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from metarl import families, train
from metarl.envs.fewshot import cifar, cifar_files
from metarl.envs.fewshot.cifar import CIFAR_FS, FC100_SET
from metarl.envs.fewshot.cifar_files import SUPERCLASSES
from metarl.envs.fewshot.published import Published
from metarl.families import SPLITS
from metarl.settings import SettingsError
from metarl.testing import check_family

EACH, SIDE = 3, 32  # two of a class in CIFAR's training set, one in its test set
SMALL = Published({"train": ("whale", "apple"), "validation": ("bee", "wolf"), "test": ("man", "cup")}, EACH, SIDE)
NAMES = ("apple", "bee", "cup", "man", "whale", "wolf")
IMAGES = np.random.default_rng(0).integers(0, 256, (6, EACH, 3, SIDE, SIDE)).astype(np.uint8)


def _batch(which, labels):
    """As the official files: rows of red, then green, then blue."""
    seen = dict.fromkeys(range(6), 2 if which == "test" else 0)
    rows = []
    for label in labels:
        rows.append(IMAGES[label, seen[label]].reshape(-1))
        seen[label] += 1
    return {
        "filenames": [f"{row}.png" for row in range(len(labels))],
        "batch_label": f"{which}ing batch 1 of 1",
        "fine_labels": labels,
        "coarse_labels": [0] * len(labels),
        "data": np.array(rows),
    }


CONTENTS = {
    "train": _batch("train", [3, 0, 5, 1, 4, 2, 2, 5, 0, 3, 4, 1]),
    "test": _batch("test", [5, 2, 0, 4, 1, 3]),
    "meta": {"fine_label_names": list(NAMES), "coarse_label_names": ["things"]},
}


@pytest.fixture
def archive(tmp_path, monkeypatch, python2):
    """A function that writes the archive, with other contents where told, whose checksums count as the official ones."""

    def write(**changes):
        sums = {}
        with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
            for part, contents in (CONTENTS | changes).items():
                data = contents if isinstance(contents, bytes) else python2(contents)
                member = tarfile.TarInfo(f"cifar-100-python/{part}")
                member.size = len(data)
                sums[part] = hashlib.md5(data).hexdigest()
                tar.addfile(member, io.BytesIO(data))
        sums["cifar-100-python.tar.gz"] = hashlib.md5((tmp_path / "cifar-100-python.tar.gz").read_bytes()).hexdigest()
        monkeypatch.setattr(cifar_files, "MD5", sums)
        return tmp_path

    return write


def _unpack(root):
    with tarfile.open(root / "cifar-100-python.tar.gz") as tar:
        tar.extractall(root, filter="data")
    (root / "cifar-100-python.tar.gz").unlink()


def _write_classes(root):
    for name, images in zip(NAMES, IMAGES, strict=True):
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(root / name / f"{number}.png")


def _read(root):
    return cifar_files.read(cifar_files.find("cifar-fs", str(root), NAMES), SMALL)


@pytest.mark.parametrize("form", ["archive", "folder", "cifarfs/cifar100/data", "cifar100", ""])
def test_all_forms_hold_the_same_images(archive, tmp_path, form):
    """Class after class by name, training images before test images."""
    if form in ("archive", "folder"):
        archive()
        if form == "folder":
            _unpack(tmp_path)
    else:
        _write_classes(tmp_path / form)
    before = sorted(tmp_path.rglob("*"))
    assert np.array_equal(_read(tmp_path), IMAGES.reshape(-1, 3, SIDE, SIDE))
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"


def _cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def _cut_unnoticed(write, root, monkeypatch):
    write()
    path = root / "cifar-100-python.tar.gz"
    _cut(path)
    monkeypatch.setitem(cifar_files.MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())


def _without(part, *rows):
    contents = CONTENTS[part]
    kept = [row for row in range(len(contents["fine_labels"])) if row not in rows]
    return contents | {"fine_labels": [contents["fine_labels"][row] for row in kept], "data": contents["data"][kept]}


def _spoilt_folder(write, root, monkeypatch):
    write()
    _unpack(root)
    _cut(root / "cifar-100-python" / "test")


def _classes(damage):
    def spoil(write, root, monkeypatch):
        _write_classes(root)
        damage(root)

    return spoil


DAMAGE = {
    "another archive": (
        lambda write, root, patch: _cut(write() / "cifar-100-python.tar.gz"),
        r"cifar-100-python.tar.gz is not the official one \(md5 \w{32}, not \w{32}\); download it again",
    ),
    "another file in the folder": (_spoilt_folder, r"test is not the official one \(md5 \w{32}, not \w{32}\)"),
    "a cut archive": (_cut_unnoticed, "cifar-100-python.tar.gz cannot be read"),
    "a malicious pickle": (
        lambda write, root, patch: write(train=b"\x80\x02cposix\nsystem\nX\x08\0\0\0touch x1\x85R."),
        "asks for posix.system, which data have no use for; it may be malicious",
    ),
    "other rows": (
        lambda write, root, patch: write(test=CONTENTS["test"] | {"data": np.zeros((6, 9), np.uint8)}),
        r"'data' is no uint8 array of shape \(6, 3072\)",
    ),
    "no labels": (lambda write, root, patch: write(test={"data": IMAGES}), "cannot be read .*fine_labels"),
    "a label without a name": (
        lambda write, root, patch: write(test=CONTENTS["test"] | {"fine_labels": [5, 2, 0, 4, 1, 6]}),
        "'fine_labels' are not all numbers from 0 to 5",
    ),
    "a missing class": (
        lambda write, root, patch: write(train=_without("train", 1, 8), test=_without("test", 2)),
        "cifar-100-python.tar.gz lacks class apple",
    ),
    "too few images of a class": (
        lambda write, root, patch: write(test=_without("test", 2)),
        "class apple has 2 images, not 3",
    ),
    "a class of another name": (
        lambda write, root, patch: write(meta={"fine_label_names": ["pear", *NAMES[1:]]}),
        "cifar-100-python.tar.gz lacks class apple",
    ),
    "a lost folder": (_classes(lambda root: (root / "cup").rename(root / "mug")), "lacks class cup"),
    "a lost image": (_classes(lambda root: (root / "cup" / "1.png").unlink()), "class cup has 2 images, not 3"),
    "a cut image": (_classes(lambda root: _cut(root / "cup" / "1.png")), "1.png cannot be read as an image"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(archive, tmp_path, monkeypatch, what):
    """Catches a traceback, a training on what is left, and files left behind."""
    monkeypatch.chdir(tmp_path)
    spoil, message = DAMAGE[what]
    spoil(archive, tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match=message) as caught:
        _read(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("env", ["cifar-fs", "fc100"])
def test_absent_data_give_one_line(tmp_path, monkeypatch, capsys, env):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METARL_DATA", raising=False)
    assert train.main([f"env={env}", "iterations=1"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: env={env} has no data here: put cifar-100-python.tar.gz from www.cs.toronto.edu")
    assert line.count("\n") == 1
    with pytest.raises(
        SettingsError, match=f"env={env} found no data in {tmp_path}: put .* METARL_DATA; nothing is down"
    ):
        families.make(env, root=str(tmp_path)).pool()
    assert not list(tmp_path.iterdir())


def test_the_splits_are_the_published_ones():
    """Bertinetto's by name; Oreshkin's by superclass: none is in two splits, and each is whole."""
    assert [len(CIFAR_FS.parts[split]) for split in SPLITS] == [64, 16, 20]
    assert [len(FC100_SET.parts[split]) for split in SPLITS] == [60, 20, 20]
    for published in (CIFAR_FS, FC100_SET):
        assert sorted(np.concatenate([published.members(split) for split in SPLITS])) == list(range(100))
    # TADAM lists superclasses by their numbers in CIFAR-100, which are in the order of their names
    numbers = {name: number for number, group in enumerate(sorted(SUPERCLASSES)) for name in SUPERCLASSES[group]}
    assert {split: {numbers[name] for name in FC100_SET.parts[split]} for split in SPLITS} == {
        "train": {1, 2, 3, 4, 5, 6, 9, 10, 15, 17, 18, 19},
        "validation": {8, 11, 13, 16},
        "test": {0, 7, 12, 14},
    }
    # the classes of CIFAR-100 by the numbers of their superclasses, as published beside them: a checksum of the table above
    assert [numbers[name] for name in sorted(numbers)][:20] == [
        4,
        1,
        14,
        8,
        0,
        6,
        7,
        7,
        18,
        3,
        3,
        14,
        9,
        18,
        7,
        11,
        3,
        9,
        7,
        11,
    ]


def test_both_are_made_of_the_same_images(archive, tmp_path, monkeypatch, capsys):
    """From the file to a validated network. A small set stands for the large one."""
    monkeypatch.setattr(cifar, "CIFAR_FS", SMALL)
    monkeypatch.setattr(cifar, "FC100_SET", SMALL)
    root = str(archive())
    family, other = (families.make(env, root=root, ways=2, queries=1) for env in ("cifar-fs", "fc100"))
    assert np.array_equal(family.pool(), other.pool())
    check_family(family, disjoint=False)
    check_family(other, disjoint=False)
    small = [
        "env.ways=2",
        "env.queries=2",
        "filters=4",
        "meta_batch_size=2",
        "eval_tasks=2",
        "iterations=1",
        "eval_every=1",
    ]
    assert train.main(["env=fc100", f"env.root={root}", *small, f"run_dir={tmp_path}/run", "threads=1"]) == 0
    assert "accuracy (transductive normalisation)" in capsys.readouterr().out
