"""miniImageNet's files in every form, of seven classes of four images, and what may be wrong with them."""

from __future__ import annotations

import csv
import hashlib
import io
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from metarl import families, train
from metarl.envs.fewshot import miniimagenet, miniimagenet_files
from metarl.envs.fewshot.miniimagenet_files import MINI_IMAGENET
from metarl.envs.fewshot.published import Published
from metarl.families import SPLITS
from metarl.settings import SettingsError
from metarl.testing import check_family

EACH, SIDE = 4, 16
PARTS = {"train": ("n05", "n02", "n07"), "validation": ("n01", "n06"), "test": ("n04", "n03")}
SMALL = Published(PARTS, EACH, SIDE)
SHORT = {"train": "train", "validation": "val", "test": "test"}


def _image(name, number):
    """Height, width, colour; smooth, so that scaling and JPEG change little."""
    random = np.random.default_rng([int(name[1:]), number])
    tiles = random.integers(0, 256, (2, 2, 3))
    return np.kron(tiles, np.ones((SIDE // 2, SIDE // 2, 1), int)).astype(np.uint8)


EXPECTED = np.array([_image(f"n0{c}", number) for c in range(1, 8) for number in range(EACH)]).transpose(0, 3, 1, 2)


def _contents(split):
    """As in the files: classes and images in an order of their own."""
    names = [name for number in range(EACH) for name in PARTS[split]]  # one image of each, then the next of each
    rows = {name: [row for row, of in enumerate(names) if of == name] for name in PARTS[split]}
    return {
        "image_data": np.array([_image(name, row // len(PARTS[split])) for row, name in enumerate(names)]),
        "class_dict": rows,
    }


def _write_pickles(root, python2=None, validation="val"):
    for split in SPLITS:
        word = validation if split == "validation" else split
        data = python2(_contents(split)) if python2 else pickle.dumps(_contents(split))
        (root / f"mini-imagenet-cache-{word}.pkl").write_bytes(data)


def _write_archive(root, monkeypatch):
    with tarfile.open(root / "mini-imagenet.tar.gz", "w:gz") as archive:
        for split in SPLITS:
            data = pickle.dumps(_contents(split))
            member = tarfile.TarInfo(f"mini-imagenet-cache-{SHORT[split]}.pkl")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    _count_as_official(root, monkeypatch)


def _count_as_official(root, monkeypatch):
    md5 = hashlib.md5((root / "mini-imagenet.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(miniimagenet_files, "MD5", md5)


def _save(path, name, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_image(name, number)).save(path, "PNG")  # lossless, whatever it is called


def _write_tables(root, style="ravi"):
    for split in SPLITS:
        rows = []
        for name in PARTS[split]:
            for number in range(EACH):
                file = f"{name}{number:08d}.jpg" if style == "ravi" else f"{name}_{number}.JPEG"
                _save(root / "images" / (file if style == "ravi" else f"{name}/{file}"), name, number)
                rows.append((file, name) if style == "ravi" else (name, file))
        with (root / f"{SHORT[split]}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("filename", "label") if style == "ravi" else ("class_name", "image_name"))
            table.writerows(rows)


def _write_folders(root, validation="val"):
    for split in SPLITS:
        for name in PARTS[split]:
            for number in range(EACH):
                part = validation if split == "validation" else split
                _save(root / part / name / f"{number}.jpg", name, number)


def _move_into_folders(root):
    """As the code of Finn et al. does, whose tables stay where they are."""
    _write_tables(root)
    for split in SPLITS:
        for name in PARTS[split]:
            (root / SHORT[split] / name).mkdir(parents=True)
            for path in (root / "images").glob(f"{name}*"):
                path.rename(root / SHORT[split] / name / path.name)


def _read(root):
    return miniimagenet_files.read(miniimagenet_files.find(str(root)), SMALL)


FORMS = {
    "python2": lambda root, python2, patch: _write_pickles(root, python2),
    "python3": lambda root, python2, patch: _write_pickles(root),
    "learn2learn": lambda root, python2, patch: _write_pickles(root, validation="validation"),
    "archive": lambda root, python2, patch: _write_archive(root, patch),
    "ravi": lambda root, python2, patch: _write_tables(root),
    "easyfsl": lambda root, python2, patch: _write_tables(root, "easyfsl"),
    "finn": lambda root, python2, patch: _move_into_folders(root),
    "folders": lambda root, python2, patch: _write_folders(root),
    "folders, validation": lambda root, python2, patch: _write_folders(root, "validation"),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_hold_the_same_images(tmp_path, monkeypatch, python2, form):
    """Class after class by name, whatever the order in the file; colours first."""
    FORMS[form](tmp_path, python2, monkeypatch)
    assert np.array_equal(_read(tmp_path), EXPECTED)


@pytest.mark.parametrize("below", ["miniimagenet", "mini_imagenet_full_size"])
def test_data_may_lie_below_the_root(tmp_path, below):
    (tmp_path / below).mkdir()
    _write_pickles(tmp_path / below)
    assert np.array_equal(_read(tmp_path), EXPECTED)


def test_larger_images_are_reduced_by_lanczos(tmp_path):
    """Of ImageNet's own files, by the filter that the authors took."""
    _write_folders(tmp_path)
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 30, 3)).astype(np.uint8))
    large.save(tmp_path / "test" / "n03" / "1.jpg", "PNG")
    reduced = np.asarray(large.resize((SIDE, SIDE), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert np.array_equal(_read(tmp_path)[2 * EACH + 1], reduced)


def _pickle(root, split, **changes):
    (root / f"mini-imagenet-cache-{SHORT[split]}.pkl").write_bytes(pickle.dumps(_contents(split) | changes))


def _rows(split, **changes):
    return {"class_dict": _contents(split)["class_dict"] | changes}


def _without(split, name):
    return {"class_dict": {own: rows for own, rows in _contents(split)["class_dict"].items() if own != name}}


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def _of(form, damage):
    def spoil(root, monkeypatch):
        FORMS[form](root, None, monkeypatch)
        damage(root)

    return spoil


def _cut_archive(root, monkeypatch):
    _write_archive(root, monkeypatch)
    _cut(root / "mini-imagenet.tar.gz")
    _count_as_official(root, monkeypatch)


def _short_archive(root, monkeypatch):
    with tarfile.open(root / "mini-imagenet.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("mini-imagenet-cache-train.pkl"))
    _count_as_official(root, monkeypatch)


def _append(path, line):
    path.write_text(path.read_text() + line)


DAMAGE = {
    "a malicious pickle": (
        _of("python3", lambda root: _pickle(root, "test", more=_Malicious(root / "written"))),
        r"asks for pathlib\S*\.Path\S*, which data have no use for; it may be malicious",
    ),
    "a cut pickle": (
        _of("python3", lambda root: _cut(root / "mini-imagenet-cache-val.pkl")),
        "cannot be read .*no pickle of arrays.*; copy or download it again",
    ),
    "a page instead": (
        _of("python3", lambda root: (root / "mini-imagenet-cache-val.pkl").write_text("<html>quota exceeded")),
        "cannot be read .*no pickle of arrays",
    ),
    "no class_dict": (
        _of(
            "python3", lambda root: (root / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps({"image_data": 1}))
        ),
        "cannot be read .*class_dict",
    ),
    "class_dict is a list": (
        _of("python3", lambda root: _pickle(root, "test", class_dict=[1])),
        "'class_dict' is a list, not a dictionary",
    ),
    "class_dict of numbers": (
        _of("python3", lambda root: _pickle(root, "test", class_dict={"n03": 1, "n04": 2})),
        "cannot be read .*TypeError",
    ),
    "other images": (
        _of("python3", lambda root: _pickle(root, "test", image_data=np.zeros((8, 9, 9, 3), np.uint8))),
        r"'image_data' of test is no uint8 array of shape \('P', 16, 16, 3\)",
    ),
    "a class is missing": (
        _of("python3", lambda root: _pickle(root, "train", **_without("train", "n02"))),
        "the train part of .*pkl lacks class n02; copy or download it again",
    ),
    "a class of another split": (
        _of("python3", lambda root: _pickle(root, "train", **_rows("train", n04=[1, 2, 3, 4]))),
        "the train part of .* has class n04, which the published split has not there",
    ),
    "too few images of a class": (
        _of("python3", lambda root: _pickle(root, "train", **_rows("train", n02=[1, 4, 7]))),
        "class n02 has 3 images, not 4",
    ),
    "an image that is not there": (
        _of("python3", lambda root: _pickle(root, "train", **_rows("train", n02=[1, 4, 7, 12]))),
        "'class_dict' of train does not name 12 different images",
    ),
    "an image in two classes": (
        _of("python3", lambda root: _pickle(root, "train", **_rows("train", n02=[1, 4, 7, 0]))),
        "'class_dict' of train does not name 12 different images",
    ),
    "another archive": (
        _of("archive", lambda root: _cut(root / "mini-imagenet.tar.gz")),
        r"mini-imagenet.tar.gz is not the official one \(md5 \w{32}, not \w{32}\); download it again, or unpack it",
    ),
    "a cut archive": (_cut_archive, "mini-imagenet.tar.gz cannot be read"),
    "an archive without a part": (_short_archive, "mini-imagenet.tar.gz cannot be read"),
    "a foreign table": (
        _of("ravi", lambda root: (root / "val.csv").write_text("a,b\n1,2\n")),
        "val.csv has neither columns label and filename or class_name and image_name",
    ),
    "a short line": (
        _of("ravi", lambda root: _append(root / "val.csv", "n0100000001.jpg\n")),
        "val.csv has class , which the published split has not there",
    ),
    "a table of more": (
        _of("ravi", lambda root: _append(root / "val.csv", "n0100000009.jpg,n01\n")),
        "val.csv names n0100000009.jpg, which is not in .*images; copy it there",
    ),
    "a table with a line twice": (
        _of("ravi", lambda root: _append(root / "val.csv", "n0100000001.jpg,n01\n")),
        "val.csv names n0100000001.jpg twice; remove one of the lines",
    ),
    "a lost image": (
        _of("folders", lambda root: (root / "val" / "n06" / "2.jpg").unlink()),
        "val: class n06 has 3 images, not 4",
    ),
    "a lost class": (
        _of("folders", lambda root: (root / "val" / "n06").rename(root / "n06")),
        "val lacks class n06; copy or download it again",
    ),
    "a cut image": (
        _of("folders", lambda root: _cut(root / "val" / "n06" / "2.jpg")),
        "2.jpg cannot be read as an image .*; remove or replace it",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, what):
    """Catches a traceback, a training on what is left, and files left behind."""
    spoil, message = DAMAGE[what]
    spoil(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match=message) as caught:
        _read(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_absent_data_give_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METARL_DATA", raising=False)
    assert train.main(["env=miniimagenet", "iterations=1"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(
        "error: env=miniimagenet has no data here: put mini-imagenet.tar.gz, or its mini-imagenet-cache-"
    )
    assert line.count("\n") == 1
    monkeypatch.setenv("METARL_DATA", str(tmp_path))
    (tmp_path / "train.csv").touch()  # one of three is none
    with pytest.raises(
        SettingsError, match=f"found no data in {tmp_path}: put .*env.root=DIR or by the .* METARL_DATA"
    ):
        families.make("miniimagenet").pool()
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


def test_the_split_is_the_published_one():
    """64, 16 and 20 classes that share none; the first of each, and the misprint of 24 test classes is not followed."""
    assert [len(MINI_IMAGENET.parts[split]) for split in SPLITS] == [64, 16, 20]
    assert len(set(MINI_IMAGENET.names)) == 100
    assert np.concatenate([MINI_IMAGENET.members(split) for split in SPLITS]).tolist() != list(range(100))
    assert sorted(np.concatenate([MINI_IMAGENET.members(split) for split in SPLITS])) == list(range(100))
    # house finch and ear train; goose and coral reef validate; nematode and trifle test
    for split, (first, last) in {
        "train": ("n01532829", "n13133613"),
        "validation": ("n01855672", "n09256479"),
        "test": ("n01930112", "n07613480"),
    }.items():
        assert (MINI_IMAGENET.parts[split][0], MINI_IMAGENET.parts[split][-1]) == (first, last)


def test_tasks_need_no_data_and_refuse_what_cannot_be():
    family = families.make("miniimagenet", ways=16)
    assert family.spec.input_shape == (3, 84, 84)
    tasks = family.sample_tasks(50, "validation", 0).values.astype(int)
    assert np.array_equal(np.sort(tasks), np.broadcast_to(MINI_IMAGENET.members("validation"), (50, 16)))
    with pytest.raises(SettingsError, match="are more than the 600 images of a class; lower one of them"):
        families.make("miniimagenet", queries=600)
    with pytest.raises(SettingsError, match=r"env.ways=17 is too large"):
        families.make("miniimagenet", ways=17)


def test_it_is_trained(tmp_path, monkeypatch, capsys):
    """From the files to a validated network, and the family keeps the contract. A small set stands for the large one."""
    monkeypatch.setattr(miniimagenet, "MINI_IMAGENET", SMALL)
    _write_folders(tmp_path)
    small = [
        "env.ways=2",
        "env.queries=3",
        "filters=4",
        "meta_batch_size=2",
        "eval_tasks=2",
        "iterations=1",
        "eval_every=1",
    ]
    words = ["env=miniimagenet", f"env.root={tmp_path}", *small, f"run_dir={tmp_path}/run", "threads=1"]
    assert train.main(words) == 0
    assert "accuracy (transductive normalisation)" in capsys.readouterr().out
    check_family(families.make("miniimagenet", root=str(tmp_path), ways=2, queries=2), disjoint=False)
