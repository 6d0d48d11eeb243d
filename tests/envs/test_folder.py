"""A user's own class folders: what is read, how they are split, and what may be wrong with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from metarl import evaluate, families, train
from metarl.families import SPLITS
from metarl.settings import SettingsError
from metarl.testing import check_family


def _fill(root, names, images=6, size=(20, 12)):
    """Folders of noise, each class around a colour of its own; every second image a JPEG in capitals."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        random = np.random.default_rng(number)
        colour = random.integers(60, 200, 3)
        for image in range(images):
            noise = random.integers(-50, 50, (size[1], size[0], 3))
            file = root / name / (f"{image}.png" if image % 2 else f"{image}.JPG")
            Image.fromarray((colour + noise).astype(np.uint8)).save(file)
        (root / name / "notes.txt").write_text("no image")


@pytest.fixture
def flat(tmp_path):
    _fill(tmp_path, [f"class {letter}" for letter in "ABCDEFGHIJKLMNOPQRST"])
    return tmp_path


@pytest.fixture
def split(tmp_path):
    _fill(
        tmp_path,
        [f"{part}/{name}" for part, names in (("train", "abcd"), ("val", "efg"), ("test", "hij")) for name in names],
    )
    return tmp_path


def _make(root, **settings):
    return families.make("folder", **{"root": str(root), "ways": 2, "queries": 3, "size": 8, **settings})


@pytest.mark.parametrize("colour", ["rgb", "grey"])
def test_images_are_scaled_and_in_the_order_of_their_names(flat, colour):
    family = _make(flat, colour=colour)
    pool = family.pool()
    channels = 3 if colour == "rgb" else 1
    assert pool.shape == (120, channels, 8, 8)
    assert family.spec.input_shape == (channels, 8, 8)
    expected = Image.open(flat / "class C" / "3.png").convert("RGB" if channels == 3 else "L")
    expected = np.asarray(expected.resize((8, 8), Image.Resampling.LANCZOS)).reshape(8, 8, channels)
    assert np.array_equal(pool[2 * 6 + 3], np.moveaxis(expected, 2, 0))
    check_family(family, disjoint=False)  # few tasks: two ways out of few classes


def test_classes_are_parted(flat):
    """64, 16 and 20 % of 20, and differently for another seed."""
    family = _make(flat)
    parts = [family.members(part).tolist() for part in SPLITS]
    assert [len(part) for part in parts] == [13, 3, 4]
    assert sorted(np.concatenate(parts)) == list(range(20))
    assert _make(flat, split_seed=2).members("test").tolist() != parts[2]


def test_folders_may_say_the_split(split):
    family = _make(split)
    names = [name for name, _ in family._listing]
    assert {part: [names[c] for c in family.members(part)] for part in SPLITS} == {
        "train": ["train/a", "train/b", "train/c", "train/d"],
        "validation": ["val/e", "val/f", "val/g"],
        "test": ["test/h", "test/i", "test/j"],
    }


def _spoil(root):
    (root / "class A" / "1.png").write_bytes((root / "class A" / "1.png").read_bytes()[:70])


def _lose(root):
    for file in list((root / "class A").iterdir())[:4]:
        file.unlink()


def _empty(root):
    for folder in root.iterdir():
        for file in folder.iterdir():
            file.unlink()


FAULTS = [
    ("flat", _spoil, {}, r"class A.1.png cannot be read as an image \(.*\); remove or replace it"),
    ("flat", _lose, {}, "class A in .* has [23] images, and env.shots=1 and env.queries=3 need 4"),
    ("flat", None, {"queries": 6}, "class A in .* has 6 images, and env.shots=1 and env.queries=6 need 7"),
    ("flat", None, {"ways": 4}, "has 3 classes for split validation, and env.ways=4 needs as many"),
    ("flat", _empty, {}, r"has no folder with images \(.bmp, .*\) in it"),
    ("flat", lambda root: (root / "test").mkdir(), {}, "train is missing, or there twice"),
    ("split", lambda root: (root / "val").rename(root / "vale"), {}, "val is missing, or there twice"),
    ("split", lambda root: (root / "validation").mkdir(), {}, "val is missing, or there twice"),
    (
        "split",
        lambda root: (root / "test" / "h").rename(root / "test" / "a"),
        {},
        "class a is in train and in test of .*; leave",
    ),
    (
        "flat",
        lambda root: root.rename(root.with_name("gone")),
        {},
        "env.root=.* is no directory; name one of class folders",
    ),
]


@pytest.mark.parametrize(("layout", "damage", "settings", "message"), FAULTS)
def test_what_is_wrong_is_said_in_one_line(request, layout, damage, settings, message):
    """Catches tracebacks, and a test on what was trained on."""
    root = request.getfixturevalue(layout)
    if damage:
        damage(root)
    with pytest.raises(SettingsError, match=message) as caught:
        _make(root, **settings).pool()
    assert "\n" not in str(caught.value)


def test_the_command_line_refuses_and_runs(flat, tmp_path, monkeypatch, capsys):
    """Before anything is written; images of another shape than Omniglot's go through the pooled network."""
    monkeypatch.chdir(tmp_path)
    for words, message in (
        ([], "error: env.root is missing: name a directory of class folders\n"),
        (["env.root=nowhere"], "error: env.root=nowhere is no directory; name one of class folders\n"),
        ([f"env.root={flat}"], "error: class class A in "),
        (
            [f"env.root={flat}", "env.queries=3", "env.ways=2", "env.size=8"],
            "error: network=conv4 does not fit env=folder: images of 8x8 are too small to be halved 4 times: 16 at least\n",
        ),
    ):
        assert train.main(["env=folder", *words, "run_dir=run"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(message)
        assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    small = [
        "env.queries=3",
        "env.ways=2",
        "env.size=16",
        "filters=4",
        "meta_batch_size=2",
        "eval_tasks=2",
        "iterations=1",
    ]
    assert train.main(["env=folder", f"env.root={flat}", *small, "run_dir=run", "threads=1", "eval_every=1"]) == 0
    assert "accuracy (transductive normalisation)" in capsys.readouterr().out
    assert evaluate.main(["run=run", "tasks=3", "steps=1"]) == 0
    assert "run  accuracy (transductive normalisation) after updates  0: " in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "evaluation" / "curve.json").read_text())
    assert written["notes"]["run"]["protocol"] == "transductive normalisation"
    assert written["higher_is_better"] is True
    assert np.shape(written["runs"]["run"]["values"]) == (2, 3)
